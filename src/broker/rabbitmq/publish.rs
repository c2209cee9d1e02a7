//! The way in: one confirm channel, one task that owns it.
//!
//! Two tasks that publish on one lapin channel get each other's confirms: it numbers a message before it queues it. So
//! whoever publishes hands its job to the owner, which writes all that has gathered as one burst and answers each by its
//! own confirm. It also judges, since it alone sees all of its channel: a confirm that is late, a message that came back, and
//! a broker that takes nothing.
//!
//! A job whose queue is gone comes back, and is published again, to the exchange that has a net under it.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::{
    FutureExt as _,
    future::{BoxFuture, OptionFuture},
};
use lapin::{
    Channel,
    message::BasicReturnMessage,
    options::{BasicQosOptions, ConfirmSelectOptions},
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout},
};
use tracing::{error, warn};

use super::{
    addresses::Addresses,
    confirms::{Confirmed, Confirms, publish},
    connection::{Link, LinkState, within},
    envelope,
    ledger::{Ledger, Stuck},
    returned::{Again, Returned, Stray},
};
use crate::{
    broker::{
        CONFIRM_TIMEOUT, Outgoing, PublishError,
        way_in::{self, Waiting, WayIn},
    },
    job::chain,
    retry::Reconnect,
};

/// How many may wait to be written.
const WAITING: usize = 4096;
/// How many may be written and not confirmed. More gain no rate, and lapin searches through all of them.
const UNCONFIRMED: usize = 1024;
/// How many are written in one go.
const BURST: usize = 256;
/// How long a job may wait for a broker before it is told that there is none; and, once the broker has said that it takes
/// nothing for now, how long for its confirm.
const PATIENCE: Duration = Duration::from_millis(900);
/// How long a channel that answers may owe a confirm while others come: one queue that hangs must not take the others'
/// channel away, and what is never confirmed must not stay in lapin's books for ever.
const LONGEST_OWED: Duration = Duration::from_secs(30);
/// How long it may owe one while none comes at all.
const LONGEST_WITHOUT: Duration = Duration::from_secs(10);
/// How long a channel may take to answer that it is alive.
const SIGN_OF_LIFE: Duration = Duration::from_secs(2);

/// Why a channel is given up that has no sign of life.
const NO_ANSWER: &str = "the channel for publishing does not answer";

/// Whether the broker's topology is as it must be; `Some` says how it is not.
pub(super) type Broken = watch::Sender<Option<String>>;

/// What all who publish for one installation know together.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) addresses: Arc<Addresses>,
    pub(super) broken: Arc<Broken>,
    pub(super) stuck: Arc<Stuck>,
}

/// A connection for publishing, and the way to the task that owns its channel.
#[derive(Debug)]
pub(super) struct Publisher {
    pub(super) link: Arc<Link>,
    pub(super) way_in: WayIn,
    has_channel: Arc<AtomicBool>,
}

impl Publisher {
    /// Begins to publish. Must be called within a tokio runtime.
    pub(super) fn open(link: Arc<Link>, known: Known) -> Self {
        let (way_in, gathering) = WayIn::new(WAITING);
        let has_channel = Arc::<AtomicBool>::default();
        let owner = Owner {
            state: link.watch(),
            link: link.clone(),
            known,
            gathering,
            waiting: VecDeque::new(),
            has_channel: has_channel.clone(),
        };
        tokio::spawn(link.wakes().once_for_all(owner.run()));
        Self { link, way_in, has_channel }
    }

    /// Whether what is published now waits neither for a connection nor for a channel.
    pub(super) fn has_channel(&self) -> bool {
        self.has_channel.load(Relaxed)
    }
}

struct Owner {
    link: Arc<Link>,
    state: watch::Receiver<LinkState>,
    known: Known,
    has_channel: Arc<AtomicBool>,
    gathering: mpsc::Receiver<Waiting>,
    waiting: VecDeque<Waiting>,
}

/// Why a life of the channel ended.
enum End {
    /// Nobody is left to publish.
    Closed,
    /// The broker ended the channel, or its connection is gone.
    Lost(String),
    /// The connection may be the very thing that hangs; it carries nothing but this channel.
    GivenUp(String),
}

