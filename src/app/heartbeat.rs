//! What a process tells of itself: that it lives, what it runs, and how much it has published.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;
use tracing::debug;
use uuid::Uuid;

use super::{Roles, published::Counted};
use crate::{
    job::chain,
    store::{Instance, Store, Work},
};

/// How often.
const EVERY: Duration = Duration::from_secs(5);

/// One process's signs of life.
pub(super) struct Heart {
    pub(super) store: Arc<dyn Store>,
    pub(super) roles: Roles,
    pub(super) published: Option<Arc<Counted>>,
    pub(super) at_work: Option<Box<dyn Fn() -> Vec<Work> + Send + Sync>>,
}

impl Heart {
    /// Beats until it is told to stop, and then takes its leave.
    pub(super) async fn beat(self, stop: CancellationToken) {
        let mut instance = Instance {
            id: random_id(),
            pid: std::process::id(),
            host: host(),
            version: env!("CARGO_PKG_VERSION").into(),
            roles: self.roles.to_string(),
            work: Vec::new(),
        };
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            instance.work = self.at_work.as_ref().map_or_else(Vec::new, |at_work| at_work());
            if let Err(error) = self.store.beat(&instance).await {
                debug!(error = chain(&error), "cannot give a sign of life");
            }
            self.count().await;
        }
        self.count().await;
        if let Err(error) = self.store.leave(instance.id).await {
            debug!(error = chain(&error), "cannot take leave");
        }
    }

    async fn count(&self) {
        let Some(published) = &self.published else { return };
        let counts = published.take();
        if !counts.is_empty()
            && let Err(error) = self.store.count_published(&counts).await
        {
            debug!(error = chain(&error), "cannot count what was published; it is counted later");
            published.give_back(&counts);
        }
    }
}

fn random_id() -> Uuid {
    let mut bytes = [0; 16];
    // Without randomness two processes might be taken for one in a table for people.
    _ = getrandom::fill(&mut bytes);
    Uuid::new_v8(bytes)
}

/// The name of this machine.
fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "unknown".into() } else { name.to_owned() }
}
