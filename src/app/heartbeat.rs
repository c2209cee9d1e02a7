//! What a process tells of itself: that it lives, what it runs, and how much it has published.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use uuid::Uuid;

use super::Roles;
use crate::{
    broker::{Outgoing, Publish, PublishError},
    job::{Kind, chain},
    store::{Instance, Store, Work},
};

/// How often.
const EVERY: Duration = Duration::from_secs(5);

/// A way in that counts what goes through it, for the kinds that it knows.
pub(super) struct Counted {
    inner: Arc<dyn Publish>,
    counts: BTreeMap<Kind, AtomicU64>,
}

impl Counted {
    pub(super) fn new(inner: Arc<dyn Publish>, kinds: &[Kind]) -> Self {
        Self { inner, counts: kinds.iter().map(|kind| (kind.clone(), AtomicU64::new(0))).collect() }
    }

    fn take(&self) -> Vec<(Kind, u64)> {
        let counts = self.counts.iter().map(|(kind, count)| (kind.clone(), count.swap(0, Relaxed)));
        counts.filter(|(_, count)| *count > 0).collect()
    }

    fn add(&self, kind: &Kind, more: u64) {
        if let Some(count) = self.counts.get(kind) {
            count.fetch_add(more, Relaxed);
        }
    }
}

#[async_trait]
impl Publish for Counted {
    async fn publish(&self, job: Outgoing) -> Result<(), PublishError> {
        let kind = job.envelope.kind.clone();
        self.inner.publish(job).await?;
        self.add(&kind, 1);
        Ok(())
    }

    fn health(&self) -> Result<(), String> {
        self.inner.health()
    }

    fn is_blocked(&self) -> bool {
        self.inner.is_blocked()
    }
}

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
            for (kind, count) in &counts {
                published.add(kind, *count);
            }
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
