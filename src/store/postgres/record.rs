//! Group commit: one lane, its connection, and the statements that record a batch.

use std::{ops::Range, sync::Arc};

use async_trait::async_trait;
use sqlx::{
    Executor as _, PgConnection, Row as _,
    postgres::{PgArguments, PgRow},
    query::Query,
};
use uuid::Uuid;

use super::{
    cancel,
    connect::{PgUrl, bounded},
    jobs, park,
    time::Timestamptz,
};
use crate::{
    job::{Completion, Failure},
    store::{Record, SOON, StoreError},
};

/// One lane. Its connection is its own, so that a batch pays for no check-out, and is thrown away when in doubt.
pub(super) struct Lane {
    url: PgUrl,
    connection: Option<PgConnection>,
}

impl Lane {
    pub(super) fn new(url: &PgUrl) -> Self {
        Self { url: url.with_one_plan(), connection: None }
    }
}

#[async_trait]
impl Record for Lane {
    async fn record(&mut self, batch: &Arc<Vec<Completion>>, rows: Range<usize>) -> Result<usize, StoreError> {
        let batch = &batch[rows];
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.url.connect().await?,
        };
        let recorded = if batch.iter().all(Completion::is_plain_success) {
            bounded(record_successes(&mut connection, batch)).await
        } else {
            bounded(record_all(&mut connection, &batch.iter().collect::<Vec<_>>())).await
        };
        match recorded {
            Ok(won) => {
                self.connection = Some(connection);
                Ok(batch.len() - won)
            }
            Err(error @ (StoreError::Unavailable(_) | StoreError::NotReached(_))) => Err(error),
            Err(error) => {
                if bounded(connection.execute("ROLLBACK")).await.is_ok() {
                    self.connection = Some(connection);
                }
                Err(error)
            }
        }
    }
}

/// A column: a value for each row, or one that all of them have. Most columns are the same all through a batch, and to take
/// arrays of them apart would be a sixth of what a row costs the database.
struct Column<T> {
    each: Vec<T>,
    all: Option<T>,
}

impl<T: Copy + PartialEq> Column<T> {
    fn of(rows: impl Iterator<Item = T> + Clone) -> Self {
        let mut values = rows.clone();
        match values.next() {
            Some(first) if values.all(|value| value == first) => Self { each: Vec::new(), all: Some(first) },
            _ => Self { each: rows.collect(), all: None },
        }
    }
}

/// One that may be without a value in each row. In none at all if it is empty: `unnest` fills up the shorter of its arrays.
fn sparse<T>(rows: impl Iterator<Item = Option<T>> + Clone) -> Vec<Option<T>> {
    if rows.clone().all(|value| value.is_none()) { Vec::new() } else { rows.collect() }
}

/// The columns that every completion has.
macro_rules! names {
    () => {
        "id, created_at, root, run, version, attempt, keyed, kind, tenant, source, body, output"
    };
}

/// Their arrays, as [`bind`] binds them.
macro_rules! arrays {
    () => {
        "$1::uuid[], $2::timestamptz[], $3::uuid[], $4::int[], $5::int[], $6::smallint[], $7::bool[], $8::text[],
         $9::text[], $10::text[], $11::bytea[], $12::bytea[]"
    };
}

/// Their values in a row `c` of those arrays.
macro_rules! values {
    () => {
        "c.id, c.created_at, c.root, coalesce(c.run, $13), coalesce(c.version, $14), coalesce(c.attempt, $15),
         coalesce(c.keyed, $16), coalesce(c.kind, $17), coalesce(c.tenant, $18), c.source, c.body, c.output"
    };
}

type PgQuery<'a> = Query<'a, sqlx::Postgres, PgArguments>;

