//! The way into RabbitMQ: a connection for publishing, and a second one where many jobs come together.
//!
//! The broker reads a connection with one process, and of jobs that come in bulk it takes about a fourteenth more from two
//! connections than from one. A job that comes with few others goes over the first one, where bursts are longer the more go
//! there; and who never sends many never has a second.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use async_trait::async_trait;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Management, Settings,
    addresses::Addresses,
    connection::{Link, LinkState},
    publish::{self, Broken},
    topology::Names,
    watch::Questions,
};
use crate::{
    broker::{Observe, Outgoing, Publish, Publishing, PublishingAll, way_in::WayIn},
    job::{Kind, chain},
};

/// How many jobs that come together are many. Of fewer, a burst on one connection holds several such.
const MANY: usize = 64;

/// The way into RabbitMQ, on connections of its own.
pub struct Producer {
    settings: Settings,
    names: Names,
    first: Way,
    /// There once many have come together.
    second: OnceLock<Way>,
    /// Whether the next that are many take the second one.
    turn: AtomicBool,
    addresses: Arc<Addresses>,
    broken: Arc<Broken>,
    questions: Arc<Questions>,
    management: Option<Management>,
    _watching: DropGuard,
}

/// One connection for publishing.
struct Way {
    link: Arc<Link>,
    way_in: WayIn,
}

impl Way {
    fn open(settings: &Settings, purpose: &str, addresses: &Arc<Addresses>, broken: &Arc<Broken>) -> Self {
        let link = Arc::new(Link::open(&settings.url, &format!("{} {purpose}", settings.client)));
        let way_in = publish::open(link.clone(), addresses.clone(), broken.clone());
        Self { link, way_in }
    }
}

impl Producer {
    /// Begins to connect. Nothing is published before the queues of these kinds have been seen to stand. Must be called
    /// within a tokio runtime, as must whatever publishes.
    pub fn open(settings: &Settings, kinds: &[Kind]) -> Self {
        let names = settings.names();
        let broken = Arc::new(watch::channel(Some("the queues have not been looked at yet".into())).0);
        let addresses = Arc::new(Addresses::new(names.clone()));
        let first = Way::open(settings, "publish", &addresses, &broken);
        let questions = Arc::new(Questions::new(first.link.clone()));
        let stop = CancellationToken::new();
        let watching =
            questions.clone().watch_topology(names.clone(), kinds.to_vec(), broken.clone(), addresses.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(watching));
        Self {
            settings: settings.clone(),
            names,
            first,
            second: OnceLock::new(),
            turn: AtomicBool::new(false),
            addresses,
            broken,
            questions,
            management: settings.management(),
            _watching: stop.drop_guard(),
        }
    }

    /// Where so many jobs that came together go: over a connection that works, if one does.
    fn way_in_for(&self, jobs: usize) -> &WayIn {
        let are_many = jobs >= MANY;
        let second = if are_many {
            let open = || Way::open(&self.settings, "publish in bulk", &self.addresses, &self.broken);
            Some(self.second.get_or_init(open))
        } else {
            self.second.get()
        };
        let takes_second = || match self.first.link.state() {
            LinkState::Up(_) => are_many && self.turn.fetch_xor(true, Relaxed),
            // It is the broker that takes nothing, which the second may only not have been told yet.
            LinkState::Blocked(..) => false,
            LinkState::Down(_) => true,
        };
        match second.filter(|second| second.link.is_up()) {
            Some(second) if takes_second() => &second.way_in,
            _ => &self.first.way_in,
        }
    }
}

impl Publish for Producer {
    fn publish_all(&self, jobs: Vec<Outgoing>) -> PublishingAll {
        self.way_in_for(jobs.len()).publish_all(jobs)
    }

    fn publish(&self, job: Outgoing) -> Publishing {
        self.way_in_for(1).publish(job)
    }

    fn is_blocked(&self) -> bool {
        // The broker tells a connection of it when something is published on it.
        [Some(&self.first), self.second.get()].into_iter().flatten().any(|way| way.link.is_blocked())
    }

    fn health(&self) -> Result<(), String> {
        // What is broken stays so while a new connection is made.
        let broken = self.broken.borrow().clone();
        let link = match self.first.link.state() {
            LinkState::Up(_) => None,
            LinkState::Blocked(_, reason) => Some(format!("the broker has blocked publishing: {reason}")),
            LinkState::Down(reason) => Some(format!("no connection for publishing: {reason}")),
        };
        match (link, broken) {
            (None, None) => Ok(()),
            (Some(trouble), None) | (None, Some(trouble)) => Err(trouble),
            (Some(link), Some(broken)) => Err(format!("{link}; {broken}")),
        }
    }
}

#[async_trait]
impl Observe for Producer {
    async fn depths(&self, kinds: &[Kind]) -> Result<Vec<u64>, String> {
        if let LinkState::Down(reason) = self.first.link.state() {
            return Err(reason);
        }
        self.questions.depths(&self.names, kinds).await
    }

    async fn limits(&self, kinds: &[Kind]) -> Result<(), String> {
        let Some(management) = &self.management else {
            return Err(
                "whether queues are bounded cannot be told: set broker.management_url, or see to a policy with \
                        max-length-bytes by yourself"
                    .into(),
            );
        };
        match management.unbounded(&self.names, kinds).await {
            Ok(unbounded) if unbounded.is_empty() => Ok(()),
            Ok(unbounded) => {
                let kinds: Vec<_> = unbounded.iter().map(Kind::as_str).collect();
                Err(format!(
                    "the queues of these kinds are not bounded: {}; run `warren topology apply`",
                    kinds.join(", ")
                ))
            }
            Err(error) => Err(chain(&error)),
        }
    }
}
