//! Single jobs: put in, looked up, shown, listed, replayed, discarded.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use sqlx::{QueryBuilder, Row as _, Sqlite as Dialect, SqliteConnection, SqlitePool, sqlite::SqliteRow};
use uuid::Uuid;

use super::{
    Sqlite,
    connect::{read, written},
};
use crate::{
    clock,
    job::{Completion, Due, Envelope, Key, Kind, Micros, NewJob, State, Suspicion, Tenant, Trace},
    store::{AttemptRecord, Filter, JobRecord, Jobs, Known, SOON, StoreError, Transition, turns::Turns},
};

/// How many ids stand in one statement.
const IDS: usize = 500;

pub(super) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX / 2)
}

pub(super) fn later(now: Micros, delay: Duration) -> Micros {
    now.saturating_add(micros(delay))
}

/// Whether this makes something due sooner than the dispatcher would look by itself.
pub(super) fn wakes(delay: Option<Duration>, new: &[NewJob]) -> bool {
    let soon = |job: &NewJob| match job.due {
        Due::In(delay) => delay < SOON,
        Due::At(at) => at < later(clock::now(), SOON),
    };
    delay.is_some_and(|delay| delay < SOON) || new.iter().any(soon)
}

/// Inserts jobs that begin their life here; those whose id has a row are left alone. Answers the ids that were new.
pub(super) async fn insert_new(
    connection: &mut SqliteConnection,
    jobs: &[&NewJob],
    now: Micros,
) -> sqlx::Result<Vec<Uuid>> {
    let mut new = Vec::with_capacity(jobs.len());
    for NewJob { envelope, body, due, parent } in jobs {
        let due_at = match due {
            Due::In(delay) => later(now, *delay),
            Due::At(at) => *at,
        };
        let done = sqlx::query(
            "INSERT INTO jobs (id, created_at, root, parent, run, version, attempt, keyed, kind, tenant, source,
                               fingerprint, body, trace_parent, trace_state, state, due_at)
             VALUES (?, ?, ?, ?, 1, ?, 0, ?, ?, ?, ?, ?, ?, ?, ?, 'scheduled', ?)
             ON CONFLICT (id) DO NOTHING",
        )
        .bind(envelope.id)
        .bind(envelope.created_at)
        .bind(envelope.root)
        .bind(*parent)
        .bind(envelope.version)
        .bind(envelope.key.is_keyed())
        .bind(envelope.kind.as_str())
        .bind(envelope.tenant.as_str())
        .bind(envelope.source.as_deref())
        .bind(envelope.key.digest().map(<[u8; 32]>::as_slice))
        .bind(body.as_slice())
        .bind(envelope.trace.as_ref().map(|trace| trace.parent.as_str()))
        .bind(envelope.trace.as_ref().and_then(|trace| trace.state.as_deref()))
        .bind(due_at)
        .execute(&mut *connection)
        .await?;
        if done.rows_affected() == 1 {
            new.push(envelope.id);
        }
    }
    Ok(new)
}

