//! What is kept no longer.

use std::ops::Range;

use async_trait::async_trait;

use super::{Sqlite, connect::written};
use crate::{
    job::Micros,
    store::{Keepsake, Kinds, Prune, Pruned, Removable, StoreError},
};

/// Empties a column of the rows that a window holds.
macro_rules! strip {
    ($column:literal) => {
        concat!(
            "UPDATE jobs SET ",
            $column,
            " = NULL WHERE id IN (
                 SELECT id FROM jobs
                 WHERE finished_at >= ? AND finished_at < ? AND (kind IN (SELECT value FROM json_each(?))) = ? AND ",
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

/// The names of kinds as JSON, and whether they are meant, and not all others.
fn named(of: &Kinds) -> (String, bool) {
    let (kinds, only) = of.named();
    (serde_json::json!(kinds).to_string(), only)
}

#[async_trait]
impl Prune for Sqlite {
    /// Who else writes waits meanwhile.
    fn rows_a_step(&self) -> u32 {
        5_000
    }

    async fn strip(
        &self,
        what: Keepsake,
        of: &Kinds,
        window: Range<Micros>,
        at_most: u32,
    ) -> Result<Pruned, StoreError> {
        let (kinds, only) = named(of);
        written(
            self.database
                .write(move |connection| {
                    let (kinds, window) = (kinds.clone(), window.clone());
                    Box::pin(async move {
                        let query = match what {
                            Keepsake::Body => sqlx::query(strip!("body")),
                            Keepsake::Output => sqlx::query(strip!("output")),
                        };
                        let query = query.bind(window.start).bind(window.end).bind(kinds).bind(only).bind(at_most);
                        Ok(Pruned::all_of(query.execute(connection).await?.rows_affected()))
                    })
                })
                .await,
        )
    }

    async fn remove(&self, which: &Removable, window: Range<Micros>, at_most: u32) -> Result<Pruned, StoreError> {
        let (keyed, (kinds, only)) = (which.keyed, named(&which.of));
        written(
            self.database
                .write(move |connection| {
                    let (window, kinds) = (window.clone(), kinds.clone());
                    Box::pin(async move {
                        sqlx::query(concat!("DELETE FROM attempts WHERE id IN (", removable!(), ")"))
                            .bind(window.start)
                            .bind(window.end)
                            .bind(keyed)
                            .bind(&kinds)
                            .bind(only)
                            .bind(at_most)
                            .execute(&mut *connection)
                            .await?;
                        let removed = sqlx::query(concat!("DELETE FROM jobs WHERE id IN (", removable!(), ")"))
                            .bind(window.start)
                            .bind(window.end)
                            .bind(keyed)
                            .bind(&kinds)
                            .bind(only)
                            .bind(at_most)
                            .execute(connection)
                            .await?;
                        Ok(Pruned::all_of(removed.rows_affected()))
                    })
                })
                .await,
        )
    }
}
