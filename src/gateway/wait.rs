//! Those who wait for jobs to end.
//!
//! However many wait, one query asks for all of them, and none is made while nobody waits.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::debug;
use uuid::Uuid;

use crate::{
    job::{Tenant, chain},
    store::Jobs,
};

/// How often it is asked, at most.
const EVERY: Duration = Duration::from_millis(20);
/// The asking takes at most this part of the time.
const SHARE: u32 = 5;
/// How long it waits for a database that is away.
const PAUSE: Duration = Duration::from_millis(500);

/// Those who wait for jobs to end.
pub(super) struct Waiters {
    shared: Arc<Shared>,
    _asking: DropGuard,
}

struct Shared {
    store: Arc<dyn Jobs>,
    waiting: Mutex<HashMap<Uuid, Vec<Waiter>>>,
    come: Notify,
}

/// Someone who waits for a job of this tenant.
type Waiter = (Tenant, oneshot::Sender<()>);

impl Waiters {
    /// Must be called within a tokio runtime.
    pub(super) fn new(store: Arc<dyn Jobs>) -> Self {
        let shared = Arc::new(Shared { store, waiting: Mutex::default(), come: Notify::new() });
        let stop = CancellationToken::new();
        let asking = shared.clone();
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move { asking.ask().await }));
        Self { shared, _asking: stop.drop_guard() }
    }

    /// Waits until a job of this tenant is over, but no longer than this. Another tenant's is never over.
    pub(super) async fn wait(&self, tenant: &Tenant, id: Uuid, at_most: Duration) {
        let (over, told) = oneshot::channel();
        self.shared.lock().entry(id).or_default().push((tenant.clone(), over));
        self.shared.come.notify_one();
        // Whoever has waited long enough finds out for himself.
        _ = timeout(at_most, told).await;
    }
}

impl Shared {
    async fn ask(&self) {
        loop {
            let ids = self.ids();
            if ids.is_empty() {
                self.come.notified().await;
                continue;
            }
            let asked = Instant::now();
            let pause = match self.store.lookup(&ids).await {
                Ok(known) => {
                    let mut waiting = self.lock();
                    for over in known.iter().filter(|known| known.state.is_terminal()) {
                        let Some(waiters) = waiting.get_mut(&over.id) else { continue };
                        for (_, waiter) in waiters.extract_if(.., |(tenant, _)| *tenant == over.tenant) {
                            _ = waiter.send(());
                        }
                    }
                    EVERY.max(asked.elapsed() * SHARE)
                }
                Err(error) => {
                    debug!(error = chain(&error), "cannot ask for those who wait");
                    PAUSE
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// The jobs that someone still waits for.
    fn ids(&self) -> Vec<Uuid> {
        let mut waiting = self.lock();
        waiting.retain(|_, waiters| {
            waiters.retain(|(_, waiter)| !waiter.is_closed());
            !waiters.is_empty()
        });
        waiting.keys().copied().collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Vec<Waiter>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
