//! What is kept no longer.

use std::ops::Range;

use async_trait::async_trait;
use sqlx::{Row as _, postgres::PgArguments, query::Query};

use super::{Postgres, connect::detached, time::Timestamptz};
use crate::{
    job::{Kind, Micros},
    store::{Keepsake, Kinds, Prune, Pruned, Removable, StoreError},
};

/// Empties a column of the rows that a window holds.
macro_rules! strip {
    ($column:literal) => {
        concat!(
            "WITH found AS MATERIALIZED (
                 SELECT ctid FROM jobs
                 WHERE finished_at >= $1 AND finished_at < $2 AND (kind = ANY ($3)) = $4 AND ",
            $column,
            " IS NOT NULL AND state IN ('succeeded', 'cancelled', 'discarded') LIMIT $5
             ), touched AS (
                 UPDATE jobs SET ",
            $column,
            " = NULL WHERE ctid = ANY (ARRAY(SELECT ctid FROM found)) RETURNING 1
             )
             SELECT (SELECT count(*) FROM found), (SELECT count(*) FROM touched)"
        )
    };
}

/// Removes the rows that a window holds, with their attempts; which of them, `$kinds` may say.
macro_rules! remove {
    ($kinds:literal) => {
        concat!(
            "WITH found AS MATERIALIZED (
                 SELECT ctid FROM jobs
                 WHERE finished_at >= $1 AND finished_at < $2 AND keyed = $3
                   AND state IN ('succeeded', 'cancelled', 'discarded') ",
            $kinds,
            " LIMIT $4
             ), touched AS (
                 DELETE FROM jobs WHERE ctid = ANY (ARRAY(SELECT ctid FROM found)) RETURNING id, run, attempt
             ), attempts AS (
                 DELETE FROM attempts USING touched
                 WHERE attempts.id = touched.id AND (touched.run > 1 OR touched.attempt > 0)
             )
             SELECT (SELECT count(*) FROM found), (SELECT count(*) FROM touched)"
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

    async fn strip(
        &self,
        what: Keepsake,
        of: &Kinds,
        window: Range<Micros>,
        at_most: u32,
    ) -> Result<Pruned, StoreError> {
        let (kinds, only) = named(of);
        let query = match what {
            Keepsake::Body => sqlx::query(strip!("body")),
            Keepsake::Output => sqlx::query(strip!("output")),
        };
        let query = query.bind(Timestamptz(window.start)).bind(Timestamptz(window.end)).bind(kinds).bind(only);
        self.pruned(query.bind(i64::from(at_most))).await
    }

    async fn remove(&self, which: &Removable, window: Range<Micros>, at_most: u32) -> Result<Pruned, StoreError> {
        let (kinds, only) = named(&which.of);
        // Mostly all kinds go alike, and then no row need be asked of which it is.
        let all = !only && kinds.is_empty();
        let query = sqlx::query(if all { remove!("") } else { remove!("AND (kind = ANY ($5)) = $6") })
            .bind(Timestamptz(window.start))
            .bind(Timestamptz(window.end))
            .bind(which.keyed)
            .bind(i64::from(at_most));
        self.pruned(if all { query } else { query.bind(kinds).bind(only) }).await
    }
}

impl Postgres {
    /// Asks a statement that counts what it found and what it touched, and does not break it off.
    async fn pruned(&self, query: Query<'static, sqlx::Postgres, PgArguments>) -> Result<Pruned, StoreError> {
        let pool = self.pool.clone();
        detached(async move {
            let row = query.fetch_one(&pool).await?;
            let [found, touched] = [row.try_get::<i64, _>(0)?, row.try_get(1)?].map(i64::cast_unsigned);
            Ok(Pruned { found, touched })
        })
        .await
    }
}
