//! How connections are made, and what their errors mean.

use std::{fmt, str::FromStr, time::Duration};

use sqlx::{
    ConnectOptions as _, Executor as _, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::time::timeout;

use crate::store::StoreError;

/// How long a whole unit of work may take. sqlx has no timeout of its own: a database that vanished would hang it.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);
/// How long a connection that comes back to the pool may take to answer.
const ROLLBACK: Duration = Duration::from_secs(2);
/// How long whoever asks waits for a connection of the pool.
const ACQUIRE: Duration = Duration::from_secs(3);

/// Where the database is, with its password. Never printed whole.
#[derive(Clone)]
pub struct PgUrl(PgConnectOptions);

/// A text that is no Postgres URL. Does not repeat it: it may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a Postgres URL reads postgres://user:password@host:port/database")]
pub struct BadPgUrl;

impl FromStr for PgUrl {
    type Err = BadPgUrl;

    fn from_str(text: &str) -> Result<Self, BadPgUrl> {
        if !text.starts_with("postgres://") && !text.starts_with("postgresql://") {
            return Err(BadPgUrl);
        }
        let options: PgConnectOptions = text.parse().map_err(|_| BadPgUrl)?;
        let options = options
            .application_name("warren")
            // Ends what a client that vanished has left running or open.
            .options([
                ("statement_timeout", "10s"),
                ("lock_timeout", "5s"),
                ("idle_in_transaction_session_timeout", "10s"),
                ("tcp_keepalives_idle", "10"),
                ("tcp_keepalives_interval", "5"),
                ("tcp_keepalives_count", "3"),
                // A plan that was made while the table was empty is kept until it has been analyzed, which can take a minute
                // in which a million rows came: none of our statements may prefer to read all of `jobs`.
                ("enable_seqscan", "off"),
                // Where a small table can only be read whole, that counts as so dear now that the plan would be compiled,
                // for a quarter of a second.
                ("jit", "off"),
                // What it has to say beside errors is for its own log.
                ("client_min_messages", "error"),
            ])
            .disable_statement_logging();
        Ok(Self(options))
    }
}

impl PgUrl {
    /// Its host and port. `None` if it is a socket in a folder.
    pub fn address(&self) -> Option<(&str, u16)> {
        self.0.get_socket().is_none().then(|| (self.0.get_host(), self.0.get_port()))
    }

    /// The same place, for work that may rightly take long.
    pub(super) fn without_timeouts(&self) -> Self {
        Self(self.0.clone().options([("statement_timeout", "0"), ("lock_timeout", "0"), ("enable_seqscan", "on")]))
    }

    /// The same place, for statements that take arrays and have one good plan however long those are: to plan a commit of
    /// a few rows anew takes the database longer than to do it.
    pub(super) fn with_one_plan(&self) -> Self {
        Self(self.0.clone().options([("plan_cache_mode", "force_generic_plan")]))
    }

    /// A connection of its own.
    pub(super) async fn connect(&self) -> Result<PgConnection, StoreError> {
        bounded(self.0.connect()).await
    }

    /// Connections for everything that is not on the hot path.
    pub(super) fn pool(&self, size: u32) -> PgPool {
        PgPoolOptions::new()
            .max_connections(size)
            .acquire_timeout(ACQUIRE)
            .test_before_acquire(false)
            // sqlx 0.9.0 can leave a transaction open behind a future that was dropped in `begin`; its next borrower
            // would write into it and see it vanish.
            .after_release(|connection, _| {
                Box::pin(async move {
                    // A ROLLBACK alone warns each time in the database's log that there is nothing to roll back; in a transaction
                    // that has failed BEGIN is refused, and the connection dropped. sqlx waits here for as long as TCP does; one
                    // that does not answer is dropped too.
                    match timeout(ROLLBACK, connection.execute("BEGIN; ROLLBACK")).await {
                        Ok(done) => done.map(|_| true),
                        Err(_) => Err(sqlx::Error::PoolTimedOut),
                    }
                })
            })
            .connect_lazy_with(self.0.clone())
    }
}

impl fmt::Display for PgUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "postgres://{}@{}:{}/{}",
            self.0.get_username(),
            self.0.get_host(),
            self.0.get_port(),
            self.0.get_database().unwrap_or_default()
        )
    }
}

impl fmt::Debug for PgUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Runs a unit of work under its deadline.
pub(super) async fn bounded<T>(work: impl Future<Output = sqlx::Result<T>>) -> Result<T, StoreError> {
    match timeout(DEADLINE, work).await {
        Ok(done) => done.map_err(classify),
        Err(elapsed) => Err(StoreError::Unavailable(elapsed.into())),
    }
}

/// Runs a unit of work in a task of its own, under its deadline: a caller that goes away leaves no half-open
/// transaction behind in a pooled connection.
pub(super) async fn detached<T, F>(work: F) -> Result<T, StoreError>
where
    T: Send + 'static,
    F: Future<Output = sqlx::Result<T>> + Send + 'static,
{
    match tokio::spawn(bounded(work)).await {
        Ok(done) => done,
        Err(panic) => Err(StoreError::Unavailable(panic.into())),
    }
}

/// What an error means for whoever asked.
pub(super) fn classify(error: sqlx::Error) -> StoreError {
    let code = match &error {
        sqlx::Error::Database(database) => database.code().unwrap_or_default().into_owned(),
        sqlx::Error::Encode(_) | sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. } => {
            return StoreError::Data(error.into());
        }
        sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed => return StoreError::NotReached(error.into()),
        // It was there a moment ago.
        sqlx::Error::RowNotFound => return StoreError::Conflict(error.into()),
        _ => return StoreError::Unavailable(error.into()),
    };
    match code.as_bytes() {
        // Serialization failure, deadlock, lock timeout.
        b"40001" | b"40P01" | b"55P03" => StoreError::Conflict(error.into()),
        // Data exceptions, constraints, and limits of a program: of this row, and of it alone.
        [b'2', b'2' | b'3', ..] | [b'5', b'4', ..] => StoreError::Data(error.into()),
        // Everything else is about the server: shutting down, out of space, cancelled by its own timeout, read-only.
        _ => StoreError::Unavailable(error.into()),
    }
}
