//! The dispatcher's side of the table: claim, publish elsewhere, settle.

use std::{collections::HashMap, time::Duration};

use async_trait::async_trait;
use sqlx::{Row as _, postgres::PgRow};
use tokio::time::timeout;
use uuid::Uuid;

use super::{Postgres, connect::detached, front::Taken, jobs, time::Timestamptz};
use crate::{
    job::{Kind, Micros},
    store::{Claim, Claimed, Due, StoreError},
};

/// The kinds that have anything due at all, by hopping from one to the next in the index `jobs_due`.
macro_rules! due_kinds {
    () => {
        "WITH RECURSIVE kinds (kind) AS (
             (SELECT kind FROM jobs WHERE due_at IS NOT NULL ORDER BY kind LIMIT 1)
             UNION ALL
             SELECT (SELECT jobs.kind FROM jobs
                     WHERE due_at IS NOT NULL AND jobs.kind > kinds.kind ORDER BY jobs.kind LIMIT 1)
             FROM kinds WHERE kinds.kind IS NOT NULL
         )"
    };
}

/// The kinds `$5`, and from which due time `$6` on there may be something that nobody has claimed.
macro_rules! known_kinds {
    () => {
        "WITH kinds (kind, since) AS (SELECT * FROM unnest($5::text[], $6::timestamptz[]))"
    };
}

/// Lets the transaction commit without waiting for the disk. Should the server crash before it is there, a claim is free
/// again, or what was published is published again under the same run: both as if the dispatcher had crashed.
macro_rules! relaxed {
    () => {
        "(SELECT set_config('synchronous_commit', 'off', true)) IS NOT NULL"
    };
}

/// Those of the ids `$2` that are still under the claim `$1`, locked in the order in which lanes write the same rows, in
/// whatever order a plan would come to them: else they would wait for each other in a circle.
macro_rules! claimed {
    () => {
        concat!(
            "id = ANY (ARRAY(SELECT id FROM jobs WHERE id = ANY ($2) AND claim = $1 ORDER BY id FOR UPDATE)) AND ",
            relaxed!()
        )
    };
}

fn names(kinds: &[Kind]) -> Vec<String> {
    kinds.iter().map(Kind::to_string).collect()
}

/// Claims `$1` rows, fairly between the kinds that the first part names, from where on the second part says for each.
macro_rules! claim {
    ($kinds:expr, $since:literal) => {
        // By an array of ids: what a limit that is computed lets through is taken for a tenth of all rows, and a join with
        // so many would read the whole table.
        concat!(
            $kinds,
            ", quota (per_kind) AS (
                 SELECT greatest(1, $1::bigint / greatest(1, count(*))) FROM kinds
                 WHERE kind IS NOT NULL AND kind <> ALL ($4) AND ",
            relaxed!(),
            "
             ), due (id) AS (
                 SELECT taken.id FROM kinds CROSS JOIN quota
                 CROSS JOIN LATERAL (
                     SELECT id FROM jobs
                     WHERE jobs.kind = kinds.kind AND due_at >= ",
            $since,
            " AND due_at <= now()
                       AND (claimed_until IS NULL OR claimed_until < now())
                     ORDER BY due_at LIMIT quota.per_kind FOR UPDATE SKIP LOCKED
                 ) AS taken
                 WHERE kinds.kind IS NOT NULL AND kinds.kind <> ALL ($4)
             )
             UPDATE jobs
             SET claim = $2, claimed_until = now() + $3::bigint * interval '1 microsecond'
             WHERE id = ANY (ARRAY(SELECT id FROM due))
             RETURNING id, created_at, root, run, version, attempt, keyed, suspicion, kind, tenant, source,
                       trace_parent, trace_state, fingerprint, body, due_at, (SELECT per_kind FROM quota) AS quota,
                       (extract(epoch FROM now() - due_at) * 1000000)::bigint AS late"
        )
    };
}

