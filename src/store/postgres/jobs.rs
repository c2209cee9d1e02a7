//! Single jobs: put in, looked up, shown, listed, replayed, discarded.

use std::{sync::Arc, time::Duration};

use sqlx::{Connection as _, PgConnection, Row as _, postgres::PgRow};
use uuid::Uuid;

use super::{Postgres, connect::detached, time::Timestamptz};
use crate::{
    job::{Completion, Due, Envelope, Key, Kind, Micros, NewJob, State, Suspicion, Tenant, Trace},
    store::{AttemptRecord, Filter, JobRecord, Jobs, Known, SOON, StoreError, Transition, turns::Turns},
};

/// Wakes the dispatchers. Sent within the transaction that makes something due soon.
pub(super) const NOTIFY: &str = "NOTIFY warren_due";

pub(super) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX / 2)
}

fn is_soon(job: &NewJob) -> bool {
    match job.due {
        Due::In(delay) => delay < SOON,
        // Whose instant that is, only the database's clock can tell.
        Due::At(_) => true,
    }
}

/// Inserts jobs that begin their life here; those whose id has a row are left alone. Answers the ids that were new.
pub(super) async fn insert_new(connection: &mut PgConnection, jobs: &[&NewJob]) -> sqlx::Result<Vec<Uuid>> {
    if jobs.is_empty() {
        return Ok(Vec::new());
    }
    let column = |column: fn(&NewJob) -> Option<&str>| jobs.iter().map(|job| column(job)).collect::<Vec<_>>();
    let rows = sqlx::query(
        "INSERT INTO jobs (id, created_at, root, parent, run, version, attempt, keyed, kind, tenant, source,
                           fingerprint, body, trace_parent, trace_state, state, due_at)
         SELECT c.id, c.created_at, c.root, c.parent, 1, c.version, 0, c.keyed, c.kind, c.tenant, c.source,
                c.fingerprint, c.body, c.trace_parent, c.trace_state, 'scheduled',
                coalesce(c.due_at, now() + c.delay * interval '1 microsecond')
         FROM unnest($1::uuid[], $2::timestamptz[], $3::uuid[], $4::uuid[], $5::int[], $6::bool[], $7::text[],
                     $8::text[], $9::text[], $10::bytea[], $11::bytea[], $12::text[], $13::text[], $14::timestamptz[],
                     $15::bigint[])
              AS c (id, created_at, root, parent, version, keyed, kind, tenant, source, fingerprint, body,
                    trace_parent, trace_state, due_at, delay)
         ON CONFLICT (id) DO NOTHING
         RETURNING id",
    )
    .bind(jobs.iter().map(|job| job.envelope.id).collect::<Vec<_>>())
    .bind(jobs.iter().map(|job| Timestamptz(job.envelope.created_at)).collect::<Vec<_>>())
    .bind(jobs.iter().map(|job| job.envelope.root).collect::<Vec<_>>())
    .bind(jobs.iter().map(|job| job.parent).collect::<Vec<_>>())
    .bind(jobs.iter().map(|job| i32::from(job.envelope.version)).collect::<Vec<_>>())
    .bind(jobs.iter().map(|job| job.envelope.key.is_keyed()).collect::<Vec<_>>())
    .bind(column(|job| Some(job.envelope.kind.as_str())))
    .bind(column(|job| Some(job.envelope.tenant.as_str())))
    .bind(column(|job| job.envelope.source.as_deref()))
    .bind(jobs.iter().map(|job| job.envelope.key.digest().map(<[u8; 32]>::as_slice)).collect::<Vec<_>>())
    .bind(jobs.iter().map(|job| job.body.as_slice()).collect::<Vec<_>>())
    .bind(column(|job| job.envelope.trace.as_ref().map(|trace| trace.parent.as_str())))
    .bind(column(|job| job.envelope.trace.as_ref().and_then(|trace| trace.state.as_deref())))
    .bind(
        jobs.iter().map(|job| if let Due::At(at) = job.due { Some(Timestamptz(at)) } else { None }).collect::<Vec<_>>(),
    )
    .bind(
        jobs.iter()
            .map(|job| if let Due::In(delay) = job.due { Some(micros(delay)) } else { None })
            .collect::<Vec<_>>(),
    )
    .fetch_all(&mut *connection)
    .await?;
    if jobs.iter().any(|job| is_soon(job)) {
        sqlx::query(NOTIFY).execute(connection).await?;
    }
    rows.iter().map(|row: &PgRow| row.try_get(0)).collect()
}

