//! What must stand in the broker, and the one place that declares it.
//!
//! Arguments of a queue are fixed for its life, so only what never changes is an argument; what an operator may want to
//! change is a policy, and those are in `deploy/rabbitmq/definitions.json`.

use std::collections::BTreeMap;

use lapin::{
    Channel, ExchangeKind,
    options::{
        ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable},
};
use serde::Serialize;
use serde_json::{Value, json};

use super::{connection::within, management::ManagementError};
use crate::job::{Kind, chain};

/// How often a message may be given out before the broker gives it up to the dead queue: a backstop, for failures are
/// counted by warren and not by the broker.
const DELIVERY_LIMIT: i64 = 20;
/// For queues that lose what passes their limit, as good as none. A negative number means no limit to newer brokers, and
/// "drop at the first redelivery" to 3.x.
const NO_DELIVERY_LIMIT: i64 = 1_000_000;

/// How much may wait for one kind.
const MAX_LENGTH_BYTES: u64 = 4 << 30;

/// Names of everything of one installation.
#[derive(Debug, Clone)]
pub struct Names {
    prefix: String,
}

impl Names {
    /// All names begin with this and a dot.
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// The exchange for jobs: whatever finds no queue there falls into a net. Jobs whose queue stands may go past it.
    pub fn jobs(&self) -> String {
        format!("{}.jobs", self.prefix)
    }

    /// The queue of a kind.
    pub fn queue(&self, kind: &Kind) -> String {
        format!("{}.{kind}", self.prefix)
    }

    /// A name that no queue has: no kind is without a name.
    pub(super) fn nowhere(&self) -> String {
        format!("{}.", self.prefix)
    }

    /// The exchange and the queue of what passed the delivery limit.
    pub fn dead(&self) -> String {
        format!("{}.dead", self.prefix)
    }

    /// The exchange and the queue of what no queue was bound for.
    pub fn unrouted(&self) -> String {
        format!("{}.unrouted", self.prefix)
    }
}

/// One thing that must stand in the broker.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Piece {
    /// A durable exchange.
    Exchange {
        /// Its name.
        name: String,
        /// `direct` or `fanout`.
        kind: &'static str,
        /// Its arguments.
        arguments: BTreeMap<&'static str, Argument>,
    },
    /// A durable quorum queue.
    Queue {
        /// Its name.
        name: String,
        /// Its arguments.
        arguments: BTreeMap<&'static str, Argument>,
    },
    /// From an exchange to a queue.
    Binding {
        /// The exchange.
        source: String,
        /// The queue.
        destination: String,
        /// The routing key.
        key: String,
    },
}

/// The value of an argument.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Argument {
    /// A text.
    Text(String),
    /// A number.
    Number(i64),
}

/// Everything that must stand for these kinds, in the order in which it can be declared.
pub fn pieces(names: &Names, kinds: &[Kind]) -> Vec<Piece> {
    let text = |value: &str| Argument::Text(value.to_owned());
    let mut pieces = Vec::new();
    for name in [names.unrouted(), names.dead()] {
        pieces.push(Piece::Exchange { name: name.clone(), kind: "fanout", arguments: BTreeMap::new() });
        let arguments = BTreeMap::from([
            ("x-queue-type", text("quorum")),
            ("x-delivery-limit", Argument::Number(NO_DELIVERY_LIMIT)),
        ]);
        pieces.push(Piece::Queue { name: name.clone(), arguments });
        pieces.push(Piece::Binding { source: name.clone(), destination: name, key: String::new() });
    }
    let arguments = BTreeMap::from([("alternate-exchange", Argument::Text(names.unrouted()))]);
    pieces.push(Piece::Exchange { name: names.jobs(), kind: "direct", arguments });
    for kind in kinds {
        let arguments = BTreeMap::from([
            ("x-queue-type", text("quorum")),
            ("x-overflow", text("reject-publish")),
            ("x-delivery-limit", Argument::Number(DELIVERY_LIMIT)),
            ("x-dead-letter-exchange", Argument::Text(names.dead())),
            ("x-dead-letter-strategy", text("at-least-once")),
        ]);
        let queue = names.queue(kind);
        pieces.push(Piece::Queue { name: queue.clone(), arguments });
        pieces.push(Piece::Binding { source: names.jobs(), destination: queue, key: kind.to_string() });
    }
    pieces
}

