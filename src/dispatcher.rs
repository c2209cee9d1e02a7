//! The dispatcher: publishes jobs whose time has come.
//!
//! The only publisher beside the gateway. Retries, delays, replays and follow-ups are rows with a due time; this role
//! claims them for the length of a lease, publishes them, and marks them queued when the broker has confirmed. Whatever
//! goes wrong in between, the lease lapses and they are claimed again: a second publish of the same run is harmless.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use metrics::histogram;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use uuid::Uuid;

use crate::{
    broker::{Outgoing, Publish, PublishError},
    crash_point,
    job::{Kind, chain},
    retry::{self, Reconnect},
    store::{Claim, Claimed, Due, StoreError},
    telemetry::{CLAIM, SCHEDULE_LAG},
};

/// How many jobs are claimed at once.
const BATCH: usize = 500;
/// How long a claim holds. Longer than any confirm may take.
const LEASE: Duration = Duration::from_secs(15);
/// How long a lease is relied upon: a little less than it holds.
const RELIED_UPON: Duration = Duration::from_secs(12);
/// How long it waits at most before it looks again.
const LOOK: Duration = Duration::from_secs(1);
/// How long a kind whose queue refuses jobs is left alone.
const REFUSED: warren_workers::Backoff =
    warren_workers::Backoff { base: Duration::from_millis(500), factor: 2.0, cap: Duration::from_secs(30) };

/// Publishes jobs whose time has come.
pub struct Dispatcher {
    due: Arc<dyn Due>,
    broker: Arc<dyn Publish>,
    /// Kinds that are left alone: how often they were refused in a row, and until when.
    refused: HashMap<Kind, (u16, Instant)>,
}

impl Dispatcher {
    /// A dispatcher from a store to a broker.
    pub fn new(due: Arc<dyn Due>, broker: Arc<dyn Publish>) -> Self {
        Self { due, broker, refused: HashMap::new() }
    }

    /// Works until it is told to stop. What it has claimed by then is published by the next dispatcher.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut pauses = Reconnect::new();
        while !stop.is_cancelled() {
            let pause = match self.step().await {
                Ok(Step::More) => {
                    pauses.reset();
                    continue;
                }
                Ok(Step::Wait(wait)) => {
                    pauses.reset();
                    wait
                }
                Ok(Step::BrokerAway) => pauses.pause(),
                Err(error) => {
                    let pause = pauses.pause();
                    warn!(error = chain(&error), ?pause, "the dispatcher cannot reach the database");
                    pause
                }
            };
            tokio::select! {
                () = self.due.wait(pause) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// One claim, and what comes of it.
    async fn step(&mut self) -> Result<Step, StoreError> {
        let now = Instant::now();
        let left_alone: Vec<_> =
            self.refused.iter().filter(|(_, (_, until))| *until > now).map(|(kind, _)| kind.clone()).collect();
        let Claim { token, jobs } = self.due.claim(BATCH, LEASE, &left_alone).await?;
        histogram!(CLAIM).record(now.elapsed().as_secs_f64());
        if jobs.is_empty() {
            let next_kind = self.refused.values().filter_map(|(_, until)| until.checked_duration_since(now)).min();
            let next_due = self.due.next_due(&left_alone).await?;
            let wait = next_due.into_iter().chain(next_kind).min().unwrap_or(LOOK);
            return Ok(Step::Wait(wait.clamp(Duration::from_millis(1), LOOK)));
        }
        let (full, lapses) = (jobs.len() >= BATCH, now + RELIED_UPON);
        crash_point!("dispatcher: claimed, not published");
        let outcome = self.publish(jobs).await;
        crash_point!("dispatcher: published, not noted");
        if !outcome.published.is_empty() {
            let queued = self.note_published(token, &outcome.published, lapses).await?;
            debug!(published = outcome.published.len(), queued, "published jobs whose time had come");
        }
        if !outcome.not_published.is_empty() {
            self.due.release(token, &outcome.not_published).await?;
        }
        Ok(match outcome.broker_away {
            true => Step::BrokerAway,
            false if full => Step::More,
            false => Step::Wait(Duration::from_millis(1)),
        })
    }

    /// Tries for as long as the lease holds: what is forgotten is published again.
    async fn note_published(&self, token: Uuid, jobs: &[Uuid], lapses: Instant) -> Result<u64, StoreError> {
        let mut pauses = Reconnect::new();
        loop {
            match self.due.published(token, jobs).await {
                Err(error) if Instant::now() < lapses => {
                    debug!(error = chain(&error), "could not note what was published; once more");
                    tokio::time::sleep(pauses.pause()).await;
                }
                noted => return noted,
            }
        }
    }

    async fn publish(&mut self, jobs: Vec<Claimed>) -> Sent {
        let (claimed, jobs): (Vec<_>, Vec<_>) = jobs
            .into_iter()
            .map(|Claimed { envelope, body, late }| {
                let claimed = (envelope.id, envelope.kind.clone(), late);
                (claimed, Outgoing { envelope, body })
            })
            .unzip();
        let mut outcome = Sent::default();
        for ((id, kind, late), published) in claimed.into_iter().zip(self.broker.publish_all(jobs).await) {
            match published {
                Ok(()) => {
                    self.refused.remove(&kind);
                    outcome.published.push(id);
                    histogram!(SCHEDULE_LAG, "kind" => kind.to_string()).record(late.as_secs_f64());
                }
                // Whether it was taken is not known. The lease tells: if it was, it is soon terminal or running, and if
                // not, it is claimed again.
                Err(PublishError::OutcomeUnknown) => {}
                Err(PublishError::Refused | PublishError::Stuck) => {
                    self.leave_alone(kind);
                    outcome.not_published.push(id);
                }
                Err(_) => {
                    outcome.broker_away = true;
                    outcome.not_published.push(id);
                }
            }
        }
        outcome
    }

    fn leave_alone(&mut self, kind: Kind) {
        let now = Instant::now();
        let (times, until) = self.refused.entry(kind).or_insert((0, now));
        if *until <= now {
            *times = times.saturating_add(1);
            *until = now + retry::delay(&REFUSED, *times);
        }
    }
}

enum Step {
    /// There is more at once.
    More,
    /// Nothing for so long.
    Wait(Duration),
    /// The broker takes nothing.
    BrokerAway,
}

#[derive(Default)]
struct Sent {
    published: Vec<Uuid>,
    not_published: Vec<Uuid>,
    broker_away: bool,
}
