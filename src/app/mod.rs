//! The composition root: the only place that picks adapters by what the configuration says.
//!
//! Everything else speaks of ports. Here it is decided whether a broker is RabbitMQ or a table, and in which order the
//! parts of a process come and go.

mod doctor;
mod doors;
mod engine;
mod establish;
mod heartbeat;
mod ids;
mod published;
mod queues;
mod routes;
mod up;

use std::path::PathBuf;

pub use self::{
    doctor::{Finding, Grade, doctor},
    engine::{Engine, open_store},
    establish::{Checked, establish},
    ids::{Ids, generate as generate_ids, to_toml as ids_to_toml},
    queues::{QueueView, queues},
    routes::check_routes,
    up::{Ready, Roles, up},
};
use crate::{broker::rabbitmq::topology::TopologyError, sqlite::OpenError, store::MigrateError, telemetry};

/// Why a process does not start, or a command cannot be carried out.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration lacks something.
    #[error("{0}")]
    Configuration(String),
    /// The database file cannot be used.
    #[error(transparent)]
    Database(#[from] OpenError),
    /// A file with secrets cannot be used.
    #[error("{} cannot be used", path.display())]
    Secrets {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The schema is not what this build needs.
    #[error("the database cannot be used as it is")]
    Schema(#[source] MigrateError),
    /// The broker holds something else under our names.
    #[error("the broker cannot be used as it is")]
    Topology(#[source] TopologyError),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// Which one.
        address: std::net::SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A part of the process cannot be set up.
    #[error("cannot set up {what}")]
    SetUp {
        /// Which part.
        what: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It ran, and could not go on.
    #[error("this process could not go on, so that another one has to: {0}")]
    Failed(String),
    /// Logs or metrics cannot be set up.
    #[error(transparent)]
    Telemetry(#[from] telemetry::SetupError),
}