/// Why a piece does not stand.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// It stands, but with other arguments: the broker's own words name them.
    #[error(
        "{piece} stands in the broker otherwise than it must: {difference}. Empty it, delete it, and let `warren topology \
         apply` make it anew; `warren topology plan` shows everything that differs"
    )]
    Differs {
        /// Which one.
        piece: String,
        /// What the broker said.
        difference: String,
    },
    /// The broker did not answer as it should.
    #[error("{piece} cannot be declared or deleted")]
    Broker {
        /// Which one.
        piece: String,
        /// What the broker said.
        #[source]
        source: lapin::Error,
    },
    /// The management API did not answer as it should.
    #[error("the queues cannot be bounded")]
    Management(#[source] ManagementError),
}

/// What applying would do to a piece.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Plan {
    /// Nothing: it stands.
    Stands,
    /// It is made.
    Make,
    /// It is made, or found standing: AMQP has no question for it.
    Ensure,
    /// Nothing, for it stands otherwise: someone must decide.
    Differs(String),
}

/// What is set for queues and can be changed at any time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Policy {
    /// Its name.
    pub name: String,
    /// Which queues it is for.
    pub pattern: String,
    /// What it sets.
    pub definition: Value,
}

/// Bounds the queue of every kind, but not those that must never refuse anything.
pub fn limits_policy(names: &Names) -> Policy {
    let prefix = names.prefix.replace('.', "\\.");
    Policy {
        name: format!("{}-limits", names.prefix),
        pattern: format!("^{prefix}\\.(?!(dead|unrouted)$)"),
        definition: json!({ "max-length-bytes": MAX_LENGTH_BYTES }),
    }
}

/// Everything, in the form that RabbitMQ imports at its start.
pub fn definitions(names: &Names, kinds: &[Kind], vhost: &str) -> Value {
    let (mut exchanges, mut queues, mut bindings) = (Vec::new(), Vec::new(), Vec::new());
    for piece in pieces(names, kinds) {
        match piece {
            Piece::Exchange { name, kind, arguments } => exchanges.push(json!({
                "name": name, "vhost": vhost, "type": kind, "durable": true, "auto_delete": false, "internal": false,
                "arguments": arguments,
            })),
            Piece::Queue { name, arguments } => queues.push(json!({
                "name": name, "vhost": vhost, "durable": true, "auto_delete": false, "arguments": arguments,
            })),
            Piece::Binding { source, destination, key } => bindings.push(json!({
                "source": source, "vhost": vhost, "destination": destination, "destination_type": "queue",
                "routing_key": key, "arguments": {},
            })),
        }
    }
    let Policy { name, pattern, definition } = limits_policy(names);
    let policy = json!({
        "name": name, "vhost": vhost, "pattern": pattern, "apply-to": "queues", "definition": definition, "priority": 0,
    });
    json!({ "exchanges": exchanges, "queues": queues, "bindings": bindings, "policies": [policy] })
}

impl Piece {
    /// `queue warren.webhook.deliver`.
    pub fn title(&self) -> String {
        match self {
            Self::Exchange { name, .. } => format!("exchange {name}"),
            Self::Queue { name, .. } => format!("queue {name}"),
            Self::Binding { source, destination, key } => format!("binding {source} -[{key}]-> {destination}"),
        }
    }