impl Owner {
    async fn run(mut self) {
        let mut pauses = Reconnect::new();
        loop {
            let end = match self.open().await {
                Ok(channel) => {
                    self.has_channel.store(true, Relaxed);
                    self.live(&channel, &mut pauses).await
                }
                Err(end) => end,
            };
            self.has_channel.store(false, Relaxed);
            let reason = match end {
                End::Closed => return,
                End::Lost(reason) => {
                    if is_refused(&reason) {
                        self.known.addresses.forbidden();
                    }
                    reason
                }
                End::GivenUp(reason) => {
                    self.link.renew();
                    reason
                }
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
                job = self.gathering.recv() => self.waiting.push_back(job?),
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
                waiting.answer.send(Err(error.clone()));
            }
        }
    }

    /// What keeps a channel that works from being used.
    fn obstacle(&self) -> Option<PublishError> {
        match &*self.state.borrow() {
            LinkState::Up(_) => self.known.broken.borrow().clone().map(PublishError::Broken),
            LinkState::Blocked(_, reason) => Some(PublishError::Blocked(reason.clone())),
            LinkState::Down(_) => Some(PublishError::Unavailable),
        }
    }

    /// One life of the channel.
    async fn live(&mut self, channel: &Channel, pauses: &mut Reconnect) -> End {
        let mut confirms = Confirms::new(self.link.wakes());
        // Those that are late stay in the ledger. Answers that are dropped with it are those of jobs that may have been
        // accepted, of which nobody can know any more; it tells those who wait for them just that.
        let mut ledger = Ledger::new(self.known.stuck.clone());
        let mut gathered = Vec::with_capacity(BURST);
        let mut heard = Vec::with_capacity(BURST);
        let mut returned = Returned::default();
        let mut topology = self.known.broken.subscribe();
        let mut heard_at = Instant::now();
        let (mut confirmed_at, mut unblocked_at) = (heard_at, heard_at);
        let (mut sign_of_life, mut asking) = (OptionFuture::<BoxFuture<'static, bool>>::default(), false);
        let (mut proof, mut doubted) = (OptionFuture::<BoxFuture<'static, bool>>::default(), Vec::new());
        loop {
            if self.obstacle().is_none() {
                let room = UNCONFIRMED.saturating_sub(ledger.owed()).min(BURST).min(self.waiting.len());
                let now = Instant::now();
                if ledger.owed() == 0 {
                    heard_at = now;
                }
                for Waiting { job: Outgoing { envelope, body }, answer, .. } in self.waiting.drain(..room) {
                    if self.known.stuck.holds(&envelope.kind) {
                        answer.send(Err(PublishError::Stuck));
                        continue;
                    }
                    let (address, properties) =
                        (self.known.addresses.of(&envelope.kind), envelope::properties(&envelope));
                    let number = ledger.wrote(now, envelope.id, envelope.kind, answer);
                    confirms.push(number, publish(channel, address, body, properties));
                }
                if room > 0 {
                    // Polled for the first time by this one task and in this order, so they are numbered in order; and
                    // while the connection's own thread waits, if it is not writing already, so they go out together.
                    let _held = self.link.hold_writes();
                    confirms.take_in();
                }
            }
            if doubted.is_empty() {
                doubted = confirms.doubted();
                if !doubted.is_empty() {
                    proof = Some(answers(channel.clone()).boxed()).into();
                }
            }
            let blocked = matches!(&*self.state.borrow(), LinkState::Blocked(..));
            let late = ledger.next_late(if blocked { PATIENCE } else { CONFIRM_TIMEOUT });
            // A broker that takes nothing says so, and need not say anything else.
            let silent = (ledger.owed() > 0 && !blocked && !asking).then(|| heard_at + CONFIRM_TIMEOUT);
            let alarm = self.impatient_at().into_iter().chain(late).chain(silent).min();
            let mut has_news = false;
            tokio::select! {
                biased;
                Some(alive) = &mut proof => {
                    if !alive {
                        return End::GivenUp(NO_ANSWER.into());
                    }
                    proof = OptionFuture::default();
                    // What came back of the doubted ones is there, if anything did.
                    heard.append(&mut doubted);
                    has_news = true;
                }
                () = confirms.some() => {
                    heard_at = Instant::now();
                    confirmed_at = heard_at;
                    has_news = true;
                }
                count = self.gathering.recv_many(&mut gathered, BURST), if self.waiting.len() < BURST => {
                    if count == 0 {
                        return End::Closed;
                    }
                    self.waiting.extend(gathered.drain(..));
                    way_in::and_the_rest(&mut self.gathering, &mut self.waiting, BURST).await;
                }
                changed = self.state.changed() => {
                    if changed.is_err() {
                        return End::Closed;
                    }
                    (heard_at, unblocked_at) = (Instant::now(), Instant::now());
                    if let LinkState::Down(reason) = &*self.state.borrow() {
                        return End::Lost(reason.clone());
                    }
                }
                _ = topology.changed() => {}
                Some(alive) = &mut sign_of_life => {
                    if !alive {
                        return End::GivenUp(NO_ANSWER.into());
                    }
                    (sign_of_life, asking) = (OptionFuture::default(), false);
                    heard_at = Instant::now();
                }
                () = sleep_until(alarm) => {
                    let now = Instant::now();
                    ledger.answer_late(now, if blocked { PATIENCE } else { CONFIRM_TIMEOUT });
                    let owed_for = |since: Instant| ledger.oldest().map(|written| now - written.max(since));
                    let without = owed_for(confirmed_at.max(unblocked_at)) >= Some(LONGEST_WITHOUT);
                    if !blocked && (without || owed_for(unblocked_at) >= Some(LONGEST_OWED)) {
                        return End::GivenUp("a confirm does not come".into());
                    }
                    if silent.is_some_and(|silent| now >= silent) {
                        (sign_of_life, asking) = (Some(answers(channel.clone()).boxed()).into(), true);
                    }
                    self.turn_away(&PublishError::Busy);
                }
            }
            if !has_news {
                continue;
            }
            for message in confirms.hear(&mut heard) {
                if let Err(end) = self.take_back(message, &ledger, &mut returned) {
                    return end;
                }
            }
            for (number, confirmed) in heard.drain(..) {
                let verdict = match verdict(channel, confirmed) {
                    Ok(verdict) => verdict,
                    Err(end) => return end,
                };
                if let Some(Again { address, body, properties, .. }) = returned.take(number) {
                    confirms.push(number, publish(channel, address, body, properties));
                } else if let Some(answer) = ledger.confirmed(number) {
                    answer.send(verdict);
                }
                pauses.reset();
            }
        }
    }

    /// Takes back what found no queue. The error is one of the whole channel.
    fn take_back(&self, message: BasicReturnMessage, ledger: &Ledger, returned: &mut Returned) -> Result<(), End> {
        returned.take_back(message, ledger, &self.known.addresses).map_err(|stray| {
            let reason = stray.to_string();
            if stray == Stray::FromExchange {
                error!(reason, "the broker's topology is broken");
                self.known.broken.send_replace(Some(reason.clone()));
            }
            End::GivenUp(reason)
        })
    }
}

/// What a confirm means for its own job; the error is one of the whole channel.
fn verdict(channel: &Channel, confirmed: lapin::Result<Confirmed>) -> Result<Result<(), PublishError>, End> {
    match confirmed {
        Ok(Confirmed::Ack) => Ok(Ok(())),
        Ok(Confirmed::Nack) => Ok(Err(PublishError::Refused)),
        Ok(Confirmed::NotRequested) => Err(End::GivenUp("the channel is not in confirm mode".into())),
        // The broker's own end of a channel says nothing against its connection.
        Err(error) if !channel.status().connected() => Err(End::Lost(chain(&error))),
        Err(error) => Err(End::GivenUp(chain(&error))),
    }
}

/// Whether a channel was ended because something may not be published where it was to go.
pub(super) fn is_refused(reason: &str) -> bool {
    reason.contains("ACCESS_REFUSED")
}

/// Whether a channel answers a question that costs nothing. One whose queues hang does; one whose connection hangs does
/// not.
async fn answers(channel: Channel) -> bool {
    matches!(timeout(SIGN_OF_LIFE, channel.basic_qos(0, BasicQosOptions::default())).await, Ok(Ok(())))
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
