//! The one SQLite file of an embedded installation: who may open it, how it is read, and how it is written.
//!
//! SQLite has one writer at a time, so all writes of a process go through one connection and one task, which commits
//! whatever has gathered while the commit before it was under way: a single durable commit costs the disk's flush, and a
//! hundred in one cost the same. A write that fails harms no other of its commit. The store and the embedded broker share
//! this file and know nothing of each other.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, SqliteConnection, SqlitePool,
    query::Query,
    sqlite::{Sqlite, SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::sync::{mpsc, oneshot};
use tracing::error;

/// How many writes go into one commit at most.
const WRITES: usize = 64;
/// How many read at once.
const READERS: u32 = 4;
/// How many rows are read ahead of whoever takes them: mostly all that were asked for, since a thread that waits in between has to
/// be woken again.
const READ_AHEAD: usize = 500;
/// How long another process, an operator's command for instance, may hold the file.
const BUSY: Duration = Duration::from_secs(5);

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process runs on it.
    #[error("{} is in use by process {pid}: one installation runs in one process", path.display())]
    InUse {
        /// The data folder.
        path: PathBuf,
        /// Who.
        pid: String,
    },
    /// The folder or a file in it cannot be used.
    #[error("{} cannot be used", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// SQLite cannot open it.
    #[error("{} cannot be opened", path.display())]
    Sqlite {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
}

/// Why a write was not done.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WriteError {
    /// SQLite refused it.
    #[error("SQLite refused the write")]
    Sqlite(#[source] Arc<sqlx::Error>),
    /// The process is on its way out.
    #[error("the database is closed")]
    Closed,
}

/// The file, open.
#[derive(Debug)]
pub struct Database {
    path: PathBuf,
    readers: SqlitePool,
    writes: mpsc::UnboundedSender<Message>,
    /// Held for as long as the process runs on the file.
    _lock: Option<File>,
}

/// Whether a process runs an installation on the file, or looks in for a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Runs on it: there is only one.
    Owner,
    /// Looks in: an operator's command.
    Visitor,
}

enum Message {
    Write(Box<dyn Work>),
    Close(oneshot::Sender<()>),
}

/// The name of the database within its folder.
const FILE: &str = "warren.db";
/// The name of the lock beside it.
const LOCK: &str = "warren.lock";

impl Database {
    /// Opens the database in a folder, which an owner makes if it is not there. Must be called within a tokio runtime.
    pub async fn open(folder: &Path, as_: Use) -> Result<Self, OpenError> {
        let lock = match as_ {
            Use::Owner => {
                let io = |source| OpenError::Io { path: folder.to_owned(), source };
                std::fs::create_dir_all(folder).map_err(io)?;
                Some(lock(folder)?)
            }
            Use::Visitor => None,
        };
        let path = folder.join(FILE);
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(as_ == Use::Owner)
            .journal_mode(SqliteJournalMode::Wal)
            // A commit is on the disk before it is answered: anything less may lose an accepted job with the power.
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY)
            .pragma("wal_autocheckpoint", "4000")
            // A reader that has found so many rows waits until some have been taken.
            .row_buffer_size(READ_AHEAD)
            .disable_statement_logging();
        let sqlite = |source| OpenError::Sqlite { path: path.clone(), source };
        let writer = options.connect().await.map_err(sqlite)?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .test_before_acquire(false)
            .connect_with(options.read_only(true))
            .await
            .map_err(sqlite)?;
        let (writes, received) = mpsc::unbounded_channel();
        tokio::spawn(write_all(writer, received));
        Ok(Self { path, readers, writes, _lock: lock })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// For reading. What was written is seen as soon as its write was answered.
    pub fn readers(&self) -> &SqlitePool {
        &self.readers
    }

