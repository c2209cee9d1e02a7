//! What is kept no longer.

use std::ops::Range;

use async_trait::async_trait;

use super::{Sqlite, connect::written};
use crate::{
    job::{Kind, Micros},
    store::{Keepsake, Prune, Removable, StoreError},
};

/// Empties a column of the rows that a window holds.
macro_rules! strip {
    ($column:literal) => {
        concat!(
            "UPDATE jobs SET ",
            $column,
            " = NULL WHERE id IN (
                 SELECT id FROM jobs
                 WHERE finished_at >= ? AND finished_at < ? AND kind = ? AND ",
            $column,
            " IS NOT NULL AND state IN ('succeeded', 'cancelled', 'discarded') LIMIT ?)"
        )
    };
}

/// The rows that a window holds, oldest first: two statements in a row choose the same.
macro_rules! removable {
    () => {
        "SELECT id FROM jobs
         WHERE finished_at >= ? AND finished_at < ? AND keyed = ?
           AND (kind IN (SELECT value FROM json_each(?))) = ? AND state IN ('succeeded', 'cancelled', 'discarded')
         ORDER BY finished_at, id LIMIT ?"
    };
}

#[async_trait]
impl Prune for Sqlite {
    async fn strip(&self, kind: &Kind, what: Keepsake, window: Range<Micros>, at_most: u32) -> Result<u64, StoreError> {
        let kind = kind.clone();
        written(
            self.database
                .write(move |connection| {
                    let (kind, window) = (kind.clone(), window.clone());
                    Box::pin(async move {
                        let query = match what {
                            Keepsake::Body => sqlx::query(strip!("body")),
                            Keepsake::Output => sqlx::query(strip!("output")),
                        };
                        let query = query.bind(window.start).bind(window.end).bind(kind.as_str()).bind(at_most);
                        Ok(query.execute(connection).await?.rows_affected())
                    })
                })
                .await,
        )
    }

    async fn remove(&self, which: &Removable, window: Range<Micros>, at_most: u32) -> Result<u64, StoreError> {
        let which = which.clone();
        // Names of kinds need no escaping.
        let kinds: Vec<_> = which.kinds.iter().map(|kind| format!("\"{kind}\"")).collect();
        let kinds = format!("[{}]", kinds.join(","));
        written(
            self.database
                .write(move |connection| {
                    let (window, which, kinds) = (window.clone(), which.clone(), kinds.clone());
                    Box::pin(async move {
                        sqlx::query(concat!("DELETE FROM attempts WHERE id IN (", removable!(), ")"))
                            .bind(window.start)
                            .bind(window.end)
                            .bind(which.keyed)
                            .bind(&kinds)
                            .bind(which.only)
                            .bind(at_most)
                            .execute(&mut *connection)
                            .await?;
                        let removed = sqlx::query(concat!("DELETE FROM jobs WHERE id IN (", removable!(), ")"))
                            .bind(window.start)
                            .bind(window.end)
                            .bind(which.keyed)
                            .bind(&kinds)
                            .bind(which.only)
                            .bind(at_most)
                            .execute(connection)
                            .await?;
                        Ok(removed.rows_affected())
                    })
                })
                .await,
        )
    }
}
