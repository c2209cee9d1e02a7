//! The schema's version, and what all processes of an installation must agree on.

use async_trait::async_trait;
use sqlx::{Connection as _, Row as _, SqliteConnection};

use super::{
    Sqlite,
    connect::{read, written},
};
use crate::{
    clock,
    job::Micros,
    store::{
        Installation, MigrateError, StoreError,
        migrations::{self, Step},
    },
};

const STEPS: &[Step] =
    &[(1, "jobs", include_str!("migrations/0001_jobs.sql")), (2, "keys", include_str!("migrations/0002_keys.sql"))];

impl Sqlite {
    async fn schema_version(&self) -> Result<i64, MigrateError> {
        let version = async {
            let readers = self.database.readers();
            let there = "SELECT count(*) FROM sqlite_schema WHERE name = 'schema_steps'";
            if sqlx::query(there).fetch_one(readers).await?.try_get::<i64, _>(0)? == 0 {
                return Ok(0);
            }
            let newest = "SELECT coalesce(max(version), 0) FROM schema_steps WHERE success";
            sqlx::query(newest).fetch_one(readers).await?.try_get(0)
        };
        read(version.await).map_err(MigrateError::Store)
    }
}

#[async_trait]
impl Installation for Sqlite {
    async fn migrate(&self) -> Result<Vec<String>, MigrateError> {
        let before = self.schema_version().await?;
        if migrations::check(STEPS, before).is_ok() {
            return Ok(Vec::new());
        }
        // Steps are transactions of their own, so they take a connection of their own.
        let url = format!("sqlite://{}", self.database.path().display());
        let failed = |error: sqlx::Error| MigrateError::Failed(error.into());
        let mut connection = SqliteConnection::connect(&url).await.map_err(failed)?;
        let taken = migrations::migrator(STEPS).run_direct(None, &mut connection, false).await;
        connection.close().await.map_err(failed)?;
        taken.map_err(migrations::failed)?;
        self.check_schema().await?;
        Ok(migrations::names_after(STEPS, before))
    }

    async fn check_schema(&self) -> Result<(), MigrateError> {
        migrations::check(STEPS, self.schema_version().await?)
    }

    async fn settle_value(&self, name: &str, value: &str) -> Result<String, StoreError> {
        let pair = (name.to_owned(), value.to_owned());
        written(
            self.database
                .write(move |connection| {
                    let (name, value) = pair.clone();
                    Box::pin(async move {
                        sqlx::query(
                            "INSERT INTO installation (name, value) VALUES (?, ?) ON CONFLICT (name) DO NOTHING",
                        )
                        .bind(&name)
                        .bind(&value)
                        .execute(&mut *connection)
                        .await?;
                        let stands = sqlx::query("SELECT value FROM installation WHERE name = ?").bind(&name);
                        stands.fetch_one(&mut *connection).await?.try_get(0)
                    })
                })
                .await,
        )
    }

    async fn replace_value(&self, name: &str, from: &str, to: &str) -> Result<bool, StoreError> {
        let values = (name.to_owned(), from.to_owned(), to.to_owned());
        written(
            self.database
                .write(move |connection| {
                    let (name, from, to) = values.clone();
                    Box::pin(async move {
                        let done = sqlx::query("UPDATE installation SET value = ? WHERE name = ? AND value = ?");
                        Ok(done.bind(to).bind(name).bind(from).execute(connection).await?.rows_affected() == 1)
                    })
                })
                .await,
        )
    }

    async fn value(&self, name: &str) -> Result<Option<String>, StoreError> {
        let stands = sqlx::query("SELECT value FROM installation WHERE name = ?").bind(name);
        let row = read(stands.fetch_optional(self.database.readers()).await)?;
        read(row.map(|row| row.try_get(0)).transpose())
    }

    async fn now(&self) -> Result<Micros, StoreError> {
        Ok(clock::now())
    }

    async fn ping(&self) -> Result<(), StoreError> {
        read(sqlx::query("SELECT 1").execute(self.database.readers()).await).map(drop)
    }
}