    /// Whether something of its name is there, as far as that can be asked without rights to declare: of a binding it
    /// cannot. A channel on which the answer is no is closed.
    pub(super) async fn is_there(&self, channel: &Channel) -> Result<Option<bool>, TopologyError> {
        let there = match self {
            Self::Exchange { name, .. } => {
                let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
                let table = FieldTable::default();
                within(channel.exchange_declare(name.as_str().into(), ExchangeKind::Direct, options, table)).await
            }
            Self::Queue { name, .. } => {
                let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
                let table = FieldTable::default();
                within(channel.queue_declare(name.as_str().into(), options, table)).await.map(drop)
            }
            Self::Binding { .. } => return Ok(None),
        };
        match there {
            Ok(()) => Ok(Some(true)),
            Err(error) if chain(&error).contains("NOT_FOUND") => Ok(Some(false)),
            Err(source) => Err(TopologyError::Broker { piece: self.title(), source }),
        }
    }

    /// What declaring it would do. Declares nothing that is not there; a channel on which the answer is no is closed.
    pub(super) async fn plan(&self, channel: &Channel) -> Result<Plan, TopologyError> {
        match self.is_there(channel).await? {
            None => return Ok(Plan::Ensure),
            Some(false) => return Ok(Plan::Make),
            Some(true) => {}
        }
        // To declare what stands changes nothing, and tells whether it stands as it must.
        match self.declare(channel).await {
            Ok(()) => Ok(Plan::Stands),
            Err(TopologyError::Differs { difference, .. }) => Ok(Plan::Differs(difference)),
            Err(error) => Err(error),
        }
    }

    /// Deletes it, and what it holds.
    pub(super) async fn delete(&self, channel: &Channel) -> Result<(), TopologyError> {
        let deleted = match self {
            Self::Exchange { name, .. } => {
                within(channel.exchange_delete(name.as_str().into(), ExchangeDeleteOptions::default())).await
            }
            Self::Queue { name, .. } => {
                within(channel.queue_delete(name.as_str().into(), QueueDeleteOptions::default())).await.map(drop)
            }
            // It goes with its queue.
            Self::Binding { .. } => Ok(()),
        };
        deleted.map_err(|source| TopologyError::Broker { piece: self.title(), source })
    }

    /// Makes it stand, or finds it standing. A channel on which this failed is closed.
    pub(super) async fn declare(&self, channel: &Channel) -> Result<(), TopologyError> {
        let declared = match self {
            Self::Exchange { name, kind, arguments } => {
                let kind = if *kind == "fanout" { ExchangeKind::Fanout } else { ExchangeKind::Direct };
                let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
                within(channel.exchange_declare(name.as_str().into(), kind, options, table(arguments))).await
            }
            Self::Queue { name, arguments } => {
                let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
                within(channel.queue_declare(name.as_str().into(), options, table(arguments))).await.map(drop)
            }
            Self::Binding { source, destination, key } => {
                let call = channel.queue_bind(
                    destination.as_str().into(),
                    source.as_str().into(),
                    key.as_str().into(),
                    QueueBindOptions::default(),
                    FieldTable::default(),
                );
                within(call).await
            }
        };
        declared.map_err(|source| {
            let text = chain(&source);
            if text.contains("PRECONDITION_FAILED") {
                TopologyError::Differs { piece: self.title(), difference: text }
            } else {
                TopologyError::Broker { piece: self.title(), source }
            }
        })
    }
}

/// How many messages wait in a queue and how many consumers it has, if it is there. Otherwise the channel is closed.
pub(super) async fn ask_queue(channel: &Channel, name: &str) -> Result<Option<(u32, u32)>, TopologyError> {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    match within(channel.queue_declare(name.into(), options, FieldTable::default())).await {
        Ok(queue) => Ok(Some((queue.message_count(), queue.consumer_count()))),
        Err(error) if chain(&error).contains("NOT_FOUND") => Ok(None),
        Err(source) => Err(TopologyError::Broker { piece: format!("queue {name}"), source }),
    }
}

fn table(arguments: &BTreeMap<&'static str, Argument>) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        let value = match value {
            Argument::Text(text) => AMQPValue::LongString(text.as_str().into()),
            Argument::Number(number) => AMQPValue::LongLongInt(*number),
        };
        table.insert((*name).into(), value);
    }
    table
}
