//! The broker port in one SQLite file, for an installation in one process.
//!
//! Keeps the contract of the port: a publish is answered when it is on the disk; that a message may have been given out
//! is on the disk before its sink sees it (a mark that is moved ahead of the deliveries, in steps); and after a crash
//! what was not settled comes again, counted. What is settled is deleted a moment later, for nobody waits for that: a
//! message that comes again although its job is recorded meets the fence. What was just written is mostly given out from
//! memory. What all kinds have to read or to delete is done together, and of one kind deleted in runs, over the numbers of
//! other kinds between.

mod fresh;
mod line;
mod publish;
mod queue;
mod reads;
mod rows;
mod settled;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
};

use async_trait::async_trait;
use sqlx::{Row as _, SqliteConnection};
use tokio_util::sync::{CancellationToken, DropGuard};

use self::{line::Line, queue::Queue, reads::Reads, settled::Settled};
use crate::{
    broker::{Observe, Outgoing, Publish, Publishing, PublishingAll, Sink, Subscribe, Subscription, way_in::WayIn},
    job::Kind,
    sqlite::{Database, WriteError},
};

/// The broker in one SQLite file.
pub struct Embedded {
    shared: Arc<Shared>,
    way_in: WayIn,
    _pumping: DropGuard,
}

/// What the way in and the way out share.
struct Shared {
    database: Arc<Database>,
    reads: Arc<Reads>,
    settled: Arc<Settled>,
    queues: Mutex<BTreeMap<Kind, Arc<Queue>>>,
    /// The number of the next message, over all kinds.
    next: AtomicI64,
    stop: CancellationToken,
}

impl Shared {
    /// The queue of a kind; its pump begins with it.
    fn queue(&self, kind: &Kind) -> Arc<Queue> {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = queues.entry(kind.clone()).or_insert_with(|| {
            let (reads, settled) = (self.reads.clone(), self.settled.clone());
            let queue = Arc::new(Queue::new(kind.clone(), self.database.clone(), reads, settled));
            tokio::spawn(self.stop.clone().run_until_cancelled_owned(queue.clone().pump()));
            queue
        });
        queue.clone()
    }

    fn queues(&self) -> Vec<Arc<Queue>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

impl Embedded {
    /// Takes up what an earlier process left. The schema must be up to date; must be called within a tokio runtime.
    pub async fn open(database: Arc<Database>) -> Result<Self, WriteError> {
        let left = database.write(|connection| Box::pin(recover(connection))).await?;
        let last = left.iter().map(|left| left.last).max().unwrap_or(0);
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            reads: Arc::new(Reads::open(database.clone())),
            settled: Arc::new(Settled::new(&database)),
            database,
            queues: Mutex::default(),
            next: AtomicI64::new(last + 1),
            stop: stop.clone(),
        });
        for Left { kind, last, count } in left {
            // A kind that breaks the rule cannot have been published by this program.
            if let Ok(kind) = Kind::new(&kind) {
                shared.queue(&kind).left(last, count);
            }
        }
        let way_in = publish::open(shared.clone());
        Ok(Self { shared, way_in, _pumping: stop.drop_guard() })
    }

    /// Writes down what is out, exactly, so that the next process counts no more than that as given out. To be called
    /// after all subscriptions are closed.
    pub async fn close(&self) -> Result<(), WriteError> {
        let out: Arc<[(Kind, Vec<i64>)]> =
            self.shared.queues().iter().map(|queue| (queue.kind().clone(), queue.returned())).collect();
        self.shared
            .database
            .write(move |connection| {
                let out = out.clone();
                Box::pin(async move { rows::write_down_given(connection, &out).await })
            })
            .await
    }
}

/// How many messages of each kind are not settled, as the file tells anyone who looks in.
pub async fn unsettled(database: &Database) -> sqlx::Result<Vec<(String, u64)>> {
    let rows = sqlx::query("SELECT kind, count(*) FROM messages GROUP BY kind").fetch_all(database.readers()).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get::<i64, _>(1)?.cast_unsigned()))).collect()
}

struct Left {
    kind: String,
    last: i64,
    count: u64,
}

/// Counts what a process that is gone may have given out.
async fn recover(connection: &mut SqliteConnection) -> sqlx::Result<Vec<Left>> {
    sqlx::query(
        "UPDATE messages SET given = given + 1
         FROM marks WHERE marks.kind = messages.kind AND messages.seq <= marks.upto",
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query("DELETE FROM marks").execute(&mut *connection).await?;
    let left = sqlx::query("SELECT kind, max(seq), count(*) FROM messages GROUP BY kind");
    left.fetch_all(connection)
        .await?
        .iter()
        .map(|row| Ok(Left { kind: row.try_get(0)?, last: row.try_get(1)?, count: row.try_get(2)? }))
        .collect()
}

impl Publish for Embedded {
    fn publish_all(&self, jobs: Vec<Outgoing>) -> PublishingAll {
        self.way_in.publish_all(jobs)
    }

    fn publish(&self, job: Outgoing) -> Publishing {
        self.way_in.publish(job)
    }

    fn health(&self) -> Result<(), String> {
        Ok(())
    }
}

impl Subscribe for Embedded {
    fn subscribe(&self, kind: &Kind, prefetch: u16, sink: Arc<dyn Sink>) -> Arc<dyn Subscription> {
        let queue = self.shared.queue(kind);
        let number = queue.join(prefetch, sink);
        Arc::new(Line::new(queue, number))
    }

    fn health(&self) -> Result<(), String> {
        Ok(())
    }
}

#[async_trait]
impl Observe for Embedded {
    async fn depths(&self, kinds: &[Kind]) -> Result<Vec<u64>, String> {
        Ok(kinds.iter().map(|kind| self.shared.queue(kind).waiting()).collect())
    }

    async fn limits(&self, _: &[Kind]) -> Result<(), String> {
        // What bounds them is the disk, and a full one refuses publishes by itself.
        Ok(())
    }
}

impl std::fmt::Debug for Embedded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Embedded").field("next", &self.shared.next.load(Relaxed)).finish_non_exhaustive()
    }
}
