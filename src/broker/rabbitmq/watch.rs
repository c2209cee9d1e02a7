//! Looks at the broker now and then: whether the net under the exchange is still there, which queues stand, and how long the
//! lines are.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use lapin::{
    BasicProperties, Channel, Connection, ExchangeKind,
    options::{BasicPublishOptions, ExchangeDeclareOptions, QueueDeclareOptions},
    types::{FieldTable, ShortString},
};
use tokio::{sync::Mutex, time::timeout};
use tracing::{debug, error, info};

use super::{
    addresses::Addresses,
    connection::{Link, within},
    publish::{Broken, is_refused},
    topology::Names,
};
use crate::{
    job::{Kind, chain},
    retry::Reconnect,
};

/// How often what must stand is looked for.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The same, while it is not there.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A channel for questions. One that a question has closed is made anew for the next.
pub(super) struct Questions {
    link: Arc<Link>,
    channel: Mutex<Option<Channel>>,
}

impl Questions {
    pub(super) fn new(link: Arc<Link>) -> Self {
        Self { link, channel: Mutex::new(None) }
    }

    /// How many messages wait in a queue. The broker closes the channel if it is not there.
    async fn depth(&self, queue: &str) -> Result<u32, lapin::Error> {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let ask = async |channel: &Channel| {
            within(channel.queue_declare(ShortString::from(queue), options, FieldTable::default())).await
        };
        Ok(self.ask(ask).await?.message_count())
    }

    /// Whether this connection's user may publish straight to queues: that takes a permission of its own.
    async fn may_go_straight(&self, names: &Names) -> Result<bool, lapin::Error> {
        // The broker remembers for each channel what was allowed on it.
        *self.channel.lock().await = None;
        let ask = async |channel: &Channel| {
            let (exchange, nowhere) = (ShortString::default(), ShortString::from(names.nowhere()));
            let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
            within(channel.basic_publish(exchange, nowhere, options, &[], properties)).await?;
            // To publish is not answered, but what is asked after it is only if that was allowed.
            find_exchange(channel, &names.jobs()).await
        };
        match self.ask(ask).await {
            Ok(()) => Ok(true),
            Err(error) if is_refused(&chain(&error)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Fails if there is no exchange of this name.
    async fn find_exchange(&self, name: &str) -> Result<(), lapin::Error> {
        self.ask(async |channel: &Channel| find_exchange(channel, name).await).await
    }

    async fn ask<T>(&self, ask: impl AsyncFnOnce(&Channel) -> lapin::Result<T>) -> lapin::Result<T> {
        let mut kept = self.channel.lock().await;
        let channel = match kept.take() {
            Some(channel) if channel.status().connected() => channel,
            // Whoever asks does not wait for a connection, or the question would hold up all others.
            _ => match self.link.state().connection() {
                Some(connection) => within(connection.create_channel()).await?,
                None => return Err(std::io::Error::from(std::io::ErrorKind::NotConnected).into()),
            },
        };
        let answer = ask(&channel).await?;
        *kept = Some(channel);
        Ok(answer)
    }

    pub(super) async fn depths(&self, names: &Names, kinds: &[Kind]) -> Result<Vec<u64>, String> {
        let mut depths = Vec::with_capacity(kinds.len());
        for kind in kinds {
            let depth = self.depth(&names.queue(kind)).await.map_err(|error| chain(&error))?;
            depths.push(depth.into());
        }
        Ok(depths)
    }

    /// Watches over what must stand for a publish to be safe: at first the queue of every kind, for a job that comes
    /// before its queue would be taken for one of a kind that nobody knows; then, for as long as it runs, the queue for
    /// unroutable messages, without which a job whose queue is gone would vanish. Lets jobs go straight to queues that stand.
    pub(super) async fn watch_topology(
        self: Arc<Self>,
        names: Names,
        kinds: Vec<Kind>,
        broken: Arc<Broken>,
        addresses: Arc<Addresses>,
    ) {
        let mut unseen: Vec<_> = kinds.iter().map(|kind| names.queue(kind)).collect();
        let mut forbidden_on = Weak::new();
        let mut pauses = Reconnect::new();
        while let Some(connection) = self.link.connection().await {
            let pause = match self.first_missing(&mut unseen, &names).await {
                Ok(None) => {
                    pauses.reset();
                    // Jobs are taken without it as well, and the next look is another chance.
                    if let Err(error) =
                        self.straighten(&names, &kinds, &addresses, &connection, &mut forbidden_on).await
                    {
                        debug!(error = chain(&error), "it is not known whether jobs may go straight to their queues");
                    }
                    if broken.send_if_modified(|broken| broken.take().is_some()) {
                        info!("the broker's topology stands");
                    }
                    LOOK_EVERY
                }
                Ok(Some(missing)) => {
                    let reason = format!("the {missing} is not there: run `warren topology apply`");
                    if broken.borrow().as_ref() != Some(&reason) {
                        error!(missing, "the broker's topology is broken");
                        broken.send_replace(Some(reason));
                    }
                    LOOK_AGAIN
                }
                // No broker is another trouble, which others see to.
                Err(_) => pauses.pause(),
            };
            drop(connection);
            // What is lost is looked for soon; and not without a pause, should it be lost as often as it is found.
            if timeout(pause, addresses.lost()).await.is_ok() {
                tokio::time::sleep(pause.min(LOOK_AGAIN)).await;
            }
        }
    }

    /// Lets the jobs of each kind whose queue stands go straight to it, if the broker allows it on this connection.
    async fn straighten(
        &self,
        names: &Names,
        kinds: &[Kind],
        addresses: &Addresses,
        connection: &Arc<Connection>,
        forbidden_on: &mut Weak<Connection>,
    ) -> Result<(), lapin::Error> {
        let bent: Vec<_> = kinds.iter().filter(|kind| !addresses.is_straight(kind)).collect();
        if bent.is_empty() || forbidden_on.as_ptr() == Arc::as_ptr(connection) {
            return Ok(());
        }
        if !self.may_go_straight(names).await? {
            info!("the broker does not allow jobs to go straight to their queues, so they go through the exchange");
            *forbidden_on = Arc::downgrade(connection);
            return Ok(());
        }
        for kind in bent {
            if found(self.depth(&names.queue(kind)).await)? {
                addresses.stands(kind);
            }
        }
        Ok(())
    }

    /// The first that is not there; queues that are leave the list of unseen ones.
    async fn first_missing(&self, unseen: &mut Vec<String>, names: &Names) -> Result<Option<String>, lapin::Error> {
        while let Some(queue) = unseen.last() {
            if !found(self.depth(queue).await)? {
                return Ok(Some(format!("queue {queue}")));
            }
            unseen.pop();
        }
        let unrouted = names.unrouted();
        if !found(self.depth(&unrouted).await)? {
            return Ok(Some(format!("queue {unrouted}")));
        }
        for exchange in [names.jobs(), unrouted] {
            if !found(self.find_exchange(&exchange).await)? {
                return Ok(Some(format!("exchange {exchange}")));
            }
        }
        Ok(None)
    }
}

async fn find_exchange(channel: &Channel, name: &str) -> lapin::Result<()> {
    let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
    // The kind is not looked at in a passive declaration.
    let (name, table) = (ShortString::from(name), FieldTable::default());
    within(channel.exchange_declare(name, ExchangeKind::Direct, options, table)).await
}

fn found<T>(answer: lapin::Result<T>) -> lapin::Result<bool> {
    match answer {
        Ok(_) => Ok(true),
        Err(error) if chain(&error).contains("NOT_FOUND") => Ok(false),
        Err(error) => Err(error),
    }
}
