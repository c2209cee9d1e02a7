//! The broker port on RabbitMQ, through lapin.
//!
//! Owns connections, topology, publishing and consuming; lapin's types do not leave this folder.

mod addresses;
mod confirms;
mod connection;
mod consume;
mod cork;
mod envelope;
mod ledger;
pub mod management;
mod producer;
mod publish;
mod returned;
mod settle;
mod spent;
pub mod topology;
mod wakes;
mod watch;

use std::sync::Arc;

pub use self::{
    connection::{AmqpUrl, BadAmqpUrl},
    management::{Management, ManagementUrl},
    producer::Producer,
    settle::Window,
};
use self::{
    connection::{Link, LinkState},
    consume::Line,
    topology::{Names, Piece, Plan, TopologyError},
};
use crate::{
    broker::{Leftovers, Sink, Subscribe, Subscription},
    job::Kind,
};

/// Which broker, and under which names.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where it is.
    pub url: AmqpUrl,
    /// What all names begin with.
    pub prefix: String,
    /// What its operators see as the name of a connection, before its purpose.
    pub client: String,
    /// Its management API, if it is known.
    pub management: Option<ManagementUrl>,
}

impl Settings {
    /// Names of everything of this installation.
    pub fn names(&self) -> Names {
        Names::new(&self.prefix)
    }

    /// The management API, if it is known and TLS can be set up.
    pub fn management(&self) -> Option<Management> {
        Management::new(self.management.clone()?, self.url.vhost()).ok()
    }
}

/// The way out of RabbitMQ, on a connection of its own.
#[derive(Debug)]
pub struct Consumer {
    link: Arc<Link>,
    names: Names,
}

impl Consumer {
    /// Begins to connect. Must be called within a tokio runtime.
    pub fn open(settings: &Settings) -> Self {
        let link = Arc::new(Link::open(&settings.url, &format!("{} consume", settings.client)));
        Self { link, names: Names::new(&settings.prefix) }
    }
}

/// How much of what could not be delivered is out at a time.
const LEFTOVERS: u16 = 100;

impl Leftovers for Consumer {
    fn given_up(&self, sink: Arc<dyn Sink>) -> Arc<dyn Subscription> {
        Arc::new(Line::open(self.link.clone(), self.names.dead(), None, LEFTOVERS, sink))
    }

    fn unrouted(&self, sink: Arc<dyn Sink>) -> Arc<dyn Subscription> {
        Arc::new(Line::open(self.link.clone(), self.names.unrouted(), None, LEFTOVERS, sink))
    }

    fn health(&self) -> Result<(), String> {
        Subscribe::health(self)
    }
}

impl Subscribe for Consumer {
    fn subscribe(&self, kind: &Kind, prefetch: u16, sink: Arc<dyn Sink>) -> Arc<dyn Subscription> {
        let queue = self.names.queue(kind);
        Arc::new(Line::open(self.link.clone(), queue, Some(kind.clone()), prefetch, sink))
    }

    fn health(&self) -> Result<(), String> {
        match self.link.state() {
            // A connection that consumes is never blocked.
            LinkState::Up(_) | LinkState::Blocked(..) => Ok(()),
            LinkState::Down(reason) => Err(format!("no connection for consuming: {reason}")),
        }
    }
}

/// Makes everything stand that these kinds need. Where the management API is known, the queues are bounded too.
pub async fn apply_topology(settings: &Settings, kinds: &[Kind]) -> Result<Vec<Piece>, TopologyError> {
    let pieces = topology::pieces(&settings.names(), kinds);
    with_channel(settings, async |channel| {
        for piece in &pieces {
            piece.declare(channel).await?;
        }
        Ok(())
    })
    .await?;
    if let Some(management) = settings.management() {
        management.put_limits(&settings.names()).await.map_err(TopologyError::Management)?;
    }
    Ok(pieces)
}

/// Deletes everything that these kinds need, with all that is in it.
pub async fn delete_topology(settings: &Settings, kinds: &[Kind]) -> Result<(), TopologyError> {
    let pieces = topology::pieces(&settings.names(), kinds);
    with_channel(settings, async |channel| {
        for piece in &pieces {
            piece.delete(channel).await?;
        }
        Ok(())
    })
    .await
}

/// What applying would do to each piece.
pub async fn plan_topology(settings: &Settings, kinds: &[Kind]) -> Result<Vec<(Piece, Plan)>, TopologyError> {
    let mut plans = Vec::new();
    for piece in topology::pieces(&settings.names(), kinds) {
        // A question that is answered with no closes its channel, so each has one of its own.
        let plan = with_channel(settings, async |channel| piece.plan(channel).await).await?;
        plans.push((piece, plan));
    }
    Ok(plans)
}

/// The first piece that is not there. Needs no right to declare anything.
pub async fn missing_topology(settings: &Settings, kinds: &[Kind]) -> Result<Option<Piece>, TopologyError> {
    let pieces = topology::pieces(&settings.names(), kinds);
    with_channel(settings, async |channel| {
        for piece in pieces {
            if piece.is_there(channel).await? == Some(false) {
                return Ok(Some(piece));
            }
        }
        Ok(None)
    })
    .await
}

/// How many messages wait in queues and how many consumers each has; `None` for one that is not there.
pub async fn queues(settings: &Settings, names: &[String]) -> Result<Vec<Option<(u32, u32)>>, TopologyError> {
    let mut found = Vec::with_capacity(names.len());
    for name in names {
        // A question that is answered with no closes its channel, so each has one of its own.
        found.push(with_channel(settings, async |channel| topology::ask_queue(channel, name).await).await?);
    }
    Ok(found)
}

/// Does something on a channel of a connection for administration, which is closed after it.
async fn with_channel<T>(
    settings: &Settings,
    work: impl AsyncFnOnce(&lapin::Channel) -> Result<T, TopologyError>,
) -> Result<T, TopologyError> {
    let broker = |source| TopologyError::Broker { piece: "the topology".into(), source };
    let name = format!("{} topology", settings.client);
    let connection = connection::connect(&settings.url, &name).await.map_err(broker)?;
    let done = match connection::within(connection.create_channel()).await.map_err(broker) {
        Ok(channel) => work(&channel).await,
        Err(error) => Err(error),
    };
    connection::close(&connection).await;
    done
}