/// Notes on the rows of completions that lost the fence that they had promised another body.
pub(super) async fn note_other_bodies(connection: &mut SqliteConnection, losers: &[&Completion]) -> sqlx::Result<()> {
    for loser in losers {
        let Some(digest) = loser.envelope.key.digest() else { continue };
        sqlx::query("UPDATE jobs SET conflicts = conflicts + 1 WHERE id = ? AND fingerprint <> ?")
            .bind(loser.envelope.id)
            .bind(digest.as_slice())
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

/// `head` and then the ids in parentheses.
pub(super) fn with_ids(head: &'static str, ids: &[Uuid]) -> QueryBuilder<Dialect> {
    let mut query = QueryBuilder::new(head);
    query.push("(");
    let mut list = query.separated(", ");
    for id in ids {
        list.push_bind(*id);
    }
    query.push(")");
    query
}

async fn lookup(connection: &mut SqliteConnection, ids: &[Uuid]) -> sqlx::Result<Vec<Known>> {
    let mut known = Vec::new();
    for ids in ids.chunks(IDS) {
        let mut query = with_ids("SELECT id, tenant, state, run, fingerprint FROM jobs WHERE id IN ", ids);
        for row in query.build().persistent(false).fetch_all(&mut *connection).await? {
            known.push(Known {
                id: row.try_get("id")?,
                tenant: tenant(&row)?,
                state: state(&row)?,
                run: row.try_get("run")?,
                digest: digest(&row)?,
            });
        }
    }
    Ok(known)
}

/// The columns of a record, apart from body and output.
macro_rules! record_columns {
    () => {
        "id, created_at, finished_at, due_at, root, parent, run, conflicts, state, version, attempt, keyed, suspicion,
         kind, tenant, source, reason, error, trace_parent, trace_state, fingerprint"
    };
}

pub(super) fn envelope(row: &SqliteRow) -> sqlx::Result<Envelope> {
    let key = match (row.try_get("keyed")?, digest(row)?) {
        (false, _) => Key::None,
        (true, None) => Key::Keyed,
        (true, Some(digest)) => Key::Digest(digest),
    };
    let trace = row.try_get::<Option<String>, _>("trace_parent")?;
    Ok(Envelope {
        id: row.try_get("id")?,
        kind: Kind::new(row.try_get("kind")?).map_err(|error| sqlx::Error::Decode(error.into()))?,
        version: row.try_get("version")?,
        run: row.try_get("run")?,
        attempt: row.try_get("attempt")?,
        tenant: tenant(row)?,
        source: row.try_get::<Option<&str>, _>("source")?.map(Arc::from),
        root: row.try_get("root")?,
        key,
        suspicion: Suspicion::from_number(row.try_get("suspicion")?),
        created_at: row.try_get("created_at")?,
        trace: match trace {
            Some(parent) => Some(Box::new(Trace { parent, state: row.try_get("trace_state")? })),
            None => None,
        },
    })
}

fn tenant(row: &SqliteRow) -> sqlx::Result<Tenant> {
    Tenant::new(row.try_get("tenant")?).map_err(|error| sqlx::Error::Decode(error.into()))
}

pub(super) fn state(row: &SqliteRow) -> sqlx::Result<State> {
    let text: &str = row.try_get("state")?;
    State::parse(text).ok_or_else(|| sqlx::Error::Decode(format!("no state is called {text}").into()))
}

fn digest(row: &SqliteRow) -> sqlx::Result<Option<[u8; 32]>> {
    let bytes: Option<&[u8]> = row.try_get("fingerprint")?;
    Ok(bytes.and_then(|bytes| bytes.try_into().ok()))
}

fn record(row: &SqliteRow) -> sqlx::Result<JobRecord> {
    Ok(JobRecord {
        envelope: envelope(row)?,
        state: state(row)?,
        due_at: row.try_get("due_at")?,
        finished_at: row.try_get("finished_at")?,
        parent: row.try_get("parent")?,
        body: row.try_get("body")?,
        output: row.try_get("output")?,
        reason: row.try_get("reason")?,
        error: row.try_get("error")?,
        conflicts: row.try_get("conflicts")?,
        attempts: Vec::new(),
    })
}

async fn attempts(readers: &SqlitePool, id: Uuid) -> sqlx::Result<Vec<AttemptRecord>> {
    let rows = sqlx::query("SELECT run, attempt, code, error, failed_at FROM attempts WHERE id = ? ORDER BY run")
        .bind(id)
        .fetch_all(readers)
        .await?;
    rows.iter()
        .map(|row| {
            Ok(AttemptRecord {
                run: row.try_get("run")?,
                attempt: row.try_get("attempt")?,
                code: row.try_get("code")?,
                error: row.try_get("error")?,
                failed_at: row.try_get("failed_at")?,
            })
        })
        .collect()
}

/// Tells why a change found no job in the state that it needs.
async fn refused(connection: &mut SqliteConnection, id: Uuid) -> sqlx::Result<Transition> {
    let row = sqlx::query("SELECT state, reason FROM jobs WHERE id = ?").bind(id).fetch_optional(connection).await?;
    Ok(match row {
        None => Transition::Unknown,
        Some(row) => Transition::Refused { state: state(&row)?, reason: row.try_get("reason")? },
    })
}

impl Sqlite {
    /// Makes a job due at once by a change of its row, under another run, for which no tombstone holds.
    async fn make_due(&self, id: Uuid, change: &'static str) -> Result<Transition, StoreError> {
        let transition = written(
            self.database
                .write(move |connection| {
                    Box::pin(async move {
                        let done = sqlx::query(change).bind(clock::now()).bind(id).execute(&mut *connection).await?;
                        if done.rows_affected() == 0 {
                            return refused(connection, id).await;
                        }
                        super::cancel::bury(connection, &[id]).await?;
                        Ok(Transition::Done)
                    })
                })
                .await,
        )?;
        self.due.notify_one();
        Ok(transition)
    }
}

#[async_trait]
impl Jobs for Sqlite {
    async fn insert(&self, jobs: &[NewJob]) -> Result<Vec<Option<Known>>, StoreError> {
        let wakes = wakes(None, jobs);
        let jobs: Arc<[NewJob]> = jobs.into();
        let told = written(
            self.database
                .write(move |connection| {
                    let jobs = jobs.clone();
                    Box::pin(async move {
                        let new = insert_new(connection, &jobs.iter().collect::<Vec<_>>(), clock::now()).await?;
                        let turns = Turns::new(jobs.iter().map(|job| job.envelope.id), new);
                        turns.answer(&lookup(connection, &turns.known()).await?)
                    })
                })
                .await,
        )?;
        if wakes {
            self.due.notify_one();
        }
        Ok(told)
    }

    async fn lookup(&self, ids: &[Uuid]) -> Result<Vec<Known>, StoreError> {
        let known = async { lookup(&mut *self.database.readers().acquire().await?, ids).await };
        read(known.await)
    }

    async fn note_conflicts(&self, ids: &[Uuid]) -> Result<(), StoreError> {
        let ids: Arc<[Uuid]> = ids.into();
        written(
            self.database
                .write(move |connection| {
                    let ids = ids.clone();
                    Box::pin(async move {
                        for ids in ids.chunks(IDS) {
                            let mut query = with_ids("UPDATE jobs SET conflicts = conflicts + 1 WHERE id IN ", ids);
                            query.build().persistent(false).execute(&mut *connection).await?;
                        }
                        Ok(())
                    })
                })
                .await,
        )
    }

    async fn get(&self, tenant: Option<&Tenant>, id: Uuid) -> Result<Option<JobRecord>, StoreError> {
        let readers = self.database.readers();
        let found = async {
            let row = sqlx::query(concat!(
                "SELECT ",
                record_columns!(),
                ", body, output FROM jobs WHERE id = ? AND tenant = coalesce(?, tenant)"
            ))
            .bind(id)
            .bind(tenant.map(Tenant::as_str))
            .fetch_optional(readers)
            .await?;
            let Some(row) = row else { return Ok(None) };
            let mut record = record(&row)?;
            if record.envelope.run > 1 || record.envelope.attempt > 0 {
                record.attempts = attempts(readers, id).await?;
            }
            Ok(Some(record))
        };
        read(found.await)
    }

    async fn list(&self, filter: &Filter) -> Result<Vec<JobRecord>, StoreError> {
        let listed = async {
            let mut found = Vec::new();
            let (before_at, before_id) = filter.before.unzip();
            // State by state, because that is how the index is sorted.
            for state in filter.states() {
                let query = if state == State::Succeeded {
                    sqlx::query(concat!(
                        "SELECT ",
                        record_columns!(),
                        ", NULL AS body, NULL AS output
                         FROM jobs
                         WHERE state = ?1 AND finished_at > ?7
                           AND (?2 IS NULL OR tenant = ?2) AND (?3 IS NULL OR kind = ?3)
                           AND (?4 IS NULL OR (created_at, id) < (?4, ?5))
                         ORDER BY created_at DESC, id DESC
                         LIMIT ?6"
                    ))
                } else {
                    sqlx::query(concat!(
                        "SELECT ",
                        record_columns!(),
                        ", NULL AS body, NULL AS output
                         FROM jobs
                         WHERE state = ?1 AND state <> 'succeeded' AND ?7 IS NOT NULL
                           AND (?2 IS NULL OR tenant = ?2) AND (?3 IS NULL OR kind = ?3)
                           AND (?4 IS NULL OR (created_at, id) < (?4, ?5))
                         ORDER BY created_at DESC, id DESC
                         LIMIT ?6"
                    ))
                };
                let rows = query
                    .bind(state.as_str())
                    .bind(filter.tenant.as_ref().map(Tenant::as_str))
                    .bind(filter.kind.as_ref().map(Kind::as_str))
                    .bind(before_at)
                    .bind(before_id)
                    .bind(filter.limit)
                    .bind(clock::now() - micros(Duration::from_hours(1)))
                    .fetch_all(self.database.readers())
                    .await?;
                for row in &rows {
                    found.push(record(row)?);
                }
            }
            found.sort_by_key(|record| std::cmp::Reverse((record.envelope.created_at, record.envelope.id)));
            found.truncate(filter.limit as usize);
            Ok(found)
        };
        read(listed.await)
    }

    async fn ended(&self, after: Micros, kind: Option<&Kind>, limit: u32) -> Result<Vec<JobRecord>, StoreError> {
        let rows = sqlx::query(concat!(
            "SELECT ",
            record_columns!(),
            ", NULL AS body, NULL AS output FROM jobs
             WHERE finished_at > ? AND kind = coalesce(?, kind) ORDER BY finished_at, id LIMIT ?"
        ))
        .bind(after)
        .bind(kind.map(Kind::as_str))
        .bind(limit)
        .fetch_all(self.database.readers());
        let rows = read(rows.await)?;
        read(rows.iter().map(record).collect())
    }

    async fn count(&self, state: State, limit: u32) -> Result<u32, StoreError> {
        let counted =
            sqlx::query("SELECT count(*) FROM (SELECT 1 FROM jobs WHERE state = ? AND state <> 'succeeded' LIMIT ?)")
                .bind(state.as_str())
                .bind(limit)
                .fetch_one(self.database.readers())
                .await;
        read(counted.and_then(|row| row.try_get(0)))
    }

    async fn replay(&self, id: Uuid) -> Result<Transition, StoreError> {
        let change = "UPDATE jobs
             SET state = 'scheduled', run = run + 1, attempt = 0, due_at = ?, finished_at = NULL, claim = NULL,
                 claimed_until = NULL, parked_at = NULL
             WHERE id = ? AND state = 'dead' AND reason <> 'undecodable'";
        self.make_due(id, change).await
    }

    async fn requeue(&self, id: Uuid) -> Result<Transition, StoreError> {
        let change = "UPDATE jobs
             SET state = 'scheduled', run = run + 1, due_at = ?, claim = NULL, claimed_until = NULL, parked_at = NULL
             WHERE id = ? AND state IN ('scheduled', 'queued', 'running', 'retrying') AND body IS NOT NULL";
        self.make_due(id, change).await
    }

    async fn discard(&self, id: Uuid) -> Result<Transition, StoreError> {
        written(
            self.database
                .write(move |connection| {
                    Box::pin(async move {
                        let done = sqlx::query(
                            "UPDATE jobs SET state = 'discarded', finished_at = ? WHERE id = ? AND state = 'dead'",
                        )
                        .bind(clock::now())
                        .bind(id)
                        .execute(&mut *connection)
                        .await?;
                        if done.rows_affected() == 1 { Ok(Transition::Done) } else { refused(connection, id).await }
                    })
                })
                .await,
        )
    }
}
