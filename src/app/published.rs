//! Counts what is published, whoever publishes it: for metrics, and for the age of what waits.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use metrics::{Counter, counter, histogram};

use crate::{
    broker::{Count, Outgoing, Publish, Publishing, PublishingAll, Verdict},
    job::Kind,
    telemetry::{PUBLISH_CONFIRM, PUBLISH_ERRORS, PUBLISHED, Timer},
};

/// A way in that counts what goes through it.
pub(super) struct Counted {
    inner: Arc<dyn Publish>,
    counts: Arc<Counts>,
}

struct Counts {
    /// Of the kinds that this build knows; looking a metric up by its name costs more than counting.
    kinds: BTreeMap<Kind, OfKind>,
    confirm: Timer,
}

struct OfKind {
    since_taken: AtomicU64,
    published: Counter,
}

impl Counted {
    pub(super) fn new(inner: Arc<dyn Publish>, kinds: &[Kind]) -> Self {
        let of_kind = |kind: &Kind| OfKind { since_taken: AtomicU64::new(0), published: counter_of(kind) };
        let kinds = kinds.iter().map(|kind| (kind.clone(), of_kind(kind))).collect();
        Self { inner, counts: Arc::new(Counts { kinds, confirm: Timer::new(histogram!(PUBLISH_CONFIRM)) }) }
    }

    /// How many of each kind were published since it was last asked.
    pub(super) fn take(&self) -> Vec<(Kind, u64)> {
        self.counts.confirm.flush();
        let counts = self.counts.kinds.iter().map(|(kind, count)| (kind.clone(), count.since_taken.swap(0, Relaxed)));
        counts.filter(|(_, count)| *count > 0).collect()
    }

    /// Gives back what was taken and could not be used.
    pub(super) fn give_back(&self, counts: &[(Kind, u64)]) {
        for (kind, taken) in counts {
            if let Some(count) = self.counts.kinds.get(kind) {
                count.since_taken.fetch_add(*taken, Relaxed);
            }
        }
    }
}

impl Count for Counts {
    fn count(&self, kind: &Kind, published: &Verdict, took: Duration) {
        match (published, self.kinds.get(kind)) {
            (Ok(()), Some(count)) => {
                count.since_taken.fetch_add(1, Relaxed);
                count.published.increment(1);
                self.confirm.record(took);
            }
            // A row may be of a kind that only other builds know.
            (Ok(()), None) => {
                counter_of(kind).increment(1);
                self.confirm.record(took);
            }
            (Err(error), _) => counter!(PUBLISH_ERRORS, "reason" => error.code()).increment(1),
        }
    }
}

fn counter_of(kind: &Kind) -> Counter {
    counter!(PUBLISHED, "kind" => kind.to_string())
}

impl Publish for Counted {
    fn publish_all(&self, jobs: Vec<Outgoing>) -> PublishingAll {
        let kinds = jobs.iter().map(|job| job.envelope.kind.clone()).collect();
        self.inner.publish_all(jobs).counted(self.counts.clone(), kinds)
    }

    fn publish(&self, job: Outgoing) -> Publishing {
        let kind = job.envelope.kind.clone();
        self.inner.publish(job).counted(self.counts.clone(), kind)
    }

    fn health(&self) -> Result<(), String> {
        self.inner.health()
    }

    fn is_blocked(&self) -> bool {
        self.inner.is_blocked()
    }
}