#[async_trait]
impl Due for Postgres {
    async fn claim(&self, limit: usize, lease: Duration, except: &[Kind]) -> Result<Claim, StoreError> {
        let (pool, except, front) = (self.pool.clone(), names(except), self.front.clone());
        detached(async move {
            let token = Uuid::new_v8(rand_bytes()?);
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let claim = |statement: &'static str| {
                sqlx::query(statement).bind(limit).bind(token).bind(jobs::micros(lease)).bind(except.clone())
            };
            let mut rows = Vec::new();
            if let Some((kinds, since)) = front.known() {
                rows = claim(claim!(known_kinds!(), "kinds.since")).bind(kinds).bind(since).fetch_all(&pool).await?;
            }
            let narrow = !rows.is_empty();
            if !narrow {
                rows = claim(claim!(due_kinds!(), "'-infinity'")).fetch_all(&pool).await?;
            }
            front.note(narrow, taken(&rows)?);
            let mut jobs = rows
                .iter()
                .map(|row| {
                    Ok(Claimed {
                        envelope: jobs::envelope(row)?,
                        body: row.try_get::<Option<_>, _>("body")?.unwrap_or_default(),
                        late: Duration::from_micros(u64::try_from(row.try_get::<i64, _>("late")?).unwrap_or(0)),
                    })
                })
                .collect::<sqlx::Result<Vec<_>>>()?;
            // What has waited longest goes first, should there not be room for all.
            jobs.sort_by_key(|job: &Claimed| std::cmp::Reverse(job.late));
            Ok(Claim { token, jobs })
        })
        .await
    }

    async fn published(&self, token: Uuid, ids: &[Uuid]) -> Result<u64, StoreError> {
        let (pool, ids) = (self.pool.clone(), ids.to_vec());
        detached(async move {
            // The state as text, so that no plan goes by the index over states.
            let done = sqlx::query(concat!(
                "UPDATE jobs SET state = 'queued', due_at = NULL, claim = NULL, claimed_until = NULL
                 WHERE state::text IN ('scheduled', 'retrying') AND ",
                claimed!()
            ))
            .bind(token)
            .bind(ids)
            .execute(&pool)
            .await?;
            Ok(done.rows_affected())
        })
        .await
    }

    async fn release(&self, token: Uuid, ids: &[Uuid]) -> Result<(), StoreError> {
        let (pool, ids, front) = (self.pool.clone(), ids.to_vec(), self.front.clone());
        detached(async move {
            sqlx::query(concat!("UPDATE jobs SET claim = NULL, claimed_until = NULL WHERE ", claimed!()))
                .bind(token)
                .bind(ids)
                .execute(&pool)
                .await?;
            // Now that they are there: a claim that looked before has not seen them.
            front.forget();
            Ok(())
        })
        .await
    }

    async fn next_due(&self, except: &[Kind]) -> Result<Option<Duration>, StoreError> {
        let (pool, except) = (self.pool.clone(), names(except));
        detached(async move {
            let row = sqlx::query(concat!(
                due_kinds!(),
                " SELECT (extract(epoch FROM min(first.at) - now()) * 1000000)::bigint
                 FROM kinds CROSS JOIN LATERAL (
                     SELECT greatest(due_at, claimed_until) AS at FROM jobs
                     WHERE jobs.kind = kinds.kind AND due_at IS NOT NULL
                       AND (claimed_until IS NULL OR claimed_until < now())
                     ORDER BY due_at LIMIT 1
                 ) AS first
                 WHERE kinds.kind IS NOT NULL AND kinds.kind <> ALL ($1)"
            ))
            .bind(except)
            .fetch_one(&pool)
            .await?;
            let micros: Option<i64> = row.try_get(0)?;
            Ok(micros.map(|micros| Duration::from_micros(u64::try_from(micros).unwrap_or(0))))
        })
        .await
    }

    async fn wait(&self, at_most: Duration) {
        // Whether it was woken or its time is over is the same to whoever waits.
        _ = timeout(at_most, self.due.notified()).await;
    }
}

/// What a claim took of each kind.
fn taken(rows: &[PgRow]) -> sqlx::Result<HashMap<String, Taken>> {
    let mut counts = HashMap::<&str, (i64, i64, Micros)>::new();
    for row in rows {
        let Timestamptz(due) = row.try_get("due_at")?;
        let (count, _, up_to) = counts.entry(row.try_get("kind")?).or_insert((0, row.try_get("quota")?, due));
        (*count, *up_to) = (*count + 1, due.max(*up_to));
    }
    let taken = |(count, quota, up_to)| Taken { full: count >= quota, up_to };
    Ok(counts.into_iter().map(|(kind, counted)| (kind.to_owned(), taken(counted))).collect())
}

fn rand_bytes() -> sqlx::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| sqlx::Error::Io(std::io::Error::other(error)))?;
    Ok(bytes)
}
