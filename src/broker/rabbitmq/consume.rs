//! One line out of the broker: one channel, one task that owns it.
//!
//! The owner alone gives out, acknowledges and gives back on its channel, so that no two of those can cross. It lives
//! as long as its subscription and makes a new channel, under a new epoch, whenever the old one is lost; receipts of
//! older epochs name deliveries that come again, so they are dropped.

use std::{
    fmt,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{FutureExt as _, StreamExt as _};
use lapin::{
    Channel, Consumer,
    options::{
        BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
        QueueDeclareOptions,
    },
    types::{FieldTable, ShortString},
};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::Instant,
};
use tracing::{debug, warn};

use super::{
    connection::{A_LIFE, CALL_TIMEOUT, Link, within},
    envelope,
    settle::Window,
};
use crate::{
    broker::{Delivery, Receipt, Sink, Subscription},
    crash_point,
    job::{Kind, chain},
    retry::Reconnect,
};

/// How long what is settled waits for more before it is acknowledged, and as long again for a slow job before it. An
/// acknowledgement costs the broker as much as a message: at 5,000 jobs a second, one for each commit was a fifth of its work.
/// With fifty kinds, each with lines of its own, half as long took 8 % more of the CPU.
const SETTLED_WAITS: Duration = Duration::from_millis(20);

/// How long a line may be given nothing before it looks whether jobs wait.
const IDLE: Duration = Duration::from_secs(5);
/// How long it may be given nothing before it is made anew. A quorum queue that is deleted and declared again at once can
/// keep a consumer that it will never deliver to, and hide from every question what it holds for it (RabbitMQ 3.10).
const LONG_IDLE: Duration = Duration::from_mins(1);

/// One line out of RabbitMQ.
pub(super) struct Line {
    queue: String,
    inbox: Arc<Inbox>,
    orders: mpsc::UnboundedSender<Order>,
}

/// What others leave for the owner of the channel.
#[derive(Default)]
struct Inbox {
    settled: Mutex<Vec<Receipt>>,
    wake: Notify,
}

enum Order {
    GiveBack(Vec<Receipt>),
    Prefetch(u16),
    Stop(oneshot::Sender<()>),
    Resume,
    Close(oneshot::Sender<()>),
}

impl Line {
    /// Begins to give out what is in a queue: of one kind, or of the kinds that routing keys tell. Must be called within a tokio runtime.
    pub(super) fn open(link: Arc<Link>, queue: String, kind: Option<Kind>, prefetch: u16, sink: Arc<dyn Sink>) -> Self {
        let inbox = Arc::<Inbox>::default();
        let (orders, received) = mpsc::unbounded_channel();
        let wakes = link.wakes().clone();
        let owner = Owner {
            link,
            queue: queue.as_str().into(),
            kind,
            prefetch,
            sink,
            inbox: inbox.clone(),
            orders: received,
            epoch: 0,
            consumers: 0,
            stopped: false,
            last_burst: 0,
        };
        tokio::spawn(wakes.once_for_all(owner.run()));
        Self { queue, inbox, orders }
    }

    async fn order(&self, order: impl FnOnce(oneshot::Sender<()>) -> Order) {
        let (done, answer) = oneshot::channel();
        if self.orders.send(order(done)).is_ok() {
            // An owner that is gone has nothing left to stop.
            drop(answer.await);
        }
    }
}

#[async_trait]
impl Subscription for Line {
    fn settle(&self, receipts: &[Receipt]) {
        self.inbox.settled.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(receipts);
        self.inbox.wake.notify_one();
    }

    fn give_back(&self, receipts: &[Receipt]) {
        _ = self.orders.send(Order::GiveBack(receipts.to_vec()));
    }

    fn set_prefetch(&self, prefetch: u16) {
        _ = self.orders.send(Order::Prefetch(prefetch));
    }

    async fn stop(&self) {
        self.order(Order::Stop).await;
    }

    fn resume(&self) {
        _ = self.orders.send(Order::Resume);
    }

    async fn close(&self) {
        self.order(Order::Close).await;
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Line({})", self.queue)
    }
}

