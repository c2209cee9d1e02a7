//! The schema's version, and what all processes of an installation must agree on.

use async_trait::async_trait;
use sqlx::Row as _;

use super::{Postgres, connect::detached, time::Timestamptz};
use crate::{
    job::Micros,
    store::{
        Installation, MigrateError, StoreError,
        migrations::{self, Step},
    },
};

const STEPS: &[Step] =
    &[(1, "jobs", include_str!("migrations/0001_jobs.sql")), (2, "keys", include_str!("migrations/0002_keys.sql"))];

impl Postgres {
    async fn schema_version(&self) -> Result<i64, MigrateError> {
        let pool = self.pool.clone();
        let version = detached(async move {
            let there: Option<String> =
                sqlx::query("SELECT to_regclass('schema_steps')::text").fetch_one(&pool).await?.try_get(0)?;
            if there.is_none() {
                return Ok(0);
            }
            let newest = "SELECT coalesce(max(version), 0) FROM schema_steps WHERE success";
            sqlx::query(newest).fetch_one(&pool).await?.try_get(0)
        });
        version.await.map_err(MigrateError::Store)
    }
}

#[async_trait]
impl Installation for Postgres {
    async fn migrate(&self) -> Result<Vec<String>, MigrateError> {
        let before = self.schema_version().await?;
        if migrations::check(STEPS, before).is_ok() {
            return Ok(Vec::new());
        }
        // A step may rightly take longer than any query on the hot path.
        let pool = self.url.without_timeouts().pool(1);
        let taken = migrations::migrator(STEPS).run(&pool).await.map_err(migrations::failed);
        pool.close().await;
        taken?;
        self.check_schema().await?;
        Ok(migrations::names_after(STEPS, before))
    }

    async fn check_schema(&self) -> Result<(), MigrateError> {
        migrations::check(STEPS, self.schema_version().await?)
    }

    async fn settle_value(&self, name: &str, value: &str) -> Result<String, StoreError> {
        let (pool, name, value) = (self.pool.clone(), name.to_owned(), value.to_owned());
        detached(async move {
            sqlx::query("INSERT INTO installation (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING")
                .bind(&name)
                .bind(&value)
                .execute(&pool)
                .await?;
            let stands = sqlx::query("SELECT value FROM installation WHERE name = $1").bind(&name);
            stands.fetch_one(&pool).await?.try_get(0)
        })
        .await
    }

    async fn replace_value(&self, name: &str, from: &str, to: &str) -> Result<bool, StoreError> {
        let (pool, name, from, to) = (self.pool.clone(), name.to_owned(), from.to_owned(), to.to_owned());
        detached(async move {
            let done = sqlx::query("UPDATE installation SET value = $3 WHERE name = $1 AND value = $2");
            Ok(done.bind(name).bind(from).bind(to).execute(&pool).await?.rows_affected() == 1)
        })
        .await
    }

    async fn value(&self, name: &str) -> Result<Option<String>, StoreError> {
        let (pool, name) = (self.pool.clone(), name.to_owned());
        detached(async move {
            let stands = sqlx::query("SELECT value FROM installation WHERE name = $1").bind(name);
            stands.fetch_optional(&pool).await?.map(|row| row.try_get(0)).transpose()
        })
        .await
    }

    async fn now(&self) -> Result<Micros, StoreError> {
        let pool = self.pool.clone();
        detached(async move {
            let now: Timestamptz = sqlx::query("SELECT clock_timestamp()").fetch_one(&pool).await?.try_get(0)?;
            Ok(now.0)
        })
        .await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        let pool = self.pool.clone();
        detached(async move { sqlx::query("SELECT 1").execute(&pool).await.map(drop) }).await
    }
}
