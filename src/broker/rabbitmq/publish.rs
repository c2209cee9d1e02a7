//! The way in: one confirm channel, one task that owns it.
//!
//! Two tasks that publish on one lapin channel get each other's confirms: it numbers a message before it queues it. So
//! whoever publishes hands its job to the owner, which writes all that has gathered as one burst and answers each by its
//! own confirm. It also judges, since it alone sees them all: a confirm that is late, a message that came back, and a
//! broker that takes nothing.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use lapin::{
    Channel, Confirmation,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::ShortString,
};
use tokio::{
    sync::{
        mpsc::{self, error::TrySendError},
        oneshot, watch,
    },
    time::Instant,
};
use tracing::{error, warn};

use super::{
    connection::{Link, LinkState, within},
    envelope,
};
use crate::{
    broker::{CONFIRM_TIMEOUT, Outgoing, PublishError},
    job::chain,
    retry::Reconnect,
};

/// How many may wait to be written.
const WAITING: usize = 4096;
/// How many may be written and not confirmed. More gain no rate, and lapin searches through all of them.
const UNCONFIRMED: usize = 1024;
/// How many are written in one go.
const BURST: usize = 256;
/// How long a job may wait for a broker before it is told that there is none.
const PATIENCE: Duration = Duration::from_millis(900);

type Answer = oneshot::Sender<Result<(), PublishError>>;

struct Waiting {
    job: Outgoing,
    since: Instant,
    answer: Answer,
}

/// The way into RabbitMQ.
#[derive(Debug)]
pub(super) struct Publisher {
    line: mpsc::Sender<Waiting>,
}

/// Whether the broker's topology is as it must be; `Some` says how it is not.
pub(super) type Broken = watch::Sender<Option<String>>;

impl Publisher {
    /// Begins to publish. Must be called within a tokio runtime.
    pub(super) fn open(link: Arc<Link>, exchange: &str, broken: Arc<Broken>) -> Self {
        let (line, received) = mpsc::channel(WAITING);
        let owner = Owner {
            state: link.watch(),
            link,
            exchange: exchange.into(),
            broken,
            line: received,
            waiting: VecDeque::new(),
        };
        tokio::spawn(owner.run());
        Self { line }
    }

    pub(super) async fn publish(&self, job: Outgoing) -> Result<(), PublishError> {
        let (answer, answered) = oneshot::channel();
        let waiting = Waiting { job, since: Instant::now(), answer };
        self.line.try_send(waiting).map_err(|refused| match refused {
            TrySendError::Full(_) => PublishError::Busy,
            TrySendError::Closed(_) => PublishError::Unavailable,
        })?;
        // An answer that is dropped was that of a job on a channel that was lost.
        answered.await.unwrap_or(Err(PublishError::OutcomeUnknown))
    }
}

struct Owner {
    link: Arc<Link>,
    state: watch::Receiver<LinkState>,
    broken: Arc<Broken>,
    exchange: ShortString,
    line: mpsc::Receiver<Waiting>,
    waiting: VecDeque<Waiting>,
}

/// Why a life of the channel ended.
enum End {
    /// Nobody is left to publish.
    Closed,
    Lost(String),
}

