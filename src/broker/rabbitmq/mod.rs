//! The broker port on RabbitMQ, through lapin.
//!
//! Owns connections, topology, publishing and consuming; lapin's types do not leave this folder.

mod connection;
mod consume;
mod envelope;
mod publish;
mod settle;
pub mod topology;

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;

pub use self::connection::{AmqpUrl, BadAmqpUrl};
use self::{
    connection::Link,
    consume::Line,
    publish::Publisher,
    topology::{Names, Piece, TopologyError},
};
use crate::{
    broker::{Outgoing, Publish, PublishError, Sink, Subscribe, Subscription},
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
}

/// The way into RabbitMQ, on a connection of its own.
#[derive(Debug)]
pub struct Producer {
    publisher: Publisher,
}

impl Producer {
    /// Begins to connect.
    pub fn open(settings: &Settings) -> Self {
        let link = Arc::new(Link::open(&settings.url, &format!("{} publish", settings.client)));
        let (broken, _) = watch::channel(None);
        let names = Names::new(&settings.prefix);
        Self { publisher: Publisher::open(link, &names.jobs(), Arc::new(broken)) }
    }
}

#[async_trait]
impl Publish for Producer {
    async fn publish(&self, job: Outgoing) -> Result<(), PublishError> {
        self.publisher.publish(job).await
    }
}

/// The way out of RabbitMQ, on a connection of its own.
#[derive(Debug)]
pub struct Consumer {
    link: Arc<Link>,
    names: Names,
}

impl Consumer {
    /// Begins to connect.
    pub fn open(settings: &Settings) -> Self {
        let link = Arc::new(Link::open(&settings.url, &format!("{} consume", settings.client)));
        Self { link, names: Names::new(&settings.prefix) }
    }
}

impl Subscribe for Consumer {
    fn subscribe(&self, kind: &Kind, prefetch: u16, sink: Arc<dyn Sink>) -> Arc<dyn Subscription> {
        let queue = self.names.queue(kind);
        Arc::new(Line::open(self.link.clone(), queue, kind.clone(), prefetch, sink))
    }
}

/// Makes everything stand that these kinds need.
pub async fn apply_topology(settings: &Settings, kinds: &[Kind]) -> Result<Vec<Piece>, TopologyError> {
    let broker = |source| TopologyError::Broker { piece: "the topology".into(), source };
    let connection =
        connection::connect(&settings.url, &format!("{} topology", settings.client)).await.map_err(broker)?;
    let pieces = topology::pieces(&Names::new(&settings.prefix), kinds);
    let declared = async {
        let channel = connection::within(connection.create_channel()).await.map_err(broker)?;
        for piece in &pieces {
            piece.declare(&channel).await?;
        }
        Ok(())
    };
    let declared = declared.await;
    connection::close(&connection).await;
    declared.map(|()| pieces)
}
