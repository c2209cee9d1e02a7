//! What becomes of jobs that are being published, to be waited for; and whoever counts it.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::PublishError;
use crate::job::Kind;

/// What became of a job.
pub type Verdict = Result<(), PublishError>;

/// Counts what became of jobs.
pub trait Count: Send + Sync {
    /// This became of a job of this kind, so long after it was given to be published.
    fn count(&self, kind: &Kind, verdict: &Verdict, took: Duration);
}

/// Resolves when a job is durable, or with what is known otherwise.
#[must_use]
pub struct Publishing {
    told: oneshot::Receiver<Verdict>,
    counting: Option<(Counting, Kind)>,
}

/// The same for jobs that are published together, in their order.
#[must_use]
pub struct PublishingAll {
    told: oneshot::Receiver<Vec<Verdict>>,
    jobs: usize,
    counting: Option<(Counting, Vec<Kind>)>,
}

struct Counting {
    by: Arc<dyn Count>,
    since: Instant,
}

impl Counting {
    fn begin(by: Arc<dyn Count>) -> Self {
        Self { by, since: Instant::now() }
    }
}

impl Publishing {
    pub(super) fn new(told: oneshot::Receiver<Verdict>) -> Self {
        Self { told, counting: None }
    }

    /// Counted as a job of this kind.
    pub fn counted(self, by: Arc<dyn Count>, kind: Kind) -> Self {
        Self { counting: Some((Counting::begin(by), kind)), ..self }
    }
}

impl PublishingAll {
    pub(super) fn new(told: oneshot::Receiver<Vec<Verdict>>, jobs: usize) -> Self {
        Self { told, jobs, counting: None }
    }

    /// Counted as jobs of these kinds, in their order.
    pub fn counted(self, by: Arc<dyn Count>, kinds: Vec<Kind>) -> Self {
        Self { counting: Some((Counting::begin(by), kinds)), ..self }
    }
}

impl Future for Publishing {
    type Output = Verdict;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Verdict> {
        // Whoever was to tell is gone.
        let verdict = ready!(Pin::new(&mut self.told).poll(context)).unwrap_or(Err(PublishError::OutcomeUnknown));
        if let Some((Counting { by, since }, kind)) = &self.counting {
            by.count(kind, &verdict, since.elapsed());
        }
        Poll::Ready(verdict)
    }
}

impl Future for PublishingAll {
    type Output = Vec<Verdict>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Vec<Verdict>> {
        let told = ready!(Pin::new(&mut self.told).poll(context));
        let verdicts = told.unwrap_or_else(|_| vec![Err(PublishError::OutcomeUnknown); self.jobs]);
        if let Some((Counting { by, since }, kinds)) = &self.counting {
            let took = since.elapsed();
            for (kind, verdict) in kinds.iter().zip(&verdicts) {
                by.count(kind, verdict, took);
            }
        }
        Poll::Ready(verdicts)
    }
}
