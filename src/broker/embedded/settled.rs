//! What is settled and not deleted yet, of all kinds.
//!
//! Nobody waits for that: what is deleted too late comes again after a crash and meets the fence. So it waits a moment, and is
//! then deleted for all kinds in one write, of each kind in as few statements as what is still out allows. What could not be
//! deleted is tried again.

use std::{
    mem,
    ops::RangeInclusive,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
    time::Duration,
};

use sqlx::SqliteConnection;
use tokio::time::{sleep, timeout};
use tracing::warn;

use super::{queue::Queue, rows};
use crate::{
    crash_point,
    job::{Kind, chain},
    retry::Reconnect,
    sqlite::{Database, WriteError},
};

/// How long what is settled waits for more, that all of it be deleted at once.
const LAZY: Duration = Duration::from_millis(50);
/// How long whoever ends a line waits for what it has settled to be deleted.
const DELETED_WITHIN: Duration = Duration::from_secs(5);

/// What is to be deleted.
#[derive(Clone)]
pub(super) struct Settled {
    /// Whoever has let the broker go may open the file again at once, whatever waits here.
    database: Weak<Database>,
    waiting: Arc<Mutex<Waiting>>,
}

#[derive(Default)]
struct Waiting {
    /// Queues that have something settled of which nobody has asked yet. Weak, since they hold the database.
    queues: Vec<Weak<Queue>>,
    /// What was asked of them and is not surely deleted.
    asked: Vec<Arc<Runs>>,
    /// A task is at it.
    being_deleted: bool,
}

/// Of each kind numbers that hold nothing which is not settled, and never will again.
type Runs = Vec<(Kind, Vec<RangeInclusive<i64>>)>;

impl Settled {
    pub(super) fn new(database: &Arc<Database>) -> Self {
        Self { database: Arc::downgrade(database), waiting: Arc::default() }
    }

    /// Something of this queue is settled, for the first time since it was last asked what is. Must be called within a tokio
    /// runtime.
    pub(super) fn has_some(&self, queue: &Arc<Queue>) {
        let mut waiting = lock(&self.waiting);
        waiting.queues.push(Arc::downgrade(queue));
        self.see_to_it(&mut waiting);
    }

    /// Lets a task delete what waits, if there is none.
    fn see_to_it(&self, waiting: &mut Waiting) {
        if !mem::replace(&mut waiting.being_deleted, true) {
            tokio::spawn(self.clone().delete_lazily());
        }
    }

    /// Deletes what is settled a moment later, until nothing is.
    async fn delete_lazily(self) {
        let mut pauses = Reconnect::new();
        let mut pause = LAZY;
        loop {
            sleep(pause).await;
            pause = match self.delete_now().await {
                Ok(()) => {
                    pauses.reset();
                    LAZY
                }
                Err(WriteError::Closed) => return,
                Err(error) => {
                    // What is settled meanwhile waits for this task.
                    let pause = pauses.pause();
                    warn!(error = chain(&error), ?pause, "could not delete settled jobs; they wait");
                    pause
                }
            };
            let mut waiting = lock(&self.waiting);
            if waiting.queues.is_empty() && waiting.asked.is_empty() {
                waiting.being_deleted = false;
                return;
            }
        }
    }

    /// Deletes all that is settled, and answers when that is on the disk, also what is being deleted already.
    async fn delete_now(&self) -> Result<(), WriteError> {
        let database = self.database.upgrade().ok_or(WriteError::Closed)?;
        let deletion = Arc::new(Deletion { waiting: self.waiting.clone(), runs: OnceLock::new() });
        let deletes = deletion.clone();
        let deleted = database.write(move |connection| {
            let deletes = deletes.clone();
            Box::pin(async move { deletes.run(connection).await })
        });
        deleted.await.inspect(|()| deletion.forget())?;
        crash_point!("broker: acknowledged");
        Ok(())
    }

    /// The same for whoever is about to end, which is not to take long.
    pub(super) async fn delete_before_the_end(&self) {
        let reason = match timeout(DELETED_WITHIN, self.delete_now()).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => chain(&error),
            Err(elapsed) => chain(&elapsed),
        };
        warn!(reason, "could not delete settled jobs; the fence keeps them from running again");
        self.see_to_it(&mut lock(&self.waiting));
    }
}

/// One write that deletes what is settled by then.
struct Deletion {
    waiting: Arc<Mutex<Waiting>>,
    /// A write may be done more than once: what it deletes is said the first time.
    runs: OnceLock<Vec<Arc<Runs>>>,
}