impl Owner {
    async fn run(mut self) {
        let mut pauses = Reconnect::new();
        loop {
            let reason = match self.open().await {
                Ok(channel) => {
                    pauses.reset();
                    match self.live(&channel).await {
                        End::Closed => return,
                        End::Lost(reason) => reason,
                    }
                }
                Err(End::Closed) => return,
                Err(End::Lost(reason)) => reason,
            };
            let pause = pauses.pause();
            warn!(reason, ?pause, "lost the channel for publishing");
            if self.turn_away_while(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
        }
    }

    async fn open(&mut self) -> Result<Channel, End> {
        let link = self.link.clone();
        let opened = async move {
            let channel = link.channel().await.ok_or(End::Closed)?.map_err(|error| End::Lost(chain(&error)))?;
            let select = channel.confirm_select(ConfirmSelectOptions::default());
            within(select).await.map_err(|error| End::Lost(chain(&error)))?;
            Ok(channel)
        };
        self.turn_away_while(opened).await.unwrap_or(Err(End::Closed))
    }

    /// Waits for something while there is no channel. Jobs may wait for a moment, for a broker that is only restarting
    /// a connection; then they are told. `None` if nobody is left to publish.
    async fn turn_away_while<T>(&mut self, until: impl Future<Output = T>) -> Option<T> {
        let mut until = std::pin::pin!(until);
        loop {
            let impatient = self.impatient_at();
            tokio::select! {
                value = &mut until => return Some(value),
                job = self.line.recv() => self.waiting.push_back(job?),
                () = sleep_until(impatient) => self.turn_away(&PublishError::Unavailable),
            }
        }
    }

    /// When the one that waits longest will have waited long enough.
    fn impatient_at(&self) -> Option<Instant> {
        self.waiting.front().map(|waiting| waiting.since + PATIENCE)
    }

    /// Tells those who have waited long enough why they wait.
    fn turn_away(&mut self, otherwise: &PublishError) {
        let error = self.obstacle().unwrap_or_else(|| otherwise.clone());
        let now = Instant::now();
        while self.impatient_at().is_some_and(|at| now >= at) {
            if let Some(waiting) = self.waiting.pop_front() {
                _ = waiting.answer.send(Err(error.clone()));
            }
        }
    }

    /// What keeps a channel that works from being used.
    fn obstacle(&self) -> Option<PublishError> {
        match &*self.state.borrow() {
            LinkState::Up(_) => self.broken.borrow().clone().map(PublishError::Broken),
            LinkState::Blocked(_, reason) => Some(PublishError::Blocked(reason.clone())),
            LinkState::Down(_) => Some(PublishError::Unavailable),
        }
    }

    /// One life of the channel.
    async fn live(&mut self, channel: &Channel) -> End {
        let mut confirms = FuturesUnordered::new();
        let mut bursts = Bursts::default();
        let mut gathered = Vec::with_capacity(BURST);
        let mut topology = self.broken.subscribe();
        let end = loop {
            let room = UNCONFIRMED.saturating_sub(confirms.len()).min(BURST).min(self.waiting.len());
            if room > 0 && self.obstacle().is_none() {
                let burst = bursts.wrote(room);
                // Polled for the first time by this one task and in this order, and before the connection's own thread
                // gets to it: so they are numbered in order, and go out with one system call.
                let exchange = &self.exchange;
                confirms.extend(self.waiting.drain(..room).map(|waiting| send(channel, exchange, waiting, burst)));
            }
            let (impatient, late) = (self.impatient_at(), bursts.oldest().map(|written| written + CONFIRM_TIMEOUT));
            tokio::select! {
                biased;
                Some((burst, confirmed, answer)) = confirms.next() => {
                    bursts.confirmed(burst);
                    match self.verdict(confirmed) {
                        Ok(answered) => _ = answer.send(answered),
                        Err(reason) => break End::Lost(reason),
                    }
                }
                count = self.line.recv_many(&mut gathered, BURST), if self.waiting.len() < BURST => {
                    if count == 0 {
                        break End::Closed;
                    }
                    self.waiting.extend(gathered.drain(..));
                }
                changed = self.state.changed() => {
                    if changed.is_err() {
                        break End::Closed;
                    }
                    if let LinkState::Down(reason) = &*self.state.borrow() {
                        break End::Lost(reason.clone());
                    }
                }
                _ = topology.changed() => {}
                () = sleep_until(impatient.into_iter().chain(late).min()) => {
                    if late.is_some_and(|late| Instant::now() >= late) {
                        break End::Lost(format!("no confirm within {CONFIRM_TIMEOUT:?}"));
                    }
                    self.turn_away(&PublishError::Busy);
                }
            }
        };
        // What was written and is not confirmed may have been accepted, and nobody can know any more. The answers go
        // down with the confirms here, which tells those who wait for them just that.
        drop(confirms);
        if matches!(end, End::Lost(_)) && !matches!(&*self.state.borrow(), LinkState::Down(_)) {
            // The connection carries nothing but this channel, and may be the very thing that hangs.
            self.link.renew();
        }
        end
    }

    /// What a confirm means for its own job; the error is one of the whole channel.
    fn verdict(&self, confirmed: lapin::Result<Confirmation>) -> Result<Result<(), PublishError>, String> {
        match confirmed {
            Ok(Confirmation::Ack(None)) => Ok(Ok(())),
            Ok(Confirmation::Nack(None)) => Ok(Err(PublishError::Refused)),
            // lapin pairs a message that came back with whatever confirm is next, so this says nothing about this job.
            // It says that the alternate exchange is gone or has no queue, for with it nothing ever comes back.
            Ok(Confirmation::Ack(Some(_)) | Confirmation::Nack(Some(_))) => {
                let reason = "a message came back unroutable, so the exchange for unroutable ones does not work";
                error!(reason, "the broker's topology is broken");
                self.broken.send_replace(Some(reason.into()));
                Err(reason.into())
            }
            Ok(Confirmation::NotRequested) => Err("the channel is not in confirm mode".into()),
            Err(error) => Err(chain(&error)),
        }
    }
}

/// Publishes one job and waits for its confirm.
fn send(
    channel: &Channel,
    exchange: &ShortString,
    Waiting { job: Outgoing { envelope, body }, answer, .. }: Waiting,
    burst: u64,
) -> impl Future<Output = (u64, lapin::Result<Confirmation>, Answer)> + use<> {
    let (channel, exchange) = (channel.clone(), exchange.clone());
    async move {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let (key, properties) = (envelope.kind.as_str().into(), envelope::properties(&envelope));
        let confirmed = match channel.basic_publish(exchange, key, options, &body, properties).await {
            Ok(confirm) => confirm.await,
            Err(error) => Err(error),
        };
        (burst, confirmed, answer)
    }
}

/// When each burst was written, and how much of it is not confirmed: the oldest tells whether a confirm is late.
#[derive(Debug, Default)]
struct Bursts {
    /// The number of `unconfirmed[0]`.
    first: u64,
    unconfirmed: VecDeque<(Instant, usize)>,
}

impl Bursts {
    fn wrote(&mut self, count: usize) -> u64 {
        self.unconfirmed.push_back((Instant::now(), count));
        self.first + self.unconfirmed.len() as u64 - 1
    }

    fn confirmed(&mut self, burst: u64) {
        let index = usize::try_from(burst - self.first).unwrap_or(usize::MAX);
        if let Some((_, left)) = self.unconfirmed.get_mut(index) {
            *left -= 1;
        }
        while self.unconfirmed.front().is_some_and(|(_, left)| *left == 0) {
            self.unconfirmed.pop_front();
            self.first += 1;
        }
    }

    fn oldest(&self) -> Option<Instant> {
        self.unconfirmed.front().map(|(written, _)| *written)
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
