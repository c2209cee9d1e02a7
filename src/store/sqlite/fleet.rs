//! What the processes of an installation tell of themselves.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use sqlx::Row as _;
use uuid::Uuid;

use super::{
    Sqlite,
    connect::{read, written},
    jobs::{later, micros},
};
use crate::{
    clock,
    job::{Kind, Micros},
    store::{Fleet, Instance, InstanceRecord, StoreError},
};

const BUCKET: Micros = 10_000_000;
const HOUR: Micros = 3600 * 1_000_000;

#[async_trait]
impl Fleet for Sqlite {
    async fn beat(&self, instance: &Instance) -> Result<(), StoreError> {
        let instance = Arc::new(instance.clone());
        written(
            self.database
                .write(move |connection| {
                    let instance = instance.clone();
                    Box::pin(async move {
                        sqlx::query(
                            "INSERT INTO instances (id, started_at, beat_at, pid, host, version, roles, work)
                             VALUES (?1, ?2, ?2, ?3, ?4, ?5, ?6, ?7)
                             ON CONFLICT (id) DO UPDATE SET beat_at = excluded.beat_at, work = excluded.work",
                        )
                        .bind(instance.id)
                        .bind(clock::now())
                        .bind(instance.pid)
                        .bind(&instance.host)
                        .bind(&instance.version)
                        .bind(&instance.roles)
                        .bind(serde_json::to_string(&instance.work).unwrap_or_default())
                        .execute(connection)
                        .await?;
                        Ok(())
                    })
                })
                .await,
        )
    }

    async fn leave(&self, id: Uuid) -> Result<(), StoreError> {
        written(
            self.database
                .write(move |connection| {
                    Box::pin(async move {
                        sqlx::query("DELETE FROM instances WHERE id = ?").bind(id).execute(connection).await.map(drop)
                    })
                })
                .await,
        )
    }

    async fn instances(&self, within: Duration) -> Result<Vec<InstanceRecord>, StoreError> {
        let now = clock::now();
        let rows = sqlx::query("SELECT * FROM instances WHERE beat_at > ? ORDER BY host, started_at")
            .bind(now - micros(within))
            .fetch_all(self.database.readers());
        let rows = read(rows.await)?;
        let record = |row: &sqlx::sqlite::SqliteRow| {
            Ok(InstanceRecord {
                instance: Instance {
                    id: row.try_get("id")?,
                    pid: row.try_get("pid")?,
                    host: row.try_get("host")?,
                    version: row.try_get("version")?,
                    roles: row.try_get("roles")?,
                    work: serde_json::from_str(row.try_get("work")?).unwrap_or_default(),
                },
                started_at: row.try_get("started_at")?,
                beat_ago: Duration::from_micros(u64::try_from(now - row.try_get::<Micros, _>("beat_at")?).unwrap_or(0)),
            })
        };
        read(rows.iter().map(record).collect())
    }

    async fn count_published(&self, counts: &[(Kind, u64)]) -> Result<(), StoreError> {
        let counts: Arc<[(Kind, u64)]> = counts.into();
        written(
            self.database
                .write(move |connection| {
                    let counts = counts.clone();
                    Box::pin(async move {
                        for (kind, count) in counts.iter() {
                            sqlx::query(
                                "INSERT INTO published (kind, bucket, count) VALUES (?, ?, ?)
                                 ON CONFLICT (kind, bucket) DO UPDATE SET count = count + excluded.count",
                            )
                            .bind(kind.as_str())
                            .bind(clock::now() / BUCKET * BUCKET)
                            .bind(count.cast_signed())
                            .execute(&mut *connection)
                            .await?;
                        }
                        Ok(())
                    })
                })
                .await,
        )
    }

    async fn waiting_since(&self, depths: &[(Kind, u64)]) -> Result<Vec<Option<Duration>>, StoreError> {
        let now = clock::now();
        let mut ages = Vec::with_capacity(depths.len());
        for (kind, depth) in depths {
            let row = sqlx::query(
                "SELECT max(bucket) FROM (SELECT bucket, sum(count) OVER (ORDER BY bucket DESC) AS since
                                          FROM published WHERE kind = ?)
                 WHERE since >= ?",
            )
            .bind(kind.as_str())
            .bind(depth.cast_signed())
            .fetch_one(self.database.readers());
            let bucket: Option<Micros> = read(row.await.and_then(|row| row.try_get(0)))?;
            ages.push(bucket.map(|bucket| Duration::from_micros(u64::try_from(now - bucket).unwrap_or(0))));
        }
        Ok(ages)
    }

    async fn forget(&self) -> Result<u64, StoreError> {
        written(
            self.database
                .write(move |connection| {
                    Box::pin(async move {
                        let now = clock::now();
                        let mut forgotten = 0;
                        for (statement, before) in [
                            ("DELETE FROM instances WHERE beat_at < ?", now - HOUR),
                            ("DELETE FROM published WHERE bucket < ?", now - 7 * 24 * HOUR),
                            ("DELETE FROM tombstones WHERE created_at < ?", now - 30 * 24 * HOUR),
                            (
                                "DELETE FROM tombstones WHERE created_at < ? AND id IN (
                                     SELECT tombstones.id FROM tombstones JOIN jobs USING (id)
                                     WHERE jobs.state IN ('succeeded', 'dead', 'cancelled', 'discarded'))",
                                later(now, Duration::from_secs(1)),
                            ),
                        ] {
                            forgotten +=
                                sqlx::query(statement).bind(before).execute(&mut *connection).await?.rows_affected();
                        }
                        Ok(forgotten)
                    })
                })
                .await,
        )
    }
}
