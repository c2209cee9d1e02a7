//! The jobs that are to be called off, as far as this process knows: at most a second old.
//!
//! Only a hint. Whoever acts on it asks the store first, for a tombstone may have been taken away again.

use std::{
    collections::HashSet,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior};
use tracing::debug;
use uuid::Uuid;

use crate::{
    job::chain,
    store::{Store, StoreError},
};

/// How often it looks for more.
const LOOK: Duration = Duration::from_millis(500);
/// How often it begins anew, so that those which have done their work are forgotten.
const ANEW: Duration = Duration::from_mins(1);

/// How many of those that it knows it looks at again.
const OVERLAP: i64 = 1000;

/// The jobs that are to be called off.
#[derive(Debug, Default)]
pub(super) struct Tombstones {
    /// Whether there is any, for those who ask before every job.
    any: AtomicBool,
    ids: Mutex<HashSet<Uuid>>,
}

impl Tombstones {
    pub(super) fn has_any(&self) -> bool {
        self.any.load(Relaxed)
    }

    pub(super) fn contains(&self, id: &Uuid) -> bool {
        self.has_any() && self.lock().contains(id)
    }

    /// Looks for more for as long as the process runs, and tells of those that are new.
    pub(super) async fn keep_up(&self, store: &dyn Store, mut tell: impl FnMut(HashSet<Uuid>)) {
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut last, mut began) = (0, Instant::now());
        loop {
            let now = ticks.tick().await;
            let anew = now - began >= ANEW;
            if anew {
                (last, began) = (0, now);
            }
            match self.look(store, &mut last, anew).await {
                Ok(new) if new.is_empty() => {}
                Ok(new) => tell(new),
                Err(error) => debug!(error = chain(&error), "cannot look for jobs that are called off"),
            }
        }
    }

    async fn look(&self, store: &dyn Store, last: &mut i64, anew: bool) -> Result<HashSet<Uuid>, StoreError> {
        // Numbers are given before they are committed, so a smaller one may come into sight later.
        let found = store.tombstones(*last - OVERLAP).await?;
        *last = found.last().map_or(*last, |newest| newest.seq.max(*last));
        let mut ids = self.lock();
        if anew {
            ids.clear();
        }
        let new = found.iter().map(|tombstone| tombstone.id).filter(|id| ids.insert(*id)).collect();
        self.any.store(!ids.is_empty(), Relaxed);
        Ok(new)
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<Uuid>> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
