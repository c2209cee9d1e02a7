//! Whether jobs may start: not while the database is away.
//!
//! Starting more than can be recorded gains nothing and risks repeats, so after a moment without the database nothing
//! new starts; what is held stays held, because giving it back counts against it.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tracing::{info, warn};

/// How long the database may be away before nothing new starts.
const PATIENCE: Duration = Duration::from_secs(5);

/// Whether jobs may start.
#[derive(Debug, Default)]
pub(super) struct Gate {
    closed: AtomicBool,
    missing_since: Mutex<Option<Instant>>,
}

impl Gate {
    pub(super) fn is_open(&self) -> bool {
        !self.closed.load(Relaxed)
    }

    /// Since when the database has been away.
    pub(super) fn missing_for(&self) -> Option<Duration> {
        self.lock().map(|since| since.elapsed())
    }

    /// The database answered.
    pub(super) fn reached(&self) {
        if self.lock().take().is_some() && self.closed.swap(false, Relaxed) {
            info!("the database is back; jobs start again");
        }
    }

    /// The database did not answer.
    pub(super) fn missed(&self) {
        let since = *self.lock().get_or_insert_with(Instant::now);
        if since.elapsed() >= PATIENCE && !self.closed.swap(true, Relaxed) {
            warn!("the database has been away for {PATIENCE:?}; no new job starts until it is back");
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.missing_since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