/// Notes on the rows of completions that lost the fence that they had promised another body.
pub(super) async fn note_other_bodies(connection: &mut PgConnection, losers: &[&Completion]) -> sqlx::Result<()> {
    let (ids, digests): (Vec<_>, Vec<_>) =
        losers.iter().filter_map(|loser| Some((loser.envelope.id, loser.envelope.key.digest()?.as_slice()))).unzip();
    if ids.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "UPDATE jobs SET conflicts = conflicts + 1
         FROM unnest($1::uuid[], $2::bytea[]) AS c (id, fingerprint)
         WHERE jobs.id = c.id AND jobs.fingerprint <> c.fingerprint",
    )
    .bind(ids)
    .bind(digests)
    .execute(connection)
    .await?;
    Ok(())
}

async fn lookup(connection: &mut PgConnection, ids: &[Uuid]) -> sqlx::Result<Vec<Known>> {
    let rows = sqlx::query("SELECT id, tenant, state::text, run, fingerprint FROM jobs WHERE id = ANY($1)")
        .bind(ids)
        .fetch_all(connection)
        .await?;
    rows.iter()
        .map(|row| {
            Ok(Known {
                id: row.try_get("id")?,
                tenant: tenant(row)?,
                state: state(row)?,
                run: row.try_get::<i32, _>("run")?.cast_unsigned(),
                digest: digest(row)?,
            })
        })
        .collect()
}

/// The columns of a record, apart from body and output.
macro_rules! record_columns {
    () => {
        "id, created_at, finished_at, due_at, root, parent, run, conflicts, state::text, version, attempt, keyed,
         suspicion, kind, tenant, source, reason, error, trace_parent, trace_state, fingerprint"
    };
}

pub(super) fn envelope(row: &PgRow) -> sqlx::Result<Envelope> {
    let key = match (row.try_get("keyed")?, digest(row)?) {
        (false, _) => Key::None,
        (true, None) => Key::Keyed,
        (true, Some(digest)) => Key::Digest(digest),
    };
    let trace = row.try_get::<Option<String>, _>("trace_parent")?;
    Ok(Envelope {
        id: row.try_get("id")?,
        kind: Kind::new(row.try_get("kind")?).map_err(|error| sqlx::Error::Decode(error.into()))?,
        version: u16::try_from(row.try_get::<i32, _>("version")?).unwrap_or(u16::MAX),
        run: row.try_get::<i32, _>("run")?.cast_unsigned(),
        attempt: row.try_get::<i16, _>("attempt")?.cast_unsigned(),
        tenant: tenant(row)?,
        source: row.try_get::<Option<&str>, _>("source")?.map(Arc::from),
        root: row.try_get("root")?,
        key,
        suspicion: Suspicion::from_number(row.try_get::<i16, _>("suspicion")?.into()),
        created_at: row.try_get::<Timestamptz, _>("created_at")?.0,
        trace: match trace {
            Some(parent) => Some(Box::new(Trace { parent, state: row.try_get("trace_state")? })),
            None => None,
        },
    })
}

fn tenant(row: &PgRow) -> sqlx::Result<Tenant> {
    Tenant::new(row.try_get("tenant")?).map_err(|error| sqlx::Error::Decode(error.into()))
}

pub(super) fn state(row: &PgRow) -> sqlx::Result<State> {
    let text: &str = row.try_get("state")?;
    State::parse(text).ok_or_else(|| sqlx::Error::Decode(format!("no state is called {text}").into()))
}

fn digest(row: &PgRow) -> sqlx::Result<Option<[u8; 32]>> {
    let bytes: Option<&[u8]> = row.try_get("fingerprint")?;
    Ok(bytes.and_then(|bytes| bytes.try_into().ok()))
}

fn record(row: &PgRow) -> sqlx::Result<JobRecord> {
    let instant = |column| row.try_get::<Option<Timestamptz>, _>(column).map(|at| at.map(|at| at.0));
    Ok(JobRecord {
        envelope: envelope(row)?,
        state: state(row)?,
        due_at: instant("due_at")?,
        finished_at: instant("finished_at")?,
        parent: row.try_get("parent")?,
        body: row.try_get("body")?,
        output: row.try_get("output")?,
        reason: row.try_get("reason")?,
        error: row.try_get("error")?,
        conflicts: row.try_get::<i32, _>("conflicts")?.cast_unsigned(),
        attempts: Vec::new(),
    })
}

