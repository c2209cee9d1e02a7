//! The dispatcher's side of the table: claim, publish elsewhere, settle.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use sqlx::{Row as _, SqliteConnection};
use tokio::time::timeout;
use uuid::Uuid;

use super::{
    Sqlite,
    connect::{read, written},
    jobs::{self, later},
};
use crate::{
    clock,
    job::{Kind, Micros},
    store::{Claim, Claimed, Due, StoreError},
};

/// The kinds that have anything due at all, by hopping from one to the next in the index `jobs_due`.
macro_rules! due_kinds {
    () => {
        "WITH RECURSIVE kinds (kind) AS (
             SELECT (SELECT kind FROM jobs WHERE due_at IS NOT NULL ORDER BY kind LIMIT 1)
             UNION ALL
             SELECT (SELECT jobs.kind FROM jobs
                     WHERE due_at IS NOT NULL AND jobs.kind > kinds.kind ORDER BY jobs.kind LIMIT 1)
             FROM kinds WHERE kinds.kind IS NOT NULL
         )"
    };
}

async fn claim(
    connection: &mut SqliteConnection,
    limit: usize,
    lease: Duration,
    except: &[Kind],
) -> sqlx::Result<Claim> {
    let now = clock::now();
    let rows = sqlx::query(concat!(due_kinds!(), " SELECT kind FROM kinds WHERE kind IS NOT NULL"))
        .fetch_all(&mut *connection)
        .await?;
    let kinds: Vec<String> = rows.iter().map(|row| row.try_get(0)).collect::<sqlx::Result<_>>()?;
    let kinds: Vec<_> = kinds.iter().filter(|kind| !except.iter().any(|except| except.as_str() == **kind)).collect();
    let mut token = [0; 16];
    getrandom::fill(&mut token).map_err(|error| sqlx::Error::Io(std::io::Error::other(error)))?;
    let mut claim = Claim { token: Uuid::new_v8(token), jobs: Vec::new() };
    let quota = (limit / kinds.len().max(1)).max(1);
    for kind in kinds {
        let rows = sqlx::query(
            "UPDATE jobs SET claim = ?1, claimed_until = ?2
             WHERE id IN (SELECT id FROM jobs
                          WHERE kind = ?3 AND due_at <= ?4 AND (claimed_until IS NULL OR claimed_until < ?4)
                          ORDER BY due_at LIMIT ?5)
             RETURNING id, created_at, root, run, version, attempt, keyed, suspicion, kind, tenant, source, trace_parent,
                       trace_state, fingerprint, body, due_at",
        )
        .bind(claim.token)
        .bind(later(now, lease))
        .bind(kind)
        .bind(now)
        .bind(i64::try_from(quota).unwrap_or(i64::MAX))
        .fetch_all(&mut *connection)
        .await?;
        for row in rows {
            claim.jobs.push(Claimed {
                envelope: jobs::envelope(&row)?,
                body: row.try_get::<Option<_>, _>("body")?.unwrap_or_default(),
                late: Duration::from_micros(u64::try_from(now - row.try_get::<Micros, _>("due_at")?).unwrap_or(0)),
            });
        }
    }
    Ok(claim)
}

#[async_trait]
impl Due for Sqlite {
    async fn claim(&self, limit: usize, lease: Duration, except: &[Kind]) -> Result<Claim, StoreError> {
        // Most of the time nothing is due, and a look costs no commit.
        if self.next_due(except).await? != Some(Duration::ZERO) {
            return Ok(Claim::default());
        }
        let except: Arc<[Kind]> = except.into();
        written(
            self.database
                .write(move |connection| {
                    let except = except.clone();
                    Box::pin(async move { claim(connection, limit, lease, &except).await })
                })
                .await,
        )
    }

    async fn published(&self, token: Uuid, ids: &[Uuid]) -> Result<u64, StoreError> {
        let ids: Arc<[Uuid]> = ids.into();
        written(
            self.database
                .write(move |connection| {
                    let ids = ids.clone();
                    Box::pin(async move {
                        let mut queued = 0;
                        for id in ids.iter() {
                            let done = sqlx::query(
                                "UPDATE jobs SET state = 'queued', due_at = NULL, claim = NULL, claimed_until = NULL
                                 WHERE id = ? AND claim = ? AND state IN ('scheduled', 'retrying')",
                            )
                            .bind(id)
                            .bind(token)
                            .execute(&mut *connection)
                            .await?;
                            queued += done.rows_affected();
                        }
                        Ok(queued)
                    })
                })
                .await,
        )
    }

    async fn release(&self, token: Uuid, ids: &[Uuid]) -> Result<(), StoreError> {
        let ids: Arc<[Uuid]> = ids.into();
        written(
            self.database
                .write(move |connection| {
                    let ids = ids.clone();
                    Box::pin(async move {
                        for id in ids.iter() {
                            sqlx::query(
                                "UPDATE jobs SET claim = NULL, claimed_until = NULL WHERE id = ? AND claim = ?",
                            )
                            .bind(id)
                            .bind(token)
                            .execute(&mut *connection)
                            .await?;
                        }
                        Ok(())
                    })
                })
                .await,
        )
    }

    async fn next_due(&self, except: &[Kind]) -> Result<Option<Duration>, StoreError> {
        let now = clock::now();
        let firsts = async {
            sqlx::query(concat!(
                due_kinds!(),
                " SELECT kind, (SELECT due_at FROM jobs
                                WHERE jobs.kind = kinds.kind AND due_at IS NOT NULL
                                  AND (claimed_until IS NULL OR claimed_until < ?)
                                ORDER BY due_at LIMIT 1)
                 FROM kinds WHERE kind IS NOT NULL"
            ))
            .bind(now)
            .fetch_all(self.database.readers())
            .await?
            .iter()
            .map(|row| Ok((row.try_get::<String, _>(0)?, row.try_get::<Option<Micros>, _>(1)?)))
            .collect::<sqlx::Result<Vec<_>>>()
        };
        let firsts = read(firsts.await)?;
        let next = firsts
            .into_iter()
            .filter(|(kind, _)| !except.iter().any(|except| except.as_str() == kind))
            .filter_map(|(_, due_at)| due_at)
            .min();
        Ok(next.map(|due_at| Duration::from_micros(u64::try_from(due_at - now).unwrap_or(0))))
    }

    async fn wait(&self, at_most: Duration) {
        // Whether it was woken or its time is over is the same to whoever waits.
        _ = timeout(at_most, self.due.notified()).await;
    }
}
