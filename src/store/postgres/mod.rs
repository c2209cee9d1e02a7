//! The store port on Postgres.
//!
//! Owns its SQL and its schema. Recording has connections of its own, one a lane; everything else shares a small pool.

mod cancel;
mod connect;
mod due;
mod fleet;
mod front;
mod installation;
mod jobs;
mod keys;
mod park;
mod prune;
mod record;
mod time;

use std::sync::Arc;

use sqlx::{AssertSqlSafe, Connection as _, PgPool, Row as _, postgres::PgListener};
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::debug;

pub use self::connect::{BadPgUrl, PgUrl};
use crate::{
    job::chain,
    retry::Reconnect,
    store::{Record, Store, StoreError},
};

/// How many connections serve everything that is not recording.
const POOL: u32 = 4;

/// The store on Postgres.
#[derive(Debug)]
pub struct Postgres {
    url: PgUrl,
    pool: PgPool,
    /// Something may have become due sooner than was known.
    due: Arc<Notify>,
    front: Arc<front::Front>,
    _listening: DropGuard,
}

impl Postgres {
    /// A store at this URL. Connects when it is first asked; must be called within a tokio runtime.
    pub fn new(url: PgUrl) -> Self {
        let due = Arc::new(Notify::new());
        let stop = CancellationToken::new();
        let pool = url.pool(POOL);
        tokio::spawn(stop.clone().run_until_cancelled_owned(listen(url.clone(), due.clone())));
        Self { url, pool, due, front: Arc::default(), _listening: stop.drop_guard() }
    }
}

impl Store for Postgres {
    fn lane(&self) -> Box<dyn Record> {
        Box::new(record::Lane::new(&self.url))
    }
}

/// Makes a schema, for an installation beside another one in the same database.
pub async fn make_schema(url: &PgUrl, name: &str) -> Result<(), StoreError> {
    execute(url, format!("CREATE SCHEMA IF NOT EXISTS \"{}\"", name.replace('"', ""))).await
}

/// Drops a schema with everything in it.
pub async fn drop_schema(url: &PgUrl, name: &str) -> Result<(), StoreError> {
    execute(&url.without_timeouts(), format!("DROP SCHEMA IF EXISTS \"{}\" CASCADE", name.replace('"', ""))).await
}

async fn execute(url: &PgUrl, statement: String) -> Result<(), StoreError> {
    let mut connection = url.connect().await?;
    sqlx::query(AssertSqlSafe(statement)).execute(&mut connection).await.map_err(connect::classify)?;
    _ = connection.close().await;
    Ok(())
}

/// What the database does before it says that something is durable.
pub async fn durability(url: &PgUrl) -> Result<String, StoreError> {
    let mut connection = url.connect().await?;
    let settings =
        "SELECT current_setting('synchronous_commit'), current_setting('fsync'), current_setting('server_version')";
    let row = sqlx::query(settings).fetch_one(&mut connection).await.map_err(connect::classify)?;
    _ = connection.close().await;
    let text = |index: usize| row.try_get::<String, _>(index).unwrap_or_default();
    Ok(format!("synchronous_commit={}, fsync={}, version {}", text(0), text(1), text(2)))
}

/// Hands the database's notifications on. While it cannot, the dispatcher's own pace, a second, must do.
async fn listen(url: PgUrl, due: Arc<Notify>) {
    let mut pauses = Reconnect::new();
    loop {
        let pool = url.pool(1);
        let ended = async {
            let mut listener = PgListener::connect_with(&pool).await?;
            listener.listen("warren_due").await?;
            pauses.reset();
            loop {
                listener.recv().await?;
                due.notify_one();
            }
        };
        let ended: sqlx::Result<()> = ended.await;
        if let Err(error) = ended {
            debug!(error = chain(&error), "cannot listen for due jobs");
        }
        pool.close().await;
        tokio::time::sleep(pauses.pause()).await;
    }
}