struct Owner {
    link: Arc<Link>,
    queue: ShortString,
    /// Of all that is in the queue; otherwise each tells by its routing key.
    kind: Option<Kind>,
    prefetch: u16,
    sink: Arc<dyn Sink>,
    inbox: Arc<Inbox>,
    orders: mpsc::UnboundedReceiver<Order>,
    epoch: u32,
    /// How many consumers there have been: the number of one is its name.
    consumers: u64,
    stopped: bool,
    /// How many came together the last time: about as many will the next time.
    last_burst: usize,
}

/// Why a life of the channel ended.
enum End {
    Closed,
    Lost(String),
    /// Nothing came for long, and nothing is out.
    Idle,
}

impl Owner {
    async fn run(mut self) {
        let mut pauses = Reconnect::new();
        loop {
            self.epoch += 1;
            let end = match self.open().await {
                Ok((channel, consumer)) => {
                    let began = Instant::now();
                    let end = self.live(channel, consumer).await;
                    if began.elapsed() >= A_LIFE {
                        pauses.reset();
                    }
                    end
                }
                Err(end) => end,
            };
            let reason = match end {
                End::Closed => return,
                End::Idle => continue,
                End::Lost(reason) => reason,
            };
            let pause = pauses.pause();
            warn!(queue = self.queue.as_str(), reason, ?pause, "lost the consumer");
            if self.wait(pause).await {
                return;
            }
        }
    }