async fn attempts(connection: &mut PgConnection, id: Uuid) -> sqlx::Result<Vec<AttemptRecord>> {
    let rows = sqlx::query("SELECT run, attempt, code, error, failed_at FROM attempts WHERE id = $1 ORDER BY run")
        .bind(id)
        .fetch_all(connection)
        .await?;
    rows.iter()
        .map(|row| {
            Ok(AttemptRecord {
                run: row.try_get::<i32, _>("run")?.cast_unsigned(),
                attempt: row.try_get::<i16, _>("attempt")?.cast_unsigned(),
                code: row.try_get("code")?,
                error: row.try_get("error")?,
                failed_at: row.try_get::<Timestamptz, _>("failed_at")?.0,
            })
        })
        .collect()
}

/// Tells why a change found no job in the state that it needs.
async fn refused(connection: &mut PgConnection, id: Uuid) -> sqlx::Result<Transition> {
    let row =
        sqlx::query("SELECT state::text, reason FROM jobs WHERE id = $1").bind(id).fetch_optional(connection).await?;
    Ok(match row {
        None => Transition::Unknown,
        Some(row) => Transition::Refused { state: state(&row)?, reason: row.try_get("reason")? },
    })
}

impl Postgres {
    /// Makes a job due at once by a change of its row, under another run, for which no tombstone holds.
    async fn make_due(&self, id: Uuid, change: &'static str) -> Result<Transition, StoreError> {
        let pool = self.pool.clone();
        detached(async move {
            let mut transaction = pool.begin().await?;
            let done = sqlx::query(change).bind(id).execute(&mut *transaction).await?;
            let transition = if done.rows_affected() == 0 {
                refused(&mut transaction, id).await?
            } else {
                super::cancel::bury(&mut transaction, &[id]).await?;
                sqlx::query(NOTIFY).execute(&mut *transaction).await?;
                Transition::Done
            };
            transaction.commit().await?;
            Ok(transition)
        })
        .await
    }
}

#[async_trait::async_trait]
impl Jobs for Postgres {
    async fn insert(&self, jobs: &[NewJob]) -> Result<Vec<Option<Known>>, StoreError> {
        let (pool, jobs) = (self.pool.clone(), jobs.to_vec());
        // By itself, because whoever asks must know whether anything can have been done.
        let connection = detached(async move { pool.acquire().await }).await.map_err(StoreError::not_reached)?;
        detached(async move {
            let mut connection = connection;
            let mut transaction = connection.begin().await?;
            // By their ids, so that two that put the same jobs in do not wait for each other in a circle.
            let mut sorted: Vec<_> = jobs.iter().collect();
            sorted.sort_by_key(|job| job.envelope.id);
            let new = insert_new(&mut transaction, &sorted).await?;
            let turns = Turns::new(jobs.iter().map(|job| job.envelope.id), new);
            let known = turns.known();
            let rows = if known.is_empty() { Vec::new() } else { lookup(&mut transaction, &known).await? };
            let told = turns.answer(&rows)?;
            transaction.commit().await?;
            Ok(told)
        })
        .await
    }

    async fn lookup(&self, ids: &[Uuid]) -> Result<Vec<Known>, StoreError> {
        let (pool, ids) = (self.pool.clone(), ids.to_vec());
        detached(async move { lookup(&mut *pool.acquire().await?, &ids).await }).await
    }

    async fn note_conflicts(&self, ids: &[Uuid]) -> Result<(), StoreError> {
        let (pool, ids) = (self.pool.clone(), ids.to_vec());
        detached(async move {
            sqlx::query("UPDATE jobs SET conflicts = conflicts + 1 WHERE id = ANY($1)")
                .bind(ids)
                .execute(&pool)
                .await?;
            Ok(())
        })
        .await
    }

    async fn get(&self, tenant: Option<&Tenant>, id: Uuid) -> Result<Option<JobRecord>, StoreError> {
        let (pool, tenant) = (self.pool.clone(), tenant.map(Tenant::to_string));
        detached(async move {
            let mut connection = pool.acquire().await?;
            let row = sqlx::query(concat!(
                "SELECT ",
                record_columns!(),
                ", body, output FROM jobs WHERE id = $1 AND ($2::text IS NULL OR tenant = $2)"
            ))
            .bind(id)
            .bind(tenant)
            .fetch_optional(&mut *connection)
            .await?;
            let Some(row) = row else { return Ok(None) };
            let mut record = record(&row)?;
            if record.envelope.run > 1 || record.envelope.attempt > 0 {
                record.attempts = attempts(&mut connection, id).await?;
            }
            Ok(Some(record))
        })
        .await
    }

