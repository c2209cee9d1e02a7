//! Jobs that wait for something to change.

use sqlx::{PgConnection, Row as _};
use uuid::Uuid;

use super::{jobs, time::Timestamptz};
use crate::job::{Completion, Outcome};

/// Parks jobs under the fence, or gives up those that have been parked for too long. Answers whose rows were changed.
pub(super) async fn park(connection: &mut PgConnection, parked: &[&Completion]) -> sqlx::Result<Vec<Uuid>> {
    let mut won = Vec::with_capacity(parked.len());
    // Hardly ever more than a few.
    for Completion { envelope, body, outcome } in parked {
        let Outcome::Parked { reason, text, parking, suspicion } = outcome else { continue };
        let trace = envelope.trace.as_deref();
        let row = sqlx::query(
            "INSERT INTO jobs (id, created_at, root, run, version, attempt, keyed, kind, tenant, source, body,
                               fingerprint, trace_parent, trace_state, suspicion, reason, error, state, due_at, parked_at)
             VALUES ($1, $2, $3, $4 + 1, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, 'retrying',
                     now() + $18::bigint * interval '1 microsecond', now())
             ON CONFLICT (id) DO UPDATE
             SET (state, run, due_at, finished_at) = (
                     SELECT CASE WHEN over THEN 'dead' ELSE 'retrying' END::job_state,
                            CASE WHEN over THEN $4 ELSE $4 + 1 END,
                            CASE WHEN NOT over THEN now() + least(
                                $19::bigint * interval '1 microsecond',
                                greatest($18::bigint * interval '1 microsecond', now() - jobs.parked_at)) END,
                            CASE WHEN over THEN now() END
                     FROM (SELECT coalesce(now() - jobs.parked_at >= $20::bigint * interval '1 microsecond', false))
                          AS judged (over)),
                 parked_at = coalesce(jobs.parked_at, now()), body = excluded.body, suspicion = excluded.suspicion,
                 reason = excluded.reason, error = excluded.error, claim = NULL, claimed_until = NULL
             WHERE jobs.state IN ('scheduled', 'queued', 'running', 'retrying') AND jobs.tenant = excluded.tenant
               AND jobs.run <= $4
             RETURNING state::text",
        )
        .bind(envelope.id)
        .bind(Timestamptz(envelope.created_at))
        .bind(envelope.root)
        .bind(envelope.run.cast_signed())
        .bind(i32::from(envelope.version))
        .bind(envelope.attempt.cast_signed())
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
        .fetch_optional(&mut *connection)
        .await?;
        let Some(row) = row else { continue };
        won.push(envelope.id);
        if row.try_get::<&str, _>(0)? == "dead" {
            sqlx::query(
                "INSERT INTO attempts (id, run, attempt, code, error, failed_at) VALUES ($1, $2, $3, $4, $5, now())
                 ON CONFLICT (id, run) DO NOTHING",
            )
            .bind(envelope.id)
            .bind(envelope.run.cast_signed())
            .bind(envelope.attempt.cast_signed())
            .bind(reason.as_ref())
            .bind(text)
            .execute(&mut *connection)
            .await?;
        }
    }
    Ok(won)
}