    /// Obeys what needs no channel while there is none, for a while, and for as long as it is stopped: what was out has
    /// gone with the channel, so there is nothing to do on another. True if it was closed.
    async fn wait(&mut self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until), if !self.stopped => return false,
                order = self.orders.recv() => if self.obey_without_channel(order) { return true },
            }
        }
    }

    /// True if there is nothing more to do.
    fn obey_without_channel(&mut self, order: Option<Order>) -> bool {
        match order {
            // What was out comes again by itself.
            Some(Order::GiveBack(_)) => false,
            Some(Order::Prefetch(prefetch)) => {
                self.prefetch = prefetch;
                false
            }
            Some(Order::Stop(done)) => {
                self.stopped = true;
                _ = done.send(());
                false
            }
            Some(Order::Resume) => {
                self.stopped = false;
                false
            }
            Some(Order::Close(done)) => {
                _ = done.send(());
                true
            }
            None => true,
        }
    }

    async fn open(&mut self) -> Result<(Channel, Option<Consumer>), End> {
        let link = self.link.clone();
        let channel = {
            let mut channel = std::pin::pin!(link.channel());
            loop {
                tokio::select! {
                    channel = &mut channel => break channel,
                    order = self.orders.recv() => if self.obey_without_channel(order) { return Err(End::Closed) },
                }
            }
        };
        let lost = |error: lapin::Error| End::Lost(chain(&error));
        let channel = channel.ok_or(End::Closed)?.map_err(lost)?;
        // It may have been stopped while there was none.
        let consumer = if self.stopped { None } else { Some(self.consume(&channel).await.map_err(lost)?) };
        Ok((channel, consumer))
    }

    async fn consume(&mut self, channel: &Channel) -> lapin::Result<Consumer> {
        self.consumers += 1;
        // Each delivery bears the name of its consumer, through several processes of the broker and then several allocations
        // here. One that the broker makes up, of thirty characters, took 18 % of its CPU and 10 % of ours.
        let name = self.consumers.to_string();
        within(channel.basic_qos(self.prefetch, BasicQosOptions::default())).await?;
        let call = channel.basic_consume(
            self.queue.clone(),
            name.into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        within(call).await
    }

    /// One life of the channel.
    async fn live(&mut self, channel: Channel, mut consumer: Option<Consumer>) -> End {
        let inbox = self.inbox.clone();
        let mut window = Window::new();
        let mut given_at = Instant::now();
        // Made once: to begin and to end a wait for each thing that happens would be a lock on the runtime's clock each time.
        let mut looks = pin!(tokio::time::sleep_until(given_at + IDLE));
        let mut acknowledges = pin!(tokio::time::sleep_until(given_at));
        loop {
            let consuming = consumer.is_some();
            let delivery = async {
                match consumer.as_mut() {
                    Some(consumer) => consumer.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                delivery = delivery => match delivery {
                    Some(Ok(delivery)) => {
                        given_at = Instant::now();
                        if let Err(end) = self.give_out(delivery, consumer.as_mut(), &mut window) {
                            return end;
                        }
                    }
                    Some(Err(error)) => return End::Lost(chain(&error)),
                    None => return End::Lost("the broker cancelled the consumer".into()),
                },
                () = inbox.wake.notified() => {
                    let had_settled = window.has_settled();
                    self.note_settled(&mut window);
                    if window.makes_room(self.prefetch) {
                        acknowledge_beginning(&channel, &mut window);
                    }
                    if window.has_settled() && !had_settled {
                        acknowledges.as_mut().reset(Instant::now() + SETTLED_WAITS);
                    }
                }
                () = &mut acknowledges, if window.has_settled() => {
                    acknowledge_beginning(&channel, &mut window);
                    for tag in window.take_left_behind() {
                        acknowledge(&channel, tag, false);
                    }
                    if window.has_settled() {
                        acknowledges.as_mut().reset(Instant::now() + SETTLED_WAITS);
                    }
                }
                () = &mut looks, if consuming => {
                    let now = Instant::now();
                    // What was given meanwhile has put it off.
                    if given_at + IDLE > now {
                        looks.as_mut().reset(given_at + IDLE);
                        continue;
                    }
                    looks.as_mut().reset(now + IDLE);
                    if window.out() == 0 && given_at.elapsed() >= LONG_IDLE {
                        finish(&channel, &mut window).await;
                        return End::Idle;
                    }
                    if window.out() < usize::from(self.prefetch)
                        && let Some(old) = consumer.take()
                    {
                        match self.look(&channel, old, &mut window).await {
                            Ok(new) => consumer = Some(new),
                            Err(end) => return end,
                        }
                    }
                }
                order = self.orders.recv() => match order {
                    Some(Order::GiveBack(receipts)) => {
                        for receipt in receipts {
                            if receipt.epoch == self.epoch && window.give_back(receipt.tag) {
                                give_back(&channel, receipt.tag);
                            }
                        }
                    }
                    Some(Order::Prefetch(prefetch)) => {
                        self.prefetch = prefetch;
                        if let Some(old) = consumer.take() {
                            match self.change_prefetch(&channel, old, &mut window).await {
                                Ok(new) => consumer = Some(new),
                                Err(end) => return end,
                            }
                        }
                    }
                    Some(Order::Stop(done)) => {
                        self.stopped = true;
                        if let Some(consumer) = consumer.take()
                            && let Err(end) = self.cancel(&channel, consumer, &mut window).await
                        {
                            _ = done.send(());
                            return end;
                        }
                        _ = done.send(());
                    }
                    Some(Order::Resume) => {
                        self.stopped = false;
                        // It was given nothing because it asked for nothing.
                        given_at = Instant::now();
                        if consumer.is_none() {
                            match self.consume(&channel).await {
                                Ok(new) => consumer = Some(new),
                                Err(error) => return End::Lost(chain(&error)),
                            }
                        }
                    }
                    Some(Order::Close(done)) => {
                        self.note_settled(&mut window);
                        finish(&channel, &mut window).await;
                        _ = done.send(());
                        return End::Closed;
                    }
                    None => return End::Closed,
                },
            }
        }
    }

    /// Hands on the delivery and all that have arrived behind it, as one burst.
    fn give_out(
        &mut self,
        first: lapin::message::Delivery,
        mut consumer: Option<&mut Consumer>,
        window: &mut Window,
    ) -> Result<(), End> {
        let mut read = Vec::with_capacity(self.last_burst);
        let mut next = Some(first);
        let mut end = None;
        while let Some(delivery) = next {
            if !window.give_out(delivery.delivery_tag) {
                end = Some(End::Lost(format!("delivery tag {} came out of turn", delivery.delivery_tag)));
                break;
            }
            read.push(delivery);
            next = match consumer.as_mut().and_then(|consumer| consumer.next().now_or_never()) {
                Some(Some(Ok(delivery))) => Some(delivery),
                Some(Some(Err(error))) => {
                    end = Some(End::Lost(chain(&error)));
                    None
                }
                Some(None) => {
                    end = Some(End::Lost("the broker cancelled the consumer".into()));
                    None
                }
                None => None,
            };
        }
        self.last_burst = read.len();
        if !read.is_empty() {
            let burst = read.iter_mut().map(|delivery| self.delivery(delivery)).collect();
            self.link.spent().give(read);
            self.sink.deliver(burst);
        }
        end.map_or(Ok(()), Err)
    }

    fn delivery(&self, delivery: &mut lapin::message::Delivery) -> Delivery {
        let kind = self.kind.clone().or_else(|| Kind::new(delivery.routing_key.as_str()).ok());
        Delivery {
            envelope: envelope::envelope(kind.as_ref(), &delivery.properties, &delivery.data).map(Box::new),
            given_before: envelope::given_before(&delivery.properties, delivery.redelivered),
            receipt: Receipt { epoch: self.epoch, tag: delivery.delivery_tag },
            body: std::mem::take(&mut delivery.data).into(),
        }
    }

    fn note_settled(&self, window: &mut Window) {
        let settled = std::mem::take(&mut *self.inbox.settled.lock().unwrap_or_else(PoisonError::into_inner));
        for receipt in settled {
            if receipt.epoch == self.epoch {
                window.settle(receipt.tag);
            }
        }
    }

    /// Looks whether jobs wait although this line has room and is given none. A queue that was deleted and declared again
    /// forgets its consumers without a word to them, and then only a new one is given anything.
    async fn look(&mut self, channel: &Channel, consumer: Consumer, window: &mut Window) -> Result<Consumer, End> {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let call = channel.queue_declare(self.queue.clone(), options, FieldTable::default());
        let queue = within(call).await.map_err(|error| End::Lost(chain(&error)))?;
        if queue.message_count() == 0 {
            return Ok(consumer);
        }
        warn!(queue = self.queue.as_str(), waiting = queue.message_count(), "jobs wait and none comes; asking anew");
        self.change_prefetch(channel, consumer, window).await
    }

    /// The broker applies a prefetch to consumers that begin after it, so the consumer is changed and not the channel:
    /// tags stay good.
    async fn change_prefetch(
        &mut self,
        channel: &Channel,
        consumer: Consumer,
        window: &mut Window,
    ) -> Result<Consumer, End> {
        self.cancel(channel, consumer, window).await?;
        let consumer = self.consume(channel).await.map_err(|error| End::Lost(chain(&error)))?;
        debug!(queue = self.queue.as_str(), prefetch = self.prefetch, "changed the prefetch");
        Ok(consumer)
    }

    /// Ends the consumer. What it was given before the broker's answer is handed on.
    async fn cancel(&mut self, channel: &Channel, mut consumer: Consumer, window: &mut Window) -> Result<(), End> {
        let call = channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
        within(call).await.map_err(|error| End::Lost(chain(&error)))?;
        // The stream ends with what came before the answer.
        let rest = async {
            while let Some(delivery) = consumer.next().await {
                match delivery {
                    Ok(delivery) => self.give_out(delivery, None, window)?,
                    Err(error) => return Err(End::Lost(chain(&error))),
                }
            }
            Ok(())
        };
        match tokio::time::timeout(CALL_TIMEOUT, rest).await {
            Ok(ended) => ended,
            Err(_) => Err(End::Lost("the consumer did not end".into())),
        }
    }
}

fn acknowledge_beginning(channel: &Channel, window: &mut Window) {
    if let Some(tag) = window.take_beginning() {
        acknowledge(channel, tag, true);
    }
}

/// Puts the frame into the connection's queue, in order, and does not wait for the socket: a channel that is lost tells
/// of it through its consumer.
fn acknowledge(channel: &Channel, tag: u64, multiple: bool) {
    drop(channel.basic_ack(tag, BasicAckOptions { multiple }).now_or_never());
    crash_point!("broker: acknowledged");
}

fn give_back(channel: &Channel, tag: u64) {
    drop(channel.basic_nack(tag, BasicNackOptions { multiple: false, requeue: true }).now_or_never());
}

/// Acknowledges all that is settled and closes the channel, which the broker answers after it has read the rest.
async fn finish(channel: &Channel, window: &mut Window) {
    acknowledge_beginning(channel, window);
    for tag in window.take_stragglers() {
        acknowledge(channel, tag, false);
    }
    if let Err(error) = within(channel.close(200, "done".into())).await {
        debug!(%error, "the channel was gone before it was closed");
    }
}
