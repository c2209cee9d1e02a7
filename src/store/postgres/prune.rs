//! What is kept no longer.

use std::ops::Range;

use async_trait::async_trait;
use sqlx::Row as _;

use super::{Postgres, connect::detached, time::Timestamptz};
use crate::{
    job::{Kind, Micros},
    store::{Keepsake, Prune, StoreError},
};

#[async_trait]
impl Prune for Postgres {
    async fn oldest_finished(&self) -> Result<Option<Micros>, StoreError> {
        let pool = self.pool.clone();
        detached(async move {
            // Reads the whole table, once in the life of a process: no index is sorted by this.
            let oldest = sqlx::query("SELECT min(finished_at) FROM jobs").fetch_one(&pool).await?;
            Ok(oldest.try_get::<Option<Timestamptz>, _>(0)?.map(|at| at.0))
        })
        .await
    }

    async fn strip(&self, kind: &Kind, what: Keepsake, window: Range<Micros>) -> Result<u64, StoreError> {
        let (pool, kind) = (self.pool.clone(), kind.to_string());
        detached(async move {
            let query = match what {
                Keepsake::Body => sqlx::query(
                    "UPDATE jobs SET body = NULL
                     WHERE finished_at >= $1 AND finished_at < $2 AND kind = $3 AND body IS NOT NULL
                       AND state IN ('succeeded', 'cancelled', 'discarded')",
                ),
                Keepsake::Output => sqlx::query(
                    "UPDATE jobs SET output = NULL
                     WHERE finished_at >= $1 AND finished_at < $2 AND kind = $3 AND output IS NOT NULL
                       AND state IN ('succeeded', 'cancelled', 'discarded')",
                ),
            };
            let query = query.bind(Timestamptz(window.start)).bind(Timestamptz(window.end)).bind(kind);
            Ok(query.execute(&pool).await?.rows_affected())
        })
        .await
    }

    async fn remove(&self, keyed: bool, window: Range<Micros>) -> Result<u64, StoreError> {
        let pool = self.pool.clone();
        detached(async move {
            let removed = sqlx::query(
                "WITH removed AS (
                     DELETE FROM jobs
                     WHERE finished_at >= $1 AND finished_at < $2 AND keyed = $3
                       AND state IN ('succeeded', 'cancelled', 'discarded')
                     RETURNING id, run
                 ), attempts AS (
                     DELETE FROM attempts USING removed WHERE attempts.id = removed.id AND removed.run > 1
                 )
                 SELECT count(*) FROM removed",
            )
            .bind(Timestamptz(window.start))
            .bind(Timestamptz(window.end))
            .bind(keyed)
            .fetch_one(&pool)
            .await?;
            Ok(removed.try_get::<i64, _>(0)?.cast_unsigned())
        })
        .await
    }
}
