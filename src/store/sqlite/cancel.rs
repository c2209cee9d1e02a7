//! Jobs that are called off: at once where nobody has them, and by a tombstone where somebody may.

use async_trait::async_trait;
use sqlx::{Row as _, SqliteConnection};
use uuid::Uuid;

use super::{
    Sqlite,
    connect::{read, written},
    jobs,
};
use crate::{
    clock,
    job::{CANCELLED, Completion, State, Tenant},
    store::{ANY_TENANT, Cancel, Cancelled, StoreError, Tombstone},
};

/// How many ids stand in one statement.
const IDS: usize = 500;

/// Whether there is any tombstone at all.
pub(super) async fn any(connection: &mut SqliteConnection) -> sqlx::Result<bool> {
    sqlx::query("SELECT EXISTS (SELECT 1 FROM tombstones)").fetch_one(connection).await?.try_get(0)
}

/// The ids among these for which there is a tombstone, sorted.
pub(super) async fn met(connection: &mut SqliteConnection, batch: &[Completion]) -> sqlx::Result<Vec<Uuid>> {
    let mut met = Vec::new();
    for completion in batch {
        let found = sqlx::query("SELECT 1 FROM tombstones WHERE id = ? AND tenant IN (?, '*')")
            .bind(completion.envelope.id)
            .bind(completion.envelope.tenant.as_str())
            .fetch_optional(&mut *connection)
            .await?;
        met.extend(found.map(|_| completion.envelope.id));
    }
    met.sort_unstable();
    Ok(met)
}

/// Removes tombstones that have done their work.
pub(super) async fn bury(connection: &mut SqliteConnection, ids: &[Uuid]) -> sqlx::Result<()> {
    for id in ids {
        sqlx::query("DELETE FROM tombstones WHERE id = ?").bind(id).execute(&mut *connection).await?;
    }
    Ok(())
}

async fn cancel(
    connection: &mut SqliteConnection,
    tenant: Option<&Tenant>,
    id: Uuid,
    unrecorded: bool,
) -> sqlx::Result<Cancelled> {
    let row = sqlx::query(
        "SELECT state, tenant, claim IS NOT NULL AS claimed FROM jobs WHERE id = ? AND tenant = coalesce(?, tenant)",
    )
    .bind(id)
    .bind(tenant.map(Tenant::as_str))
    .fetch_optional(&mut *connection)
    .await?;
    let owner = match row {
        None if unrecorded => tenant.map_or_else(|| ANY_TENANT.into(), Tenant::to_string),
        None => return Ok(Cancelled::Unknown),
        Some(row) => {
            let state = jobs::state(&row)?;
            if state.is_terminal() {
                return Ok(Cancelled::Over(state));
            }
            if matches!(state, State::Scheduled | State::Retrying) && !row.try_get::<bool, _>("claimed")? {
                sqlx::query(
                    "UPDATE jobs SET state = 'cancelled', finished_at = ?, due_at = NULL, reason = ?, error = NULL,
                                     body = NULL, parked_at = NULL
                     WHERE id = ?",
                )
                .bind(clock::now())
                .bind(CANCELLED[usize::from(state == State::Retrying)])
                .bind(id)
                .execute(&mut *connection)
                .await?;
                bury(connection, &[id]).await?;
                return Ok(Cancelled::Done);
            }
            row.try_get("tenant")?
        }
    };
    sqlx::query("INSERT INTO tombstones (id, created_at, tenant) VALUES (?, ?, ?) ON CONFLICT (id) DO NOTHING")
        .bind(id)
        .bind(clock::now())
        .bind(owner)
        .execute(connection)
        .await?;
    Ok(Cancelled::Requested)
}

#[async_trait]
impl Cancel for Sqlite {
    async fn cancel(&self, tenant: Option<&Tenant>, id: Uuid, unrecorded: bool) -> Result<Cancelled, StoreError> {
        let tenant = tenant.cloned();
        written(
            self.database
                .write(move |connection| {
                    let tenant = tenant.clone();
                    Box::pin(async move { cancel(connection, tenant.as_ref(), id, unrecorded).await })
                })
                .await,
        )
    }

    async fn tombstones(&self, after: i64) -> Result<Vec<Tombstone>, StoreError> {
        let rows = sqlx::query("SELECT seq, id FROM tombstones WHERE seq > ? ORDER BY seq LIMIT 100000").bind(after);
        let rows = read(rows.fetch_all(self.database.readers()).await)?;
        read(rows.iter().map(|row| Ok(Tombstone { seq: row.try_get(0)?, id: row.try_get(1)? })).collect())
    }

    async fn called_off(&self, ids: &[Uuid]) -> Result<Vec<Uuid>, StoreError> {
        let mut found = Vec::new();
        for ids in ids.chunks(IDS) {
            let mut query = jobs::with_ids("SELECT id FROM tombstones WHERE id IN ", ids);
            let rows = read(query.build().persistent(false).fetch_all(self.database.readers()).await)?;
            for row in rows {
                found.push(read(row.try_get(0))?);
            }
        }
        Ok(found)
    }
}
