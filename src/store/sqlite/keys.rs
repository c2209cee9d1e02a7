//! API keys: made, read, rotated, revoked, and noted when they were used.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use sqlx::{Row as _, SqliteConnection, sqlite::SqliteRow};

use super::{
    Sqlite,
    connect::{read, written},
    jobs::later,
};
use crate::{
    clock,
    job::Micros,
    keys::{Digest, Key, KeyId},
    store::{
        Keys, StoreError, StoredKeys,
        keys::{KeyRow, REVISION, understood},
    },
};

/// Tells all who hold keys in memory that there is something new.
async fn changed(connection: &mut SqliteConnection) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO installation (name, value) VALUES (?, '1')
         ON CONFLICT (name) DO UPDATE SET value = CAST(CAST(value AS INTEGER) + 1 AS TEXT)",
    )
    .bind(REVISION)
    .execute(connection)
    .await
    .map(drop)
}

fn key_row(row: &SqliteRow) -> sqlx::Result<KeyRow> {
    Ok(KeyRow {
        id: row.try_get("id")?,
        env: row.try_get("env")?,
        name: row.try_get("name")?,
        tenant: row.try_get("tenant")?,
        grants: row.try_get("grants")?,
        digest: row.try_get("digest")?,
        previous: row.try_get("previous")?,
        previous_until: row.try_get("previous_until")?,
        created_at: row.try_get("created_at")?,
        expires_at: row.try_get("expires_at")?,
        revoked_at: row.try_get("revoked_at")?,
        last_used_at: row.try_get("last_used_at")?,
    })
}

#[async_trait]
impl Keys for Sqlite {
    async fn create_key(&self, key: &Key) -> Result<bool, StoreError> {
        let key = Arc::new(key.clone());
        written(
            self.database
                .write(move |connection| {
                    let key = key.clone();
                    Box::pin(async move {
                        let made = sqlx::query(
                            "INSERT INTO keys (id, env, name, tenant, grants, digest, expires_at, created_at)
                             VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                        )
                        .bind(key.id.as_str())
                        .bind(key.env.to_string())
                        .bind(&key.name)
                        .bind(key.tenant.as_str())
                        .bind(key.grants.to_json())
                        .bind(&key.digest.bytes()[..])
                        .bind(key.expires_at)
                        .bind(clock::now())
                        .execute(&mut *connection)
                        .await?;
                        changed(connection).await?;
                        Ok(made.rows_affected() == 1)
                    })
                })
                .await,
        )
    }

    async fn keys(&self, known: Option<i64>) -> Result<Option<StoredKeys>, StoreError> {
        let readers = self.database.readers();
        let rows = async {
            // Asked first: what changes between the two is read again the next time.
            let revision = sqlx::query("SELECT CAST(value AS INTEGER) FROM installation WHERE name = ?").bind(REVISION);
            let revision = revision.fetch_optional(readers).await?.map_or(Ok(0), |row| row.try_get::<i64, _>(0))?;
            if known == Some(revision) {
                return Ok(None);
            }
            let rows = sqlx::query("SELECT * FROM keys ORDER BY created_at, id").fetch_all(readers).await?;
            Ok(Some((revision, rows.iter().map(key_row).collect::<sqlx::Result<Vec<_>>>()?)))
        };
        Ok(read(rows.await)?.map(|(revision, rows)| understood(revision, rows)))
    }

    async fn rotate_key(&self, id: KeyId, digest: Digest, overlap: Duration) -> Result<bool, StoreError> {
        written(
            self.database
                .write(move |connection| {
                    Box::pin(async move {
                        let rotated = sqlx::query(
                            "UPDATE keys SET previous = digest, previous_until = ?, digest = ?
                             WHERE id = ? AND revoked_at IS NULL",
                        )
                        .bind(later(clock::now(), overlap))
                        .bind(&digest.bytes()[..])
                        .bind(id.as_str())
                        .execute(&mut *connection)
                        .await?;
                        changed(connection).await?;
                        Ok(rotated.rows_affected() == 1)
                    })
                })
                .await,
        )
    }

    async fn revoke_key(&self, id: &str) -> Result<bool, StoreError> {
        let id = Arc::new(id.to_owned());
        written(
            self.database
                .write(move |connection| {
                    let id = id.clone();
                    Box::pin(async move {
                        let revoked = sqlx::query("UPDATE keys SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL")
                            .bind(clock::now())
                            .bind(id.as_str())
                            .execute(&mut *connection)
                            .await?;
                        changed(connection).await?;
                        Ok(revoked.rows_affected() == 1)
                    })
                })
                .await,
        )
    }

    async fn touch_keys(&self, used: &[(KeyId, Micros)]) -> Result<(), StoreError> {
        let used: Arc<[(KeyId, Micros)]> = used.into();
        written(
            self.database
                .write(move |connection| {
                    let used = used.clone();
                    Box::pin(async move {
                        for (id, at) in used.iter() {
                            sqlx::query(
                                "UPDATE keys SET last_used_at = max(coalesce(last_used_at, 0), ?) WHERE id = ?",
                            )
                            .bind(at)
                            .bind(id.as_str())
                            .execute(&mut *connection)
                            .await?;
                        }
                        Ok(())
                    })
                })
                .await,
        )
    }
}
