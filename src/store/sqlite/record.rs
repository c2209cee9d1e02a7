//! Group commit: the statements that record a batch. The commit itself is shared with all other writes of the process.

use std::{
    ops::Range,
    sync::{Arc, LazyLock},
};

use async_trait::async_trait;
use sqlx::{Row as _, SqliteConnection, sqlite::SqliteRow};
use uuid::Uuid;

use super::{cancel, connect::written, jobs, park};
use crate::{
    clock,
    job::{Completion, Micros},
    sqlite::{Database, MultiRow},
    store::{Record, StoreError},
};

/// One lane.
pub(super) struct Lane {
    database: Arc<Database>,
    due: Arc<tokio::sync::Notify>,
}

impl Lane {
    pub(super) fn new(database: Arc<Database>, due: Arc<tokio::sync::Notify>) -> Self {
        Self { database, due }
    }
}

#[async_trait]
impl Record for Lane {
    async fn record(&mut self, batch: &Arc<Vec<Completion>>, rows: Range<usize>) -> Result<usize, StoreError> {
        let work = (batch.clone(), rows.clone());
        let won = written(
            self.database
                .write(move |connection| {
                    let (batch, rows) = work.clone();
                    Box::pin(async move {
                        let batch = &batch[rows];
                        // Hardly ever any, and then nobody need ask for each.
                        let met = if cancel::any(connection).await? {
                            cancel::met(connection, batch).await?
                        } else {
                            Vec::new()
                        };
                        if met.is_empty() && batch.iter().all(Completion::is_plain_success) {
                            insert_successes(connection, batch).await
                        } else {
                            record_all(connection, batch, met).await
                        }
                    })
                })
                .await,
        )?;
        let batch = &batch[rows];
        if batch.iter().map(Completion::after).any(|after| jobs::wakes(after.delay, after.follow_ups)) {
            self.due.notify_one();
        }
        Ok(batch.len() - won)
    }
}

static INSERT_SUCCESSES: LazyLock<MultiRow> = LazyLock::new(|| {
    MultiRow::new(
        "INSERT INTO jobs (id, created_at, root, run, version, attempt, keyed, kind, tenant, source, body, output, state,
                           finished_at)
         VALUES",
        "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'succeeded', ?)",
        "ON CONFLICT (id) DO UPDATE
         SET state = excluded.state, finished_at = excluded.finished_at, run = excluded.run,
             attempt = excluded.attempt, body = excluded.body, output = excluded.output, suspicion = 0,
             reason = NULL, error = NULL, due_at = NULL, claim = NULL, claimed_until = NULL, parked_at = NULL
         WHERE jobs.state IN ('scheduled', 'queued', 'running', 'retrying') AND jobs.run <= excluded.run
           AND jobs.tenant = excluded.tenant",
    )
});

async fn insert_successes(connection: &mut SqliteConnection, batch: &[Completion]) -> sqlx::Result<usize> {
    let now = clock::now();
    let mut won = 0;
    for (mut query, part) in INSERT_SUCCESSES.statements(batch) {
        for completion in part {
            let (envelope, after) = (&completion.envelope, completion.after());
            query = query
                .bind(envelope.id)
                .bind(envelope.created_at)
                .bind(envelope.root)
                .bind(after.run)
                .bind(envelope.version)
                .bind(after.attempt)
                .bind(envelope.key.is_keyed())
                .bind(envelope.kind.shared())
                .bind(envelope.tenant.as_str())
                .bind(envelope.source.as_deref())
                .bind(completion.body.as_deref())
                .bind(after.output)
                .bind(now);
        }
        won += query.execute(&mut *connection).await?.rows_affected();
    }
    Ok(usize::try_from(won).unwrap_or(usize::MAX))
}

