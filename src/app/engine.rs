//! The engine under the roles: RabbitMQ and Postgres, or one SQLite file.

use std::sync::Arc;

use super::{Ids, StartError, ids};
use crate::{
    broker::{Leftovers, Observe, Publish, Subscribe, embedded::Embedded, rabbitmq},
    config::{Config, Servers},
    job::{Kind, chain},
    sqlite::{Database, Use},
    store::{Store, postgres::Postgres, sqlite::Sqlite},
};

/// The engine under the roles.
pub enum Engine {
    /// RabbitMQ and Postgres. Connections are made by the roles that need them.
    Servers {
        /// Where they are.
        servers: Servers,
        /// The store on Postgres.
        store: Arc<Postgres>,
    },
    /// One SQLite file.
    Embedded {
        /// The file.
        database: Arc<Database>,
        /// The store in it.
        store: Arc<Sqlite>,
        /// The broker in it.
        broker: Arc<Embedded>,
    },
}

/// The way in.
pub struct WayIn {
    /// Publishes.
    pub publish: Arc<dyn Publish>,
    /// Sees how long the lines are.
    pub observe: Arc<dyn Observe>,
}

impl Engine {
    /// Opens the engine that the configuration names. Servers need not be there yet; a file must be usable.
    pub async fn open(config: &Config) -> Result<Self, StartError> {
        if let Some(servers) = &config.servers {
            let store = Arc::new(Postgres::new(servers.database.clone()));
            return Ok(Self::Servers { servers: servers.clone(), store });
        }
        let database = Arc::new(Database::open(&config.data_dir, Use::Owner).await?);
        let store = Arc::new(Sqlite::new(database.clone()));
        // Nobody else runs on the file, so there is nobody to ask before its schema is changed.
        crate::store::Installation::migrate(store.as_ref()).await.map_err(StartError::Schema)?;
        let broker = Embedded::open(database.clone()).await;
        let broker =
            broker.map_err(|source| StartError::SetUp { what: "the embedded broker", source: source.into() })?;
        Ok(Self::Embedded { database, store, broker: Arc::new(broker) })
    }

    /// The store.
    pub fn store(&self) -> Arc<dyn Store> {
        match self {
            Self::Servers { store, .. } => store.clone(),
            Self::Embedded { store, .. } => store.clone(),
        }
    }

    /// The way in for jobs of these kinds, on connections of its own.
    pub fn way_in(&self, kinds: &[Kind]) -> WayIn {
        match self {
            Self::Servers { servers, .. } => {
                let producer = Arc::new(rabbitmq::Producer::open(&servers.broker, kinds));
                WayIn { publish: producer.clone(), observe: producer }
            }
            Self::Embedded { broker, .. } => WayIn { publish: broker.clone(), observe: broker.clone() },
        }
    }

    /// The way out, on a connection of its own.
    pub fn way_out(&self) -> Arc<dyn Subscribe> {
        match self {
            Self::Servers { servers, .. } => Arc::new(rabbitmq::Consumer::open(&servers.broker)),
            Self::Embedded { broker, .. } => broker.clone(),
        }
    }

    /// What the broker could not deliver, if it is one that gives anything up; on a connection of its own.
    pub fn leftovers(&self) -> Option<Arc<dyn Leftovers>> {
        match self {
            Self::Servers { servers, .. } => Some(Arc::new(rabbitmq::Consumer::open(&servers.broker))),
            Self::Embedded { .. } => None,
        }
    }

    /// The secrets behind ids.
    pub fn ids(&self, config: &Config) -> Result<Ids, StartError> {
        match (&config.ids, self) {
            (Some(ids), _) => Ok(ids.clone()),
            (None, Self::Embedded { .. }) => ids::of_folder(&config.data_dir),
            (None, Self::Servers { .. }) => {
                Err(StartError::Configuration("there are no secrets behind job ids".into()))
            }
        }
    }

    /// What an operator should know of where everything is.
    pub fn describe(&self) -> String {
        match self {
            Self::Servers { servers, .. } => format!("on {} and {}", servers.broker.url, servers.database),
            Self::Embedded { database, .. } => format!("embedded, on {}", database.path().display()),
        }
    }

    /// Whether all roles must run in one process.
    pub fn is_embedded(&self) -> bool {
        matches!(self, Self::Embedded { .. })
    }

    /// Ends it, after all roles have ended.
    pub async fn close(&self) {
        if let Self::Embedded { database, broker, .. } = self {
            if let Err(error) = broker.close().await {
                // The next start then counts a few jobs too many as given out, which harms none.
                tracing::warn!(error = chain(&error), "could not write down what is given out");
            }
            database.close().await;
        }
    }
}

/// The store alone, for a command that looks in while an installation runs.
pub async fn open_store(config: &Config) -> Result<Arc<dyn Store>, StartError> {
    let store: Arc<dyn Store> = match &config.servers {
        Some(servers) => Arc::new(Postgres::new(servers.database.clone())),
        None => Arc::new(Sqlite::new(Arc::new(Database::open(&config.data_dir, Use::Visitor).await?))),
    };
    store.check_schema().await.map_err(StartError::Schema)?;
    Ok(store)
}
