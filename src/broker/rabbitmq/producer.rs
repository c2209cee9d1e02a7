//! The way into RabbitMQ: a connection for publishing, and a second one for jobs that come in bulk.
//!
//! The broker reads a connection with one process, and takes a tenth more of jobs that come in bulk from two connections than
//! from one. A job that comes with few others goes over the first one, where bursts are longer the more go there; and who never
//! sends many has no second one. It only helps: all that is known of the broker is what the first one sees of it.

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
    ledger::Stuck,
    publish::{Known, Publisher},
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
    first: Publisher,
    /// There once many have come together.
    second: OnceLock<Publisher>,
    /// Whether the next that are many take the second one.
    turn: AtomicBool,
    known: Known,
    questions: Arc<Questions>,
    management: Option<Management>,
    _watching: DropGuard,
}

impl Producer {
    /// Begins to connect. Nothing is published before the queues of these kinds have been seen to stand. Must be called
    /// within a tokio runtime.
    pub fn open(settings: &Settings, kinds: &[Kind]) -> Self {
        let names = settings.names();
        let known = Known {
            addresses: Arc::new(Addresses::new(names.clone())),
            broken: Arc::new(watch::channel(Some("the queues have not been looked at yet".into())).0),
            stuck: Arc::<Stuck>::default(),
        };
        let first = publisher(settings, "publish", &known);
        let questions = Arc::new(Questions::new(first.link.clone()));
        let stop = CancellationToken::new();
        let (broken, addresses) = (known.broken.clone(), known.addresses.clone());
        let watching = questions.clone().watch_topology(names.clone(), kinds.to_vec(), broken, addresses);
        tokio::spawn(stop.clone().run_until_cancelled_owned(watching));
        Self {
            settings: settings.clone(),
            names,
            first,
            second: OnceLock::new(),
            turn: AtomicBool::new(false),
            known,
            questions,
            management: settings.management(),
            _watching: stop.drop_guard(),
        }
    }

    /// Where jobs go that came together with few others.
    fn way_in(&self) -> &WayIn {
        match self.second.get() {
            // The broker tells a connection that it takes nothing when something is published on it. The first may not have
            // been told yet; whoever owns the second knows what to say.
            Some(second) if second.link.is_blocked() => &second.way_in,
            _ => &self.first.way_in,
        }
    }

    /// Where jobs go that came together with many others.
    fn way_in_for_many(&self) -> &WayIn {
        let second = self.second.get_or_init(|| publisher(&self.settings, "publish in bulk", &self.known));
        let may_be_second = self.first.link.is_up() && second.link.is_up() && second.has_channel();
        if may_be_second && self.turn.fetch_xor(true, Relaxed) { &second.way_in } else { self.way_in() }
    }
}

fn publisher(settings: &Settings, purpose: &str, known: &Known) -> Publisher {
    let link = Arc::new(Link::open(&settings.url, &format!("{} {purpose}", settings.client)));
    Publisher::open(link, known.clone())
}

impl Publish for Producer {
    fn publish_all(&self, jobs: Vec<Outgoing>) -> PublishingAll {
        let way_in = if jobs.len() < MANY { self.way_in() } else { self.way_in_for_many() };
        way_in.publish_all(jobs)
    }

    fn publish(&self, job: Outgoing) -> Publishing {
        self.way_in().publish(job)
    }

    fn is_blocked(&self) -> bool {
        [Some(&self.first), self.second.get()].into_iter().flatten().any(|publisher| publisher.link.is_blocked())
    }

    fn health(&self) -> Result<(), String> {
        // What is broken stays so while a new connection is made.
        let broken = self.known.broken.borrow().clone();
        let blocked = |reason| Some(format!("the broker has blocked publishing: {reason}"));
        let link = match (self.first.link.state(), self.second.get().map(|second| second.link.state())) {
            (LinkState::Blocked(_, reason), _) | (LinkState::Up(_), Some(LinkState::Blocked(_, reason))) => {
                blocked(reason)
            }
            (LinkState::Up(_), _) => None,
            (LinkState::Down(reason), _) => Some(format!("no connection for publishing: {reason}")),
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
