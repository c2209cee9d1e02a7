//! Whether jobs may start: not while the database is away.
//!
//! Starting more than can be recorded gains nothing and risks repeats, so after a moment without the database nothing
//! new starts; what is held stays held, because giving it back counts against it.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
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
    /// Whether the database is away at all, for those who ask before every job.
    missing: AtomicBool,
    since: Mutex<Option<Instant>>,
}

impl Gate {
    pub(super) fn is_open(&self) -> bool {
        !self.missing.load(Relaxed) || self.missing_for().is_none_or(|missing| missing < PATIENCE)
    }

    /// The database has owed an answer since then, which may yet come.
    pub(super) fn owed(&self, asked: Instant) {
        if asked.elapsed() >= PATIENCE {
            self.missed(asked);
        }
    }

    /// For how long the database has been away.
    pub(super) fn missing_for(&self) -> Option<Duration> {
        self.lock().map(|since| since.elapsed())
    }

    /// The database answered.
    pub(super) fn reached(&self) {
        if self.missing.load(Relaxed)
            && let Some(since) = self.lock().take()
        {
            self.missing.store(false, Relaxed);
            info!(away = ?since.elapsed(), "the database is back");
        }
    }

    /// The database did not answer what it was asked at this time.
    pub(super) fn missed(&self, asked: Instant) {
        let mut since = self.lock();
        if since.is_none() {
            *since = Some(asked);
            self.missing.store(true, Relaxed);
            warn!("the database is away; if it stays so for {PATIENCE:?}, no new job starts until it is back");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