/// A batch with more in it than plain successes.
async fn record_all(connection: &mut SqliteConnection, batch: &[Completion], met: Vec<Uuid>) -> sqlx::Result<usize> {
    let now = clock::now();
    let called_off: Vec<_> = batch.iter().filter_map(|completion| completion.called_off(&met)).collect();
    let others = batch.iter().filter(|it| met.binary_search(&it.envelope.id).is_err());
    let batch: Vec<_> = others.chain(&called_off).collect();
    let (parked, plain): (Vec<_>, Vec<_>) = batch.iter().copied().partition(|it| it.after().parking.is_some());
    let mut won = upsert(connection, &plain, now).await?;
    won.extend(park::park(connection, &parked, now).await?);
    won.sort_unstable();
    let is_winner = |completion: &&Completion| won.binary_search(&completion.envelope.id).is_ok();
    let (winners, losers): (Vec<_>, Vec<_>) = batch.iter().copied().partition(is_winner);
    insert_attempts(connection, &winners, now).await?;
    let follow_ups: Vec<_> = winners.iter().flat_map(|completion| completion.after().follow_ups).collect();
    jobs::insert_new(connection, &follow_ups, now).await?;
    jobs::note_other_bodies(connection, &losers).await?;
    // One whose run has lost leaves its tombstone to the run that counts.
    let buried: Vec<_> = met.into_iter().filter(|id| won.binary_search(id).is_ok()).collect();
    cancel::bury(connection, &buried).await?;
    Ok(winners.len())
}

static UPSERT: LazyLock<MultiRow> = LazyLock::new(|| {
    MultiRow::new(
        "INSERT INTO jobs (id, created_at, root, run, version, attempt, keyed, kind, tenant, source, body, output,
                           fingerprint, reason, error, trace_parent, trace_state, suspicion, state, due_at, finished_at)
         VALUES",
        "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        "ON CONFLICT (id) DO UPDATE
         SET state = excluded.state, finished_at = excluded.finished_at, run = excluded.run,
             attempt = excluded.attempt, body = excluded.body, output = excluded.output,
             suspicion = excluded.suspicion, reason = excluded.reason, error = excluded.error, due_at = excluded.due_at,
             claim = NULL, claimed_until = NULL, parked_at = NULL
         WHERE jobs.state IN ('scheduled', 'queued', 'running', 'retrying') AND jobs.tenant = excluded.tenant
           AND jobs.run <= excluded.run - (excluded.due_at IS NOT NULL)
         RETURNING id",
    )
});

async fn upsert(connection: &mut SqliteConnection, batch: &[&Completion], now: Micros) -> sqlx::Result<Vec<Uuid>> {
    let mut won = Vec::with_capacity(batch.len());
    for (mut query, part) in UPSERT.statements(batch) {
        for completion in part {
            let (envelope, after) = (&completion.envelope, completion.after());
            let trace = envelope.trace.as_deref();
            query = query
                .bind(envelope.id)
                .bind(envelope.created_at)
                .bind(envelope.root)
                .bind(after.run)
                .bind(envelope.version)
                .bind(after.attempt)
                .bind(envelope.key.is_keyed())
                .bind(envelope.kind.shared())
                .bind(envelope.tenant.as_str())
                .bind(envelope.source.as_deref())
                .bind(completion.body.as_deref())
                .bind(after.output)
                .bind(envelope.key.digest().map(<[u8; 32]>::as_slice))
                .bind(after.reason)
                .bind(after.failure.map(|failure| failure.text.as_str()))
                .bind(trace.map(|trace| trace.parent.as_str()))
                .bind(trace.and_then(|trace| trace.state.as_deref()))
                .bind(after.suspicion.as_number())
                .bind(after.state.as_str())
                .bind(after.delay.map(|delay| jobs::later(now, delay)))
                .bind(after.delay.is_none().then_some(now));
        }
        for row in query.fetch_all(&mut *connection).await? {
            let row: SqliteRow = row;
            won.push(row.try_get(0)?);
        }
    }
    Ok(won)
}

async fn insert_attempts(connection: &mut SqliteConnection, winners: &[&Completion], now: Micros) -> sqlx::Result<()> {
    for completion in winners {
        let after = completion.after();
        let Some(failure) = after.failure else { continue };
        sqlx::query(
            "INSERT INTO attempts (id, run, attempt, code, error, failed_at) VALUES (?, ?, ?, ?, ?, ?)
             ON CONFLICT (id, run) DO NOTHING",
        )
        .bind(completion.envelope.id)
        .bind(completion.envelope.run)
        .bind(after.attempt)
        .bind(failure.code.as_ref())
        .bind(failure.text.as_str())
        .bind(now)
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}