    /// Writes in a transaction that may hold other writes too, and answers when it is on the disk. `work` may run more
    /// than once, must do nothing but write, and ends with its first error: SQLite may have rolled all of it back by then.
    pub async fn write<T, F>(&self, work: F) -> Result<T, WriteError>
    where
        T: Send + 'static,
        F: for<'c> Fn(&'c mut SqliteConnection) -> BoxFuture<'c, sqlx::Result<T>> + Send + Sync + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let write = Box::new(Write { work, done: None, answer });
        self.writes.send(Message::Write(write)).map_err(|_| WriteError::Closed)?;
        answered.await.unwrap_or(Err(WriteError::Closed))
    }

    /// Writes all that was asked for so far, and nothing after it.
    pub async fn close(&self) {
        let (done, answer) = oneshot::channel();
        if self.writes.send(Message::Close(done)).is_ok() {
            _ = answer.await;
        }
        self.readers.close().await;
    }
}

/// Takes the folder for this process, or says whose it is.
fn lock(folder: &Path) -> Result<File, OpenError> {
    let path = folder.join(LOCK);
    let io = |source| OpenError::Io { path: path.clone(), source };
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(io)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            file.read_to_string(&mut pid).map_err(io)?;
            return Err(OpenError::InUse { path: folder.to_owned(), pid: pid.trim().to_owned() });
        }
        Err(TryLockError::Error(source)) => return Err(io(source)),
    }
    file.set_len(0).map_err(io)?;
    file.rewind().map_err(io)?;
    writeln!(file, "{}", std::process::id()).map_err(io)?;
    Ok(file)
}

/// One write.
#[async_trait]
trait Work: Send {
    async fn run(&mut self, connection: &mut SqliteConnection) -> sqlx::Result<()>;
    fn answer(self: Box<Self>, committed: Result<(), Arc<sqlx::Error>>);
}

struct Write<F, T> {
    work: F,
    done: Option<T>,
    answer: oneshot::Sender<Result<T, WriteError>>,
}

#[async_trait]
impl<F, T> Work for Write<F, T>
where
    T: Send,
    F: for<'c> Fn(&'c mut SqliteConnection) -> BoxFuture<'c, sqlx::Result<T>> + Send + Sync,
{
    async fn run(&mut self, connection: &mut SqliteConnection) -> sqlx::Result<()> {
        self.done = Some((self.work)(connection).await?);
        Ok(())
    }

    fn answer(self: Box<Self>, committed: Result<(), Arc<sqlx::Error>>) {
        let Self { work, done, answer: answered } = *self;
        // Before the answer, so that whoever gets it is alone in holding what was written.
        drop(work);
        let answer = match (committed, done) {
            (Ok(()), Some(done)) => Ok(done),
            (Ok(()), None) => Err(WriteError::Closed),
            (Err(error), _) => Err(WriteError::Sqlite(error)),
        };
        // Whoever asked may have gone away; the write is done all the same.
        _ = answered.send(answer);
    }
}

async fn write_all(mut connection: SqliteConnection, mut messages: mpsc::UnboundedReceiver<Message>) {
    let mut received = Vec::with_capacity(WRITES);
    let mut closing = None;
    while closing.is_none() {
        if messages.recv_many(&mut received, WRITES).await == 0 {
            closing = Some(None);
        }
        let mut works = Vec::with_capacity(received.len());
        for message in received.drain(..) {
            match message {
                Message::Write(work) => works.push(work),
                Message::Close(done) => closing = Some(Some(done)),
            }
        }
        commit(&mut connection, works).await;
    }
    if let Err(error) = connection.close().await {
        error!(%error, "SQLite did not close cleanly");
    }
    if let Some(Some(done)) = closing {
        _ = done.send(());
    }
}

/// Does all in one transaction; where one of them fails, each in its own.
async fn commit(connection: &mut SqliteConnection, mut works: Vec<Box<dyn Work>>) {
    if works.is_empty() {
        return;
    }
    match transact(connection, &mut works).await {
        Ok(()) => works.into_iter().for_each(|work| work.answer(Ok(()))),
        Err(error) if works.len() == 1 => {
            let error = Arc::new(error);
            for work in works {
                work.answer(Err(error.clone()));
            }
        }
        Err(_) => {
            for work in works {
                let mut alone = vec![work];
                let done = transact(connection, &mut alone).await.map_err(Arc::new);
                for work in alone {
                    work.answer(done.clone());
                }
            }
        }
    }
}