    async fn list(&self, filter: &Filter) -> Result<Vec<JobRecord>, StoreError> {
        let (pool, filter) = (self.pool.clone(), filter.clone());
        detached(async move {
            let (before_at, before_id) = filter.before.unzip();
            let query = if filter.state == Some(State::Succeeded) {
                sqlx::query(concat!(
                    "SELECT ",
                    record_columns!(),
                    ", NULL::bytea AS body, NULL::bytea AS output
                     FROM jobs
                     WHERE state = ANY($1::job_state[]) AND finished_at > now() - interval '1 hour'
                       AND ($2::text IS NULL OR tenant = $2) AND ($3::text IS NULL OR kind = $3)
                       AND ($4::timestamptz IS NULL OR (created_at, id) < ($4, $5))
                     ORDER BY created_at DESC, id DESC
                     LIMIT $6"
                ))
            } else {
                // State by state, because that is how the index is sorted.
                sqlx::query(concat!(
                    "SELECT found.*
                     FROM unnest($1::job_state[]) AS wanted (state)
                     CROSS JOIN LATERAL (
                         SELECT ",
                    record_columns!(),
                    ", NULL::bytea AS body, NULL::bytea AS output
                         FROM jobs
                         WHERE jobs.state = wanted.state AND jobs.state <> 'succeeded'
                           AND ($2::text IS NULL OR tenant = $2) AND ($3::text IS NULL OR kind = $3)
                           AND ($4::timestamptz IS NULL OR (created_at, id) < ($4, $5))
                         ORDER BY created_at DESC, id DESC
                         LIMIT $6
                     ) AS found
                     ORDER BY created_at DESC, id DESC
                     LIMIT $6"
                ))
            };
            let rows = query
                .bind(filter.states().iter().map(|state| state.as_str()).collect::<Vec<_>>())
                .bind(filter.tenant.as_ref().map(Tenant::as_str))
                .bind(filter.kind.as_ref().map(Kind::as_str))
                .bind(before_at.map(Timestamptz))
                .bind(before_id)
                .bind(i64::from(filter.limit))
                .fetch_all(&pool)
                .await?;
            rows.iter().map(record).collect()
        })
        .await
    }

    async fn ended(&self, after: Micros, kind: Option<&Kind>, limit: u32) -> Result<Vec<JobRecord>, StoreError> {
        let (pool, kind) = (self.pool.clone(), kind.map(Kind::to_string));
        detached(async move {
            let rows = sqlx::query(concat!(
                "SELECT ",
                record_columns!(),
                ", NULL::bytea AS body, NULL::bytea AS output FROM jobs
                 WHERE finished_at > $1 AND ($2::text IS NULL OR kind = $2) ORDER BY finished_at, id LIMIT $3"
            ))
            .bind(Timestamptz(after))
            .bind(kind)
            .bind(i64::from(limit))
            .fetch_all(&pool)
            .await?;
            rows.iter().map(record).collect()
        })
        .await
    }

    async fn count(&self, state: State, limit: u32) -> Result<u32, StoreError> {
        let pool = self.pool.clone();
        detached(async move {
            let row = sqlx::query(
                "SELECT count(*) FROM (
                     SELECT 1 FROM jobs WHERE state = $1::job_state AND state <> 'succeeded' LIMIT $2) AS counted",
            )
            .bind(state.as_str())
            .bind(i64::from(limit))
            .fetch_one(&pool)
            .await?;
            Ok(u32::try_from(row.try_get::<i64, _>(0)?).unwrap_or(limit))
        })
        .await
    }

    async fn replay(&self, id: Uuid) -> Result<Transition, StoreError> {
        let change = "UPDATE jobs
             SET state = 'scheduled', run = run + 1, attempt = 0, due_at = now(), finished_at = NULL, claim = NULL,
                 claimed_until = NULL, parked_at = NULL
             WHERE id = $1 AND state = 'dead' AND reason <> 'undecodable'";
        self.make_due(id, change).await
    }

    async fn requeue(&self, id: Uuid) -> Result<Transition, StoreError> {
        let change = "UPDATE jobs
             SET state = 'scheduled', run = run + 1, due_at = now(), claim = NULL, claimed_until = NULL, parked_at = NULL
             WHERE id = $1 AND state IN ('scheduled', 'queued', 'running', 'retrying') AND body IS NOT NULL";
        self.make_due(id, change).await
    }

    async fn discard(&self, id: Uuid) -> Result<Transition, StoreError> {
        let pool = self.pool.clone();
        detached(async move {
            let mut connection = pool.acquire().await?;
            let done = sqlx::query(
                "UPDATE jobs SET state = 'discarded', finished_at = now() WHERE id = $1 AND state = 'dead'",
            )
            .bind(id)
            .execute(&mut *connection)
            .await?;
            if done.rows_affected() == 1 { Ok(Transition::Done) } else { refused(&mut connection, id).await }
        })
        .await
    }
}