impl Deletion {
    async fn run(&self, connection: &mut SqliteConnection) -> sqlx::Result<()> {
        let all = self.runs.get_or_init(|| {
            let queues = mem::take(&mut lock(&self.waiting).queues);
            let queues = queues.iter().filter_map(Weak::upgrade);
            // Not while what waits is locked: a queue that is being settled holds its own lock, and waits for that one.
            let new: Runs = queues.map(|queue| (queue.kind().clone(), queue.take_settled())).collect();
            let mut waiting = lock(&self.waiting);
            if !new.is_empty() {
                waiting.asked.push(Arc::new(new));
            }
            waiting.asked.clone()
        });
        let kinds = all.iter().flat_map(|runs| runs.iter());
        let each: Vec<_> = kinds.flat_map(|(kind, runs)| runs.iter().map(move |run| (kind, run))).collect();
        rows::delete(connection, &each).await
    }

    /// It is on the disk.
    fn forget(&self) {
        let done = self.runs.get().map_or(&[][..], Vec::as_slice);
        lock(&self.waiting).asked.retain(|runs| !done.iter().any(|done| Arc::ptr_eq(done, runs)));
    }
}

fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;
    use uuid::Uuid;

    use super::{
        super::{Embedded, unsettled},
        *,
    };
    use crate::{
        broker::{Delivery, Outgoing, Publish as _, Sink, Subscribe as _, Subscription},
        job::Envelope,
        sqlite::Use,
        store::{Installation as _, sqlite::Sqlite},
    };

    /// Lets nothing be deleted.
    const NO: &str = "CREATE TRIGGER no BEFORE DELETE ON messages BEGIN SELECT RAISE(ABORT, 'no'); END";

    struct Basket(mpsc::UnboundedSender<Delivery>);

    impl Sink for Basket {
        fn deliver(&self, burst: Vec<Delivery>) {
            for delivery in burst {
                self.0.send(delivery).expect("someone takes it");
            }
        }
    }

    struct Bench {
        folder: tempfile::TempDir,
        database: Arc<Database>,
        broker: Embedded,
        line: Arc<dyn Subscription>,
        came: mpsc::UnboundedReceiver<Delivery>,
    }

    /// Waits for something that comes by itself.
    async fn until(is_so: impl AsyncFn() -> bool) {
        let comes = async {
            while !is_so().await {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(20), comes).await.expect("it comes");
    }

    fn kind() -> Kind {
        Kind::new("a.b").expect("a good name")
    }

    impl Bench {
        async fn new() -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let database = Arc::new(Database::open(folder.path(), Use::Owner).await.expect("a database"));
            Sqlite::new(database.clone()).migrate().await.expect("a schema");
            let broker = Embedded::open(database.clone()).await.expect("a broker");
            let (sender, came) = mpsc::unbounded_channel();
            let line = broker.subscribe(&kind(), 10, Arc::new(Basket(sender)));
            Self { folder, database, broker, line, came }
        }

        async fn settle_one(&mut self) {
            let job = Outgoing { envelope: Envelope::new(Uuid::from_u128(7), kind(), 1, 5), body: Vec::new() };
            self.broker.publish(job).await.expect("it is on the disk");
            let delivery = self.came.recv().await.expect("a delivery");
            self.line.settle(&[delivery.receipt]);
        }

        /// How many are left in the file.
        async fn left(&self) -> u64 {
            unsettled(&self.database).await.expect("it answers").iter().map(|(_, count)| count).sum()
        }

        async fn execute(&self, statement: &'static str) {
            let done = self.database.write(move |connection| {
                Box::pin(async move { sqlx::query(statement).execute(connection).await.map(drop) })
            });
            done.await.expect("a statement");
        }
    }

    #[tokio::test]
    async fn what_is_settled_leaves_the_file_by_itself_each_time() {
        let mut bench = Bench::new().await;
        for _ in 0..2 {
            bench.settle_one().await;
            until(async || bench.left().await == 0).await;
        }
    }

    #[tokio::test]
    async fn what_could_not_be_deleted_is_tried_again_and_forgotten_when_it_is() {
        let mut bench = Bench::new().await;
        let waiting = bench.broker.shared.settled.waiting.clone();
        bench.execute(NO).await;
        bench.settle_one().await;
        until(async || !lock(&waiting).asked.is_empty()).await;
        // Writes are done one after the other: once another is done, that one has failed.
        bench.execute("PRAGMA user_version").await;
        assert_eq!(bench.left().await, 1);
        bench.execute("DROP TRIGGER no").await;
        until(async || bench.left().await == 0).await;
        until(async || lock(&waiting).asked.is_empty() && !lock(&waiting).being_deleted).await;
    }

    #[tokio::test]
    async fn who_has_let_the_broker_go_opens_the_file_again_whatever_cannot_be_deleted() {
        let mut bench = Bench::new().await;
        bench.execute(NO).await;
        bench.settle_one().await;
        let Bench { folder, database, broker, line, .. } = bench;
        drop((database, broker, line));
        until(async || Database::open(folder.path(), Use::Owner).await.is_ok()).await;
    }
}
