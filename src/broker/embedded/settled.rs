//! What is settled and not deleted yet, of all kinds.
//!
//! Nobody waits for that: what is deleted too late comes again after a crash and meets the fence. So it waits a moment, and is
//! then deleted for all kinds in one write, of each kind in as few statements as what is still out allows.

use std::{
    mem,
    ops::RangeInclusive,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use sqlx::SqliteConnection;

use super::{queue::Queue, rows};
use crate::{
    job::Kind,
    sqlite::{Database, WriteError},
};

/// The queues of which something is to be deleted.
pub(super) struct Settled {
    database: Arc<Database>,
    queues: Queues,
}

#[derive(Clone, Default)]
struct Queues(Arc<Mutex<Vec<Arc<Queue>>>>);

impl Queues {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Queue>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Settled {
    pub(super) fn new(database: Arc<Database>) -> Self {
        Self { database, queues: Queues::default() }
    }

    /// Something of this queue is settled, for the first time since it was last asked what is.
    pub(super) fn has_some(&self, queue: Arc<Queue>) {
        let mut queues = self.queues.lock();
        queues.push(queue);
        let is_first = queues.len() == 1;
        drop(queues);
        if is_first {
            let deletion = self.deletion();
            self.database.write_lazily(move |connection| {
                let deletion = deletion.clone();
                Box::pin(async move { deletion.run(connection).await })
            });
        }
    }

    /// Deletes all that is settled, and answers when that is on the disk, also what is being deleted already.
    pub(super) async fn delete_now(&self) -> Result<(), WriteError> {
        let deletion = self.deletion();
        let written = self.database.write(move |connection| {
            let deletion = deletion.clone();
            Box::pin(async move { deletion.run(connection).await })
        });
        written.await
    }

    fn deletion(&self) -> Arc<Deletion> {
        Arc::new(Deletion { queues: self.queues.clone(), runs: OnceLock::new() })
    }
}

/// One write that deletes what is settled by then.
struct Deletion {
    queues: Queues,
    /// A write may be done more than once: what it deletes is said the first time.
    runs: OnceLock<Vec<(Kind, Vec<RangeInclusive<i64>>)>>,
}

impl Deletion {
    async fn run(&self, connection: &mut SqliteConnection) -> sqlx::Result<()> {
        let runs = self.runs.get_or_init(|| {
            let queues = mem::take(&mut *self.queues.lock());
            queues.into_iter().map(|queue| (queue.kind().clone(), queue.take_settled())).collect()
        });
        for (kind, runs) in runs {
            rows::delete(connection, kind, runs).await?;
        }
        Ok(())
    }
}
