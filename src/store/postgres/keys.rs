//! API keys: made, read, rotated, revoked, and noted when they were used.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::{PgConnection, Row as _, postgres::PgRow};

use super::{Postgres, connect::detached, jobs::micros, time::Timestamptz};
use crate::{
    job::Micros,
    keys::{Digest, Key, KeyId},
    store::{
        Keys, StoreError, StoredKeys,
        keys::{KeyRow, REVISION, understood},
    },
};

/// Tells all who hold keys in memory that there is something new. The row is locked until the commit, so that revisions
/// come into sight in their order.
async fn changed(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO installation (name, value) VALUES ($1, '1')
         ON CONFLICT (name) DO UPDATE SET value = (installation.value::bigint + 1)::text",
    )
    .bind(REVISION)
    .execute(connection)
    .await
    .map(drop)
}

fn key_row(row: &PgRow) -> sqlx::Result<KeyRow> {
    let instant = |name| Ok::<_, sqlx::Error>(row.try_get::<Option<Timestamptz>, _>(name)?.map(|at| at.0));
    Ok(KeyRow {
        id: row.try_get("id")?,
        env: row.try_get("env")?,
        name: row.try_get("name")?,
        tenant: row.try_get("tenant")?,
        grants: row.try_get("grants")?,
        digest: row.try_get("digest")?,
        previous: row.try_get("previous")?,
        previous_until: instant("previous_until")?,
        created_at: row.try_get::<Timestamptz, _>("created_at")?.0,
        expires_at: instant("expires_at")?,
        revoked_at: instant("revoked_at")?,
        last_used_at: instant("last_used_at")?,
    })
}

#[async_trait]
impl Keys for Postgres {
    async fn create_key(&self, key: &Key) -> Result<bool, StoreError> {
        let (pool, key) = (self.pool.clone(), key.clone());
        detached(async move {
            let mut transaction = pool.begin().await?;
            let made = sqlx::query(
                "INSERT INTO keys (id, env, name, tenant, grants, digest, expires_at)
                 VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING",
            )
            .bind(key.id.as_str())
            .bind(key.env.to_string())
            .bind(&key.name)
            .bind(key.tenant.as_str())
            .bind(key.grants.to_json())
            .bind(&key.digest.bytes()[..])
            .bind(key.expires_at.map(Timestamptz))
            .execute(&mut *transaction)
            .await?;
            changed(&mut transaction).await?;
            transaction.commit().await?;
            Ok(made.rows_affected() == 1)
        })
        .await
    }

    async fn keys(&self, known: Option<i64>) -> Result<Option<StoredKeys>, StoreError> {
        let pool = self.pool.clone();
        let read = detached(async move {
            // Asked first: what changes between the two is read again the next time.
            let revision = sqlx::query("SELECT value::bigint FROM installation WHERE name = $1").bind(REVISION);
            let revision = revision.fetch_optional(&pool).await?.map_or(Ok(0), |row| row.try_get::<i64, _>(0))?;
            if known == Some(revision) {
                return Ok(None);
            }
            let rows = sqlx::query("SELECT * FROM keys ORDER BY created_at, id").fetch_all(&pool).await?;
            Ok(Some((revision, rows.iter().map(key_row).collect::<sqlx::Result<Vec<_>>>()?)))
        });
        Ok(read.await?.map(|(revision, rows)| understood(revision, rows)))
    }

    async fn rotate_key(&self, id: KeyId, digest: Digest, overlap: Duration) -> Result<bool, StoreError> {
        let pool = self.pool.clone();
        detached(async move {
            let mut transaction = pool.begin().await?;
            let rotated = sqlx::query(
                "UPDATE keys SET previous = digest, previous_until = now() + $3::bigint * interval '1 microsecond',
                                 digest = $2
                 WHERE id = $1 AND revoked_at IS NULL",
            )
            .bind(id.as_str())
            .bind(&digest.bytes()[..])
            .bind(micros(overlap))
            .execute(&mut *transaction)
            .await?;
            changed(&mut transaction).await?;
            transaction.commit().await?;
            Ok(rotated.rows_affected() == 1)
        })
        .await
    }

    async fn revoke_key(&self, id: &str) -> Result<bool, StoreError> {
        let (pool, id) = (self.pool.clone(), id.to_owned());
        detached(async move {
            let mut transaction = pool.begin().await?;
            let revoked = sqlx::query("UPDATE keys SET revoked_at = now() WHERE id = $1 AND revoked_at IS NULL")
                .bind(id)
                .execute(&mut *transaction)
                .await?;
            changed(&mut transaction).await?;
            transaction.commit().await?;
            Ok(revoked.rows_affected() == 1)
        })
        .await
    }

    async fn touch_keys(&self, used: &[(KeyId, Micros)]) -> Result<(), StoreError> {
        let pool = self.pool.clone();
        // In the order of their ids: two gateways that write at once wait for each other, and not in a circle.
        let mut used = used.to_vec();
        used.sort_unstable();
        let (ids, times): (Vec<_>, Vec<_>) = used.iter().map(|(id, at)| (id.to_string(), Timestamptz(*at))).unzip();
        detached(async move {
            sqlx::query(
                "WITH used AS (
                     SELECT keys.id, c.at FROM unnest($1::text[], $2::timestamptz[]) AS c (id, at)
                     JOIN keys ON keys.id = c.id ORDER BY keys.id FOR UPDATE OF keys
                 )
                 UPDATE keys SET last_used_at = greatest(keys.last_used_at, used.at) FROM used WHERE keys.id = used.id",
            )
            .bind(ids)
            .bind(times)
            .execute(&pool)
            .await
            .map(drop)
        })
        .await
    }
}
