//! What is kept no longer.

use std::ops::Range;

use async_trait::async_trait;
use sqlx::Row as _;

use super::{Postgres, connect::detached, time::Timestamptz};
use crate::{
    job::{Kind, Micros},
    store::{Keepsake, Kinds, Prune, Removable, StoreError},
};

/// Empties a column of the rows that a window holds.
macro_rules! strip {
    ($column:literal) => {
        concat!(
            "UPDATE jobs SET ",
            $column,
            " = NULL WHERE ctid = ANY (ARRAY(
                 SELECT ctid FROM jobs
                 WHERE finished_at >= $1 AND finished_at < $2 AND (kind = ANY ($3)) = $4 AND ",
            $column,
            " IS NOT NULL AND state IN ('succeeded', 'cancelled', 'discarded') LIMIT $5))"
        )
    };
}

/// Removes the rows that a window holds, with their attempts; which of them, `$kinds` may say.
macro_rules! remove {
    ($kinds:literal) => {
        concat!(
            "WITH removed AS (
                 DELETE FROM jobs WHERE ctid = ANY (ARRAY(
                     SELECT ctid FROM jobs
                     WHERE finished_at >= $1 AND finished_at < $2 AND keyed = $3
                       AND state IN ('succeeded', 'cancelled', 'discarded') ",
            $kinds,
            " LIMIT $4))
                 RETURNING id, run, attempt
             ), attempts AS (
                 DELETE FROM attempts USING removed
                 WHERE attempts.id = removed.id AND (removed.run > 1 OR removed.attempt > 0)
             )
             SELECT count(*) FROM removed"
        )
    };
}

/// The names of kinds, and whether they are meant, and not all others.
fn named(of: &Kinds) -> (Vec<String>, bool) {
    let (kinds, only) = of.named();
    (kinds.iter().map(Kind::to_string).collect(), only)
}

#[async_trait]
impl Prune for Postgres {
    fn rows_a_step(&self) -> u32 {
        20_000
    }

    async fn strip(&self, what: Keepsake, of: &Kinds, window: Range<Micros>, at_most: u32) -> Result<u64, StoreError> {
        let (pool, (kinds, only)) = (self.pool.clone(), named(of));
        detached(async move {
            let query = match what {
                Keepsake::Body => sqlx::query(strip!("body")),
                Keepsake::Output => sqlx::query(strip!("output")),
            };
            let query = query.bind(Timestamptz(window.start)).bind(Timestamptz(window.end)).bind(kinds).bind(only);
            Ok(query.bind(i64::from(at_most)).execute(&pool).await?.rows_affected())
        })
        .await
    }

    async fn remove(&self, which: &Removable, window: Range<Micros>, at_most: u32) -> Result<u64, StoreError> {
        let (pool, keyed, (kinds, only)) = (self.pool.clone(), which.keyed, named(&which.of));
        detached(async move {
            // Mostly all kinds go alike, and then no row need be asked of which it is.
            let all = !only && kinds.is_empty();
            let query = sqlx::query(if all { remove!("") } else { remove!("AND (kind = ANY ($5)) = $6") })
                .bind(Timestamptz(window.start))
                .bind(Timestamptz(window.end))
                .bind(keyed)
                .bind(i64::from(at_most));
            let query = if all { query } else { query.bind(kinds).bind(only) };
            let removed = query.fetch_one(&pool).await?;
            Ok(removed.try_get::<i64, _>(0)?.cast_unsigned())
        })
        .await
    }
}
