//! Jobs that wait for something to change.

use sqlx::{Row as _, SqliteConnection};
use uuid::Uuid;

use super::jobs;
use crate::job::{Completion, Micros, Outcome};

/// Parks jobs under the fence, or gives up those that have been parked for too long. Answers whose rows were changed.
pub(super) async fn park(
    connection: &mut SqliteConnection,
    parked: &[&Completion],
    now: Micros,
) -> sqlx::Result<Vec<Uuid>> {
    let mut won = Vec::with_capacity(parked.len());
    // Hardly ever more than a few.
    for Completion { envelope, body, outcome } in parked {
        let Outcome::Parked { reason, text, parking, suspicion } = outcome else { continue };
        let trace = envelope.trace.as_deref();
        let row = sqlx::query(
            "INSERT INTO jobs (id, created_at, root, run, version, attempt, keyed, kind, tenant, source, body,
                               fingerprint, trace_parent, trace_state, suspicion, reason, error, state, due_at, parked_at)
             VALUES (?1, ?2, ?3, ?4 + 1, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, 'retrying',
                     ?21 + ?18, ?21)
             ON CONFLICT (id) DO UPDATE
             SET state = CASE WHEN ?21 - jobs.parked_at >= ?20 THEN 'dead' ELSE 'retrying' END,
                 run = CASE WHEN ?21 - jobs.parked_at >= ?20 THEN ?4 ELSE ?4 + 1 END,
                 due_at = CASE WHEN ?21 - jobs.parked_at >= ?20 THEN NULL
                               ELSE ?21 + min(?19, max(?18, ?21 - coalesce(jobs.parked_at, ?21))) END,
                 finished_at = CASE WHEN ?21 - jobs.parked_at >= ?20 THEN ?21 END,
                 parked_at = coalesce(jobs.parked_at, ?21), body = excluded.body, suspicion = excluded.suspicion,
                 reason = excluded.reason, error = excluded.error, claim = NULL, claimed_until = NULL
             WHERE jobs.state IN ('scheduled', 'queued', 'running', 'retrying') AND jobs.tenant = excluded.tenant
               AND jobs.run <= ?4
             RETURNING state",
        )
        .bind(envelope.id)
        .bind(envelope.created_at)
        .bind(envelope.root)
        .bind(envelope.run)
        .bind(envelope.version)
        .bind(envelope.attempt)
        .bind(envelope.key.is_keyed())
        .bind(envelope.kind.as_str())
        .bind(envelope.tenant.as_str())
        .bind(envelope.source.as_deref())
        .bind(body.as_deref())
        .bind(envelope.key.digest().map(<[u8; 32]>::as_slice))
        .bind(trace.map(|trace| trace.parent.as_str()))
        .bind(trace.and_then(|trace| trace.state.as_deref()))
        .bind(suspicion.as_number())
        .bind(reason.as_ref())
        .bind(text)
        .bind(jobs::micros(parking.first))
        .bind(jobs::micros(parking.longest))
        .bind(jobs::micros(parking.limit))
        .bind(now)
        .fetch_optional(&mut *connection)
        .await?;
        let Some(row) = row else { continue };
        won.push(envelope.id);
        if row.try_get::<&str, _>(0)? == "dead" {
            sqlx::query(
                "INSERT INTO attempts (id, run, attempt, code, error, failed_at) VALUES (?, ?, ?, ?, ?, ?)
                 ON CONFLICT (id, run) DO NOTHING",
            )
            .bind(envelope.id)
            .bind(envelope.run)
            .bind(envelope.attempt)
            .bind(reason.as_ref())
            .bind(text)
            .bind(now)
            .execute(&mut *connection)
            .await?;
        }
    }
    Ok(won)
}
