//! What the processes of an installation tell of themselves.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::Row as _;
use uuid::Uuid;

use super::{Postgres, connect::detached, jobs, time::Timestamptz};
use crate::{
    job::Kind,
    store::{Fleet, Instance, InstanceRecord, StoreError},
};

#[async_trait]
impl Fleet for Postgres {
    async fn beat(&self, instance: &Instance) -> Result<(), StoreError> {
        let (pool, instance) = (self.pool.clone(), instance.clone());
        detached(async move {
            sqlx::query(
                "INSERT INTO instances (id, pid, host, version, roles, work) VALUES ($1, $2, $3, $4, $5, $6)
                 ON CONFLICT (id) DO UPDATE SET beat_at = now(), work = excluded.work",
            )
            .bind(instance.id)
            .bind(i64::from(instance.pid))
            .bind(instance.host)
            .bind(instance.version)
            .bind(instance.roles)
            .bind(serde_json::to_string(&instance.work).unwrap_or_default())
            .execute(&pool)
            .await?;
            Ok(())
        })
        .await
    }

    async fn leave(&self, id: Uuid) -> Result<(), StoreError> {
        let pool = self.pool.clone();
        detached(
            async move { sqlx::query("DELETE FROM instances WHERE id = $1").bind(id).execute(&pool).await.map(drop) },
        )
        .await
    }

    async fn instances(&self, within: Duration) -> Result<Vec<InstanceRecord>, StoreError> {
        let pool = self.pool.clone();
        detached(async move {
            let rows = sqlx::query(
                "SELECT id, pid, host, version, roles, work, started_at,
                        greatest(0, (extract(epoch FROM now() - beat_at) * 1000000)::bigint) AS beat_ago
                 FROM instances WHERE beat_at > now() - $1::bigint * interval '1 microsecond'
                 ORDER BY host, started_at",
            )
            .bind(jobs::micros(within))
            .fetch_all(&pool)
            .await?;
            rows.iter()
                .map(|row| {
                    Ok(InstanceRecord {
                        instance: Instance {
                            id: row.try_get("id")?,
                            pid: u32::try_from(row.try_get::<i64, _>("pid")?).unwrap_or(0),
                            host: row.try_get("host")?,
                            version: row.try_get("version")?,
                            roles: row.try_get("roles")?,
                            work: serde_json::from_str(row.try_get("work")?).unwrap_or_default(),
                        },
                        started_at: row.try_get::<Timestamptz, _>("started_at")?.0,
                        beat_ago: Duration::from_micros(row.try_get::<i64, _>("beat_ago")?.cast_unsigned()),
                    })
                })
                .collect()
        })
        .await
    }

    async fn count_published(&self, counts: &[(Kind, u64)]) -> Result<(), StoreError> {
        let (kinds, counts): (Vec<_>, Vec<_>) =
            counts.iter().map(|(kind, count)| (kind.to_string(), count.cast_signed())).unzip();
        let pool = self.pool.clone();
        detached(async move {
            sqlx::query(
                "INSERT INTO published (kind, bucket, count)
                 SELECT c.kind, date_bin('10 seconds', now(), 'epoch'), c.count
                 FROM unnest($1::text[], $2::bigint[]) AS c (kind, count) ORDER BY c.kind
                 ON CONFLICT (kind, bucket) DO UPDATE SET count = published.count + excluded.count",
            )
            .bind(kinds)
            .bind(counts)
            .execute(&pool)
            .await?;
            Ok(())
        })
        .await
    }

    async fn waiting_since(&self, depths: &[(Kind, u64)]) -> Result<Vec<Option<Duration>>, StoreError> {
        let (pool, depths) = (self.pool.clone(), depths.to_vec());
        detached(async move {
            let mut ages = Vec::with_capacity(depths.len());
            for (kind, depth) in depths {
                let row = sqlx::query(
                    "SELECT (extract(epoch FROM now() - max(bucket)) * 1000000)::bigint
                     FROM (SELECT bucket, sum(count) OVER (ORDER BY bucket DESC) AS since
                           FROM published WHERE kind = $1) AS counted
                     WHERE since >= $2",
                )
                .bind(kind.as_str())
                .bind(depth.cast_signed())
                .fetch_one(&pool)
                .await?;
                let micros: Option<i64> = row.try_get(0)?;
                ages.push(micros.map(|micros| Duration::from_micros(u64::try_from(micros).unwrap_or(0))));
            }
            Ok(ages)
        })
        .await
    }

    async fn forget(&self) -> Result<u64, StoreError> {
        let pool = self.pool.clone();
        detached(async move {
            let mut forgotten = 0;
            for statement in [
                "DELETE FROM instances WHERE beat_at < now() - interval '1 hour'",
                "DELETE FROM published WHERE bucket < now() - interval '7 days'",
                "DELETE FROM tombstones WHERE created_at < now() - interval '30 days'",
                "DELETE FROM tombstones USING jobs
                 WHERE jobs.id = tombstones.id AND jobs.state IN ('succeeded', 'dead', 'cancelled', 'discarded')",
            ] {
                forgotten += sqlx::query(statement).execute(&pool).await?.rows_affected();
            }
            Ok(forgotten)
        })
        .await
    }
}
