//! Databases, queues and files of a test's own.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use lapin::{
    Channel, Connection, ConnectionProperties,
    options::{ExchangeDeleteOptions, QueueDeleteOptions},
};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tempfile::TempDir;
use warren::{
    broker::rabbitmq::{self, topology},
    job::Kind,
    sqlite::{Database, Use},
    store::{Installation as _, postgres::Postgres, sqlite::Sqlite},
};

/// Whether what a test needs must be there, so that it may not be left out.
pub(crate) fn are_required() -> bool {
    std::env::var("WARREN_TEST_SERVERS").is_ok_and(|value| value == "required")
}

/// The servers, if there are any. Panics if there are none and there must be.
pub(crate) fn servers() -> Option<(String, String)> {
    // To see what happens, with RUST_LOG=debug.
    if let Ok(level) = std::env::var("RUST_LOG") {
        warren::telemetry::init_logs(&level, warren::config::LogFormat::Text).expect("directives");
    }
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let servers = variable("AMQP_URL").zip(variable("DATABASE_URL"));
    assert!(servers.is_some() || !are_required(), "AMQP_URL and DATABASE_URL are required; tests/run starts servers");
    if servers.is_none() {
        eprintln!("left out: there are no servers");
    }
    servers
}

/// A name that no other test has, in this run or another.
pub(crate) fn unique(what: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("{what}_{}_{}", std::process::id(), COUNT.fetch_add(1, Relaxed))
}

/// Runs something to its end while a test is being torn down, where nothing can be awaited.
fn finish(work: impl Future<Output = ()> + Send + 'static) {
    let thread = std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(work);
    });
    // What could not be cleaned up lies in a private server, or is seen by its name.
    _ = thread.join();
}

/// A Postgres database of a test's own, dropped with it.
pub(crate) struct PgDatabase {
    pub(crate) url: String,
    admin: String,
    name: String,
}

impl PgDatabase {
    pub(crate) async fn create() -> Option<Self> {
        let (_, admin) = servers()?;
        let name = unique("warren_test");
        let mut connection = PgConnection::connect(&admin).await.expect("DATABASE_URL answers");
        connection.execute(AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.expect("may create databases");
        let mut url = url::Url::parse(&admin).expect("a URL");
        url.set_path(&name);
        Some(Self { url: url.to_string(), admin, name })
    }

    /// A connection that is not warren's.
    pub(crate) async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.expect("the database is there")
    }

    /// A store on it, with its schema.
    pub(crate) async fn store(&self) -> Postgres {
        let store = Postgres::new(self.url.parse().expect("a URL"));
        store.migrate().await.expect("a fresh database");
        store
    }

    /// The address of the server, for a proxy.
    pub(crate) fn address(&self) -> String {
        let url = url::Url::parse(&self.url).expect("a URL");
        format!("{}:{}", url.host_str().expect("a host"), url.port().unwrap_or(5432))
    }

    /// The same database, through a proxy on this port.
    pub(crate) fn through(&self, port: u16) -> String {
        let mut url = url::Url::parse(&self.url).expect("a URL");
        url.set_host(Some("127.0.0.1")).expect("a host");
        url.set_port(Some(port)).expect("a port");
        url.to_string()
    }
}

impl Drop for PgDatabase {
    fn drop(&mut self) {
        let (admin, name) = (self.admin.clone(), self.name.clone());
        finish(async move {
            if let Ok(mut connection) = PgConnection::connect(&admin).await {
                let drop = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
                _ = connection.execute(AssertSqlSafe(drop)).await;
            }
        });
    }
}

/// Queues and exchanges of a test's own, deleted with it.
pub(crate) struct RabbitPrefix {
    pub(crate) url: String,
    pub(crate) prefix: String,
    kinds: Vec<Kind>,
}

impl RabbitPrefix {
    /// With everything declared that these kinds need.
    pub(crate) async fn create(kinds: &[&Kind]) -> Option<Self> {
        let this = Self::reserve(kinds.iter().map(|&kind| kind.clone()).collect())?;
        rabbitmq::apply_topology(&this.settings(), &this.kinds).await.expect("AMQP_URL answers");
        Some(this)
    }

    /// With nothing yet.
    pub(crate) fn reserve(kinds: Vec<Kind>) -> Option<Self> {
        let (url, _) = servers()?;
        Some(Self { url, prefix: unique("warren-test"), kinds })
    }

    pub(crate) fn settings(&self) -> rabbitmq::Settings {
        self.settings_through(&self.url)
    }

    /// The same names, on a broker that is reached in another way.
    pub(crate) fn settings_through(&self, url: &str) -> rabbitmq::Settings {
        rabbitmq::Settings {
            url: url.parse().expect("a URL"),
            prefix: self.prefix.clone(),
            client: "warren test".into(),
            management: None,
        }
    }

    pub(crate) fn names(&self) -> topology::Names {
        topology::Names::new(&self.prefix)
    }

    /// A channel that is not warren's.
    pub(crate) async fn channel(&self) -> (Connection, Channel) {
        let connection =
            Connection::connect(&self.url, ConnectionProperties::default()).await.expect("the broker answers");
        let channel = connection.create_channel().await.expect("a channel");
        (connection, channel)
    }

    /// The address of the broker, for a proxy.
    pub(crate) fn address(&self) -> String {
        let url = url::Url::parse(&self.url).expect("a URL");
        format!("{}:{}", url.host_str().expect("a host"), url.port().unwrap_or(5672))
    }

    /// The same broker, through a proxy on this port.
    pub(crate) fn through(&self, port: u16) -> String {
        let mut url = url::Url::parse(&self.url).expect("a URL");
        url.set_host(Some("127.0.0.1")).expect("a host");
        url.set_port(Some(port)).expect("a port");
        url.to_string()
    }
}

impl Drop for RabbitPrefix {
    fn drop(&mut self) {
        let (url, names, kinds) = (self.url.clone(), self.names(), self.kinds.clone());
        finish(async move {
            let Ok(connection) = Connection::connect(&url, ConnectionProperties::default()).await else { return };
            let queues = kinds.iter().map(|kind| names.queue(kind)).chain([names.dead(), names.unrouted()]);
            for queue in queues {
                if let Ok(channel) = connection.create_channel().await {
                    _ = channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await;
                }
            }
            for exchange in [names.jobs(), names.dead(), names.unrouted()] {
                if let Ok(channel) = connection.create_channel().await {
                    _ = channel.exchange_delete(exchange.as_str().into(), ExchangeDeleteOptions::default()).await;
                }
            }
            _ = connection.close(200, "bye".into()).await;
        });
    }
}

/// A SQLite file of a test's own.
pub(crate) struct LiteFile {
    pub(crate) folder: TempDir,
}

impl LiteFile {
    pub(crate) fn create() -> Self {
        Self { folder: tempfile::tempdir().expect("a temporary folder") }
    }

    /// The database in it, with its schema.
    pub(crate) async fn open(&self) -> Arc<Database> {
        let database = Arc::new(Database::open(self.folder.path(), Use::Owner).await.expect("a fresh file"));
        Sqlite::new(database.clone()).migrate().await.expect("a fresh file");
        database
    }
}
