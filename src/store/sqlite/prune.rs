//! What is kept no longer.

use std::ops::Range;

use async_trait::async_trait;
use sqlx::Row as _;

use super::{
    Sqlite,
    connect::{read, written},
};
use crate::{
    job::{Kind, Micros},
    store::{Keepsake, Prune, StoreError},
};

#[async_trait]
impl Prune for Sqlite {
    async fn oldest_finished(&self) -> Result<Option<Micros>, StoreError> {
        let oldest = sqlx::query("SELECT min(finished_at) FROM jobs WHERE finished_at IS NOT NULL");
        read(oldest.fetch_one(self.database.readers()).await.and_then(|row| row.try_get(0)))
    }

    async fn strip(&self, kind: &Kind, what: Keepsake, window: Range<Micros>) -> Result<u64, StoreError> {
        let kind = kind.clone();
        written(
            self.database
                .write(move |connection| {
                    let (kind, window) = (kind.clone(), window.clone());
                    Box::pin(async move {
                        let query = match what {
                            Keepsake::Body => sqlx::query(
                                "UPDATE jobs SET body = NULL
                                 WHERE finished_at >= ? AND finished_at < ? AND kind = ? AND body IS NOT NULL
                                   AND state IN ('succeeded', 'cancelled', 'discarded')",
                            ),
                            Keepsake::Output => sqlx::query(
                                "UPDATE jobs SET output = NULL
                                 WHERE finished_at >= ? AND finished_at < ? AND kind = ? AND output IS NOT NULL
                                   AND state IN ('succeeded', 'cancelled', 'discarded')",
                            ),
                        };
                        let query = query.bind(window.start).bind(window.end).bind(kind.as_str());
                        Ok(query.execute(connection).await?.rows_affected())
                    })
                })
                .await,
        )
    }

    async fn remove(&self, keyed: bool, window: Range<Micros>) -> Result<u64, StoreError> {
        written(
            self.database
                .write(move |connection| {
                    let window = window.clone();
                    Box::pin(async move {
                        sqlx::query(
                            "DELETE FROM attempts WHERE id IN (
                                 SELECT id FROM jobs
                                 WHERE finished_at >= ? AND finished_at < ? AND keyed = ? AND run > 1
                                   AND state IN ('succeeded', 'cancelled', 'discarded'))",
                        )
                        .bind(window.start)
                        .bind(window.end)
                        .bind(keyed)
                        .execute(&mut *connection)
                        .await?;
                        let removed = sqlx::query(
                            "DELETE FROM jobs
                             WHERE finished_at >= ? AND finished_at < ? AND keyed = ?
                               AND state IN ('succeeded', 'cancelled', 'discarded')",
                        )
                        .bind(window.start)
                        .bind(window.end)
                        .bind(keyed)
                        .execute(connection)
                        .await?;
                        Ok(removed.rows_affected())
                    })
                })
                .await,
        )
    }
}