/// Binds the first 18 parameters: the arrays, and what stands for those that were left out.
fn bind<'a>(query: PgQuery<'a>, batch: &[&'a Completion]) -> PgQuery<'a> {
    let envelopes = batch.iter().map(|completion| &completion.envelope);
    let afters: Vec<_> = batch.iter().map(|completion| completion.after()).collect();
    let runs = Column::of(afters.iter().map(|after| after.run.cast_signed()));
    let versions = Column::of(envelopes.clone().map(|envelope| i32::from(envelope.version)));
    let attempts = Column::of(afters.iter().map(|after| after.attempt.cast_signed()));
    let keyed = Column::of(envelopes.clone().map(|envelope| envelope.key.is_keyed()));
    let kinds = Column::of(envelopes.clone().map(|envelope| envelope.kind.as_str()));
    let tenants = Column::of(envelopes.clone().map(|envelope| envelope.tenant.as_str()));
    query
        .bind(envelopes.clone().map(|envelope| envelope.id).collect::<Vec<_>>())
        .bind(envelopes.clone().map(|envelope| Timestamptz(envelope.created_at)).collect::<Vec<_>>())
        .bind(sparse(envelopes.clone().map(|envelope| envelope.root)))
        .bind(runs.each)
        .bind(versions.each)
        .bind(attempts.each)
        .bind(keyed.each)
        .bind(kinds.each)
        .bind(tenants.each)
        .bind(sparse(envelopes.map(|envelope| envelope.source.as_deref())))
        .bind(sparse(batch.iter().map(|completion| completion.body.as_deref())))
        .bind(sparse(afters.iter().map(|after| after.output)))
        .bind(runs.all)
        .bind(versions.all)
        .bind(attempts.all)
        .bind(keyed.all)
        .bind(kinds.all)
        .bind(tenants.all)
}

async fn insert_successes(connection: &mut PgConnection, batch: &[Completion]) -> sqlx::Result<usize> {
    // Whether there is any tombstone at all is asked once: mostly there is none.
    let statement = concat!(
        "INSERT INTO jobs (",
        names!(),
        ", state, finished_at) SELECT ",
        values!(),
        ", 'succeeded', now() FROM unnest(",
        arrays!(),
        ") AS c (",
        names!(),
        ")
         WHERE (NOT EXISTS (SELECT FROM tombstones)
                OR NOT EXISTS (SELECT FROM tombstones
                               WHERE tombstones.id = c.id AND tombstones.tenant IN (coalesce(c.tenant, $18), '*')))
         ON CONFLICT (id) DO UPDATE
         SET state = excluded.state, finished_at = excluded.finished_at, run = excluded.run,
             attempt = excluded.attempt, body = excluded.body, output = excluded.output, suspicion = 0,
             reason = NULL, error = NULL, due_at = NULL, claim = NULL, claimed_until = NULL, parked_at = NULL
         WHERE jobs.state IN ('scheduled', 'queued', 'running', 'retrying') AND jobs.run <= excluded.run
           AND jobs.tenant = excluded.tenant"
    );
    let batch: Vec<_> = batch.iter().collect();
    let done = bind(sqlx::query(statement), &batch).execute(connection).await?;
    Ok(usize::try_from(done.rows_affected()).unwrap_or(usize::MAX))
}

/// One statement is a transaction by itself, and nobody needs to know which of them won.
async fn record_successes(connection: &mut PgConnection, batch: &[Completion]) -> sqlx::Result<usize> {
    let won = insert_successes(connection, batch).await?;
    if won == batch.len() {
        return Ok(won);
    }
    // Some lost the fence, or met a tombstone, which the statement on the common path need not tell apart: those that it
    // has recorded lose the fence now, and the others are judged anew.
    Ok(won + record_all(connection, &batch.iter().collect::<Vec<_>>()).await?)
}

/// A batch with more in it than plain successes, in one transaction.
async fn record_all(connection: &mut PgConnection, batch: &[&Completion]) -> sqlx::Result<usize> {
    connection.execute("BEGIN").await?;
    let met = cancel::met(connection, batch.iter().copied()).await?;
    let called_off: Vec<_> = batch.iter().filter_map(|completion| completion.called_off(&met)).collect();
    let others = batch.iter().copied().filter(|it| met.binary_search(&it.envelope.id).is_err());
    let mut batch: Vec<_> = others.chain(&called_off).collect();
    batch.sort_unstable_by_key(|completion| completion.envelope.id);
    let (parked, plain): (Vec<_>, Vec<_>) = batch.iter().copied().partition(|it| it.after().parking.is_some());
    let mut won = upsert(connection, &plain).await?;
    won.extend(park::park(connection, &parked).await?);
    won.sort_unstable();
    let is_winner = |completion: &&Completion| won.binary_search(&completion.envelope.id).is_ok();
    let (winners, losers): (Vec<_>, Vec<_>) = batch.iter().copied().partition(is_winner);
    insert_attempts(connection, &winners).await?;
    let follow_ups: Vec<_> = winners.iter().flat_map(|completion| completion.after().follow_ups).collect();
    jobs::insert_new(connection, &follow_ups).await?;
    jobs::note_other_bodies(connection, &losers).await?;
    // One whose run has lost leaves its tombstone to the run that counts.
    let buried: Vec<_> = met.into_iter().filter(|id| won.binary_search(id).is_ok()).collect();
    cancel::bury(connection, &buried).await?;
    let due_soon = |completion: &&Completion| completion.after().delay.is_some_and(|delay| delay < SOON);
    if winners.iter().any(due_soon) {
        connection.execute(jobs::NOTIFY).await?;
    }
    connection.execute("COMMIT").await?;
    Ok(winners.len())
}

async fn upsert(connection: &mut PgConnection, batch: &[&Completion]) -> sqlx::Result<Vec<Uuid>> {
    if batch.is_empty() {
        return Ok(Vec::new());
    }
    let mut digests: Vec<Option<&[u8]>> = Vec::with_capacity(batch.len());
    let mut states = Vec::with_capacity(batch.len());
    let mut delays: Vec<Option<i64>> = Vec::with_capacity(batch.len());
    let mut reasons: Vec<Option<&str>> = Vec::with_capacity(batch.len());
    let mut errors: Vec<Option<&str>> = Vec::with_capacity(batch.len());
    let mut suspicions = Vec::with_capacity(batch.len());
    let mut traces: (Vec<Option<&str>>, Vec<Option<&str>>) = Default::default();
    for completion in batch {
        let (envelope, after) = (&completion.envelope, completion.after());
        let trace = envelope.trace.as_deref();
        digests.push(envelope.key.digest().map(<[u8; 32]>::as_slice));
        traces.0.push(trace.map(|trace| trace.parent.as_str()));
        traces.1.push(trace.and_then(|trace| trace.state.as_deref()));
        states.push(after.state.as_str());
        suspicions.push(after.suspicion.as_number());
        delays.push(after.delay.map(jobs::micros));
        reasons.push(after.reason);
        errors.push(after.failure.map(|failure| failure.text.as_str()));
    }
    let statement = concat!(
        "INSERT INTO jobs (",
        names!(),
        ", fingerprint, reason, error, trace_parent, trace_state, suspicion, state, due_at, finished_at) SELECT ",
        values!(),
        ", c.fingerprint, c.reason, c.error, c.trace_parent, c.trace_state, c.suspicion, c.state::job_state,
           now() + c.delay * interval '1 microsecond', CASE WHEN c.delay IS NULL THEN now() END
         FROM unnest(",
        arrays!(),
        ", $19::bytea[], $20::text[], $21::text[], $22::text[], $23::text[], $24::text[], $25::bigint[], $26::smallint[])
              AS c (",
        names!(),
        ", fingerprint, reason, error, trace_parent, trace_state, state, delay, suspicion)
         ON CONFLICT (id) DO UPDATE
         SET state = excluded.state, finished_at = excluded.finished_at, run = excluded.run,
             attempt = excluded.attempt, body = excluded.body, output = excluded.output,
             suspicion = excluded.suspicion, reason = excluded.reason, error = excluded.error, due_at = excluded.due_at,
             claim = NULL, claimed_until = NULL, parked_at = NULL
         WHERE jobs.state IN ('scheduled', 'queued', 'running', 'retrying') AND jobs.tenant = excluded.tenant
           AND jobs.run <= excluded.run - CASE WHEN excluded.due_at IS NULL THEN 0 ELSE 1 END
         RETURNING id"
    );
    let rows = bind(sqlx::query(statement), batch)
        .bind(digests)
        .bind(reasons)
        .bind(errors)
        .bind(traces.0)
        .bind(traces.1)
        .bind(states)
        .bind(delays)
        .bind(suspicions)
        .fetch_all(connection)
        .await?;
    let mut won: Vec<Uuid> = rows.iter().map(|row: &PgRow| row.get(0)).collect();
    won.sort_unstable();
    Ok(won)
}

async fn insert_attempts(connection: &mut PgConnection, winners: &[&Completion]) -> sqlx::Result<()> {
    let failed: Vec<_> =
        winners.iter().filter_map(|completion| Some((completion, completion.after().failure?))).collect();
    if failed.is_empty() {
        return Ok(());
    }
    let column = |text: fn(&Failure) -> &str| failed.iter().map(|(_, failure)| text(failure)).collect::<Vec<_>>();
    sqlx::query(
        "INSERT INTO attempts (id, run, attempt, code, error, failed_at)
         SELECT *, now() FROM unnest($1::uuid[], $2::int[], $3::smallint[], $4::text[], $5::text[])
         ON CONFLICT (id, run) DO NOTHING",
    )
    .bind(failed.iter().map(|(completion, _)| completion.envelope.id).collect::<Vec<_>>())
    .bind(failed.iter().map(|(completion, _)| completion.envelope.run.cast_signed()).collect::<Vec<_>>())
    .bind(failed.iter().map(|(completion, _)| completion.after().attempt.cast_signed()).collect::<Vec<_>>())
    .bind(column(|failure| &failure.code))
    .bind(column(|failure| &failure.text))
    .execute(connection)
    .await?;
    Ok(())
}
