//! Jobs that are called off: at once where nobody has them, and by a tombstone where somebody may.

use async_trait::async_trait;
use sqlx::{PgConnection, Row as _};
use uuid::Uuid;

use super::{Postgres, connect::detached, jobs};
use crate::{
    job::{CANCELLED, Completion, State, Tenant},
    store::{ANY_TENANT, Cancel, Cancelled, StoreError, Tombstone},
};

/// The ids among these for which there is a tombstone, sorted.
pub(super) async fn met(
    connection: &mut PgConnection,
    batch: impl IntoIterator<Item = &Completion>,
) -> sqlx::Result<Vec<Uuid>> {
    let (ids, tenants): (Vec<_>, Vec<_>) =
        batch.into_iter().map(|it| (it.envelope.id, it.envelope.tenant.as_str())).unzip();
    let rows = sqlx::query(
        "SELECT c.id FROM unnest($1::uuid[], $2::text[]) AS c (id, tenant)
         JOIN tombstones ON tombstones.id = c.id AND tombstones.tenant IN (c.tenant, '*')",
    )
    .bind(ids)
    .bind(tenants)
    .fetch_all(connection)
    .await?;
    let mut met: Vec<Uuid> = rows.iter().map(|row| row.try_get(0)).collect::<sqlx::Result<_>>()?;
    met.sort_unstable();
    Ok(met)
}

/// Removes tombstones that have done their work.
pub(super) async fn bury(connection: &mut PgConnection, ids: &[Uuid]) -> sqlx::Result<()> {
    if !ids.is_empty() {
        sqlx::query("DELETE FROM tombstones WHERE id = ANY ($1)").bind(ids).execute(connection).await?;
    }
    Ok(())
}

#[async_trait]
impl Cancel for Postgres {
    async fn cancel(&self, tenant: Option<&Tenant>, id: Uuid, unrecorded: bool) -> Result<Cancelled, StoreError> {
        let (pool, tenant) = (self.pool.clone(), tenant.map(Tenant::to_string));
        detached(async move {
            let mut transaction = pool.begin().await?;
            let row = sqlx::query(
                "SELECT state::text, tenant, claim IS NOT NULL AS claimed FROM jobs
                 WHERE id = $1 AND ($2::text IS NULL OR tenant = $2) FOR UPDATE",
            )
            .bind(id)
            .bind(&tenant)
            .fetch_optional(&mut *transaction)
            .await?;
            let owner = match row {
                None if unrecorded => tenant.unwrap_or_else(|| ANY_TENANT.into()),
                None => return Ok(Cancelled::Unknown),
                Some(row) => {
                    let state = jobs::state(&row)?;
                    if state.is_terminal() {
                        return Ok(Cancelled::Over(state));
                    }
                    if matches!(state, State::Scheduled | State::Retrying) && !row.try_get::<bool, _>("claimed")? {
                        sqlx::query(
                            "UPDATE jobs SET state = 'cancelled', finished_at = now(), due_at = NULL, reason = $2,
                                             error = NULL, body = NULL, parked_at = NULL
                             WHERE id = $1",
                        )
                        .bind(id)
                        .bind(CANCELLED[usize::from(state == State::Retrying)])
                        .execute(&mut *transaction)
                        .await?;
                        bury(&mut transaction, &[id]).await?;
                        transaction.commit().await?;
                        return Ok(Cancelled::Done);
                    }
                    row.try_get("tenant")?
                }
            };
            sqlx::query("INSERT INTO tombstones (id, tenant) VALUES ($1, $2) ON CONFLICT (id) DO NOTHING")
                .bind(id)
                .bind(owner)
                .execute(&mut *transaction)
                .await?;
            transaction.commit().await?;
            Ok(Cancelled::Requested)
        })
        .await
    }

    async fn tombstones(&self, after: i64) -> Result<Vec<Tombstone>, StoreError> {
        let pool = self.pool.clone();
        detached(async move {
            let rows = sqlx::query("SELECT seq, id FROM tombstones WHERE seq > $1 ORDER BY seq LIMIT 100000")
                .bind(after)
                .fetch_all(&pool)
                .await?;
            rows.iter().map(|row| Ok(Tombstone { seq: row.try_get(0)?, id: row.try_get(1)? })).collect()
        })
        .await
    }

    async fn called_off(&self, ids: &[Uuid]) -> Result<Vec<Uuid>, StoreError> {
        let (pool, ids) = (self.pool.clone(), ids.to_vec());
        detached(async move {
            let rows = sqlx::query("SELECT id FROM tombstones WHERE id = ANY ($1)").bind(ids).fetch_all(&pool).await?;
            rows.iter().map(|row| row.try_get(0)).collect()
        })
        .await
    }
}