async fn transact(connection: &mut SqliteConnection, works: &mut [Box<dyn Work>]) -> sqlx::Result<()> {
    let mut done = connection.execute("BEGIN IMMEDIATE").await.map(drop);
    for work in works {
        if done.is_err() {
            break;
        }
        done = work.run(connection).await;
    }
    if done.is_ok() {
        done = connection.execute("COMMIT").await.map(drop);
    }
    if done.is_err() {
        // SQLite has rolled back by itself after some errors, and then says that there is nothing to roll back.
        _ = connection.execute("ROLLBACK").await;
    }
    done
}

/// A statement over many rows, in a few fixed sizes: SQLite reads a statement's text once for each size and no more, and what is
/// cut into few statements goes to its thread and back few times.
#[derive(Debug)]
pub struct MultiRow {
    sizes: [(usize, Arc<str>); Self::SIZES.len()],
}

impl MultiRow {
    const SIZES: [usize; 9] = [256, 128, 64, 32, 16, 8, 4, 2, 1];

    /// `head`, then for each row `row` joined by commas, then `tail`. All three are constants of the program.
    pub fn new(head: &'static str, row: &'static str, tail: &'static str) -> Self {
        let sizes = Self::SIZES.map(|size| {
            let rows = vec![row; size].join(",");
            (size, Arc::from(format!("{head} {rows} {tail}")))
        });
        Self { sizes }
    }

    /// Cuts rows into statements.
    pub fn statements<'a, R>(
        &'a self,
        mut rows: &'a [R],
    ) -> impl Iterator<Item = (Query<'a, Sqlite, SqliteArguments>, &'a [R])> {
        std::iter::from_fn(move || {
            let (size, text) = self.sizes.iter().find(|(size, _)| *size <= rows.len())?;
            let (now, later) = rows.split_at(*size);
            rows = later;
            Some((sqlx::query(AssertSqlSafe(text.clone())), now))
        })
    }
}

/// The same statement many times over, in a few fixed sizes, that goes to SQLite's thread once.
#[derive(Debug)]
pub struct Repeated {
    sizes: [(usize, Arc<str>); Self::SIZES.len()],
}

impl Repeated {
    const SIZES: [usize; 4] = [1, 4, 16, 64];
    /// How often at most.
    pub const MOST: usize = 64;

    /// Questions: what answers the first of them is found first, then what answers the second, and so on. `select` is a
    /// constant of the program.
    pub fn questions(select: &'static str) -> Self {
        Self::new(|size| vec![format!("SELECT * FROM ({select})"); size].join(" UNION ALL "))
    }

    /// Commands, done one after the other. `command` is a constant of the program. That sqlx takes several with arguments is
    /// deprecated; nothing else of it does with one message to that thread.
    pub fn commands(command: &'static str) -> Self {
        Self::new(|size| vec![command; size].join(";"))
    }

    fn new(text: impl Fn(usize) -> String) -> Self {
        Self { sizes: Self::SIZES.map(|size| (size, Arc::from(text(size)))) }
    }

    /// A statement with room for at least so many, of no more than [`Self::MOST`], and for how many it has room: some that
    /// find nothing cost less than a second statement. What is not bound is NULL.
    pub fn statement<'a>(&self, least: usize) -> (Query<'a, Sqlite, SqliteArguments>, usize) {
        debug_assert!(least <= Self::MOST, "{least} are more than one statement holds");
        let [.., most] = &self.sizes;
        let (size, text) = self.sizes.iter().find(|(size, _)| *size >= least).unwrap_or(most);
        (sqlx::query(AssertSqlSafe(text.clone())), *size)
    }
}
