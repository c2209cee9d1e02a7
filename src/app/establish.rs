//! Makes sure that the servers are what this build needs: schema, secrets, topology.
//!
//! A server that is away is no mistake, so a process starts without it and asks again until it answers. A server that
//! answers and is not as it must be ends the start with a sentence.

use std::{sync::Arc, time::Duration};

use tracing::{error, info, warn};

use super::{
    Engine, StartError,
    ids::{DEDUP, TAG},
};
use crate::{
    broker::rabbitmq::{self, topology::TopologyError},
    clock,
    config::Config,
    health::{Condition, Health},
    id::Fingerprints,
    job::{Kind, chain},
    retry::Reconnect,
    store::{MigrateError, SINCE, Store, StoreError},
};

/// How long a start waits for servers before it goes on without them.
const PATIENCE: Duration = Duration::from_secs(5);

/// What was found of a server.
#[derive(Debug)]
pub enum Checked {
    /// It is what this build needs.
    Good,
    /// It did not answer, or lacks what someone else must make.
    Away(String),
}

/// Checks the servers, waits a moment for those that are away, and goes on checking in the background for those that
/// stay away. Fails only if one of them answers and is not as it must be.
pub async fn establish(
    engine: &Engine,
    config: &Config,
    kinds: Vec<Kind>,
    fingerprints: Fingerprints,
    health: Arc<Health>,
) -> Result<(), StartError> {
    let Engine::Servers { servers, .. } = engine else {
        return check_secrets(engine.store().as_ref(), &fingerprints, &health)
            .await
            .map_or_else(|error| Err(StartError::Schema(MigrateError::Store(error))), |()| Ok(()));
    };
    let database = Check::Database { store: engine.store(), migrate: config.migrate, fingerprints };
    let broker = Check::Broker { settings: servers.broker.clone(), kinds, apply: config.apply_topology };
    for check in [database, broker] {
        let (part, health) = (check.part(), health.clone());
        health.set(part, Condition::NotReady("not checked yet".into()));
        let soon = tokio::time::timeout(PATIENCE, check.until_good(&health)).await;
        match soon {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(error),
            Err(_) => {
                warn!(part, "starting without it; it will be asked again");
                tokio::spawn(async move {
                    if let Err(error) = check.until_good(&health).await {
                        // The process serves what it can, and is not ready until someone has looked.
                        error!(part, error = chain(&error), "not what this build needs");
                        health.set(part, Condition::NotReady(chain(&error)));
                    }
                });
            }
        }
    }
    Ok(())
}

enum Check {
    Database { store: Arc<dyn Store>, migrate: bool, fingerprints: Fingerprints },
    Broker { settings: rabbitmq::Settings, kinds: Vec<Kind>, apply: bool },
}

impl Check {
    fn part(&self) -> &'static str {
        match self {
            Self::Database { .. } => "schema",
            Self::Broker { .. } => "topology",
        }
    }

    async fn until_good(&self, health: &Health) -> Result<(), StartError> {
        let mut pauses = Reconnect::new();
        loop {
            match self.once(health).await? {
                Checked::Good => {
                    health.set(self.part(), Condition::Ready);
                    return Ok(());
                }
                Checked::Away(why) => {
                    warn!(part = self.part(), why, "cannot be checked yet");
                    health.set(self.part(), Condition::NotReady(why));
                    tokio::time::sleep(pauses.pause()).await;
                }
            }
        }
    }

    async fn once(&self, health: &Health) -> Result<Checked, StartError> {
        match self {
            Self::Database { store, migrate, fingerprints } => {
                let schema = if *migrate {
                    store.migrate().await.map(|steps| {
                        for step in steps {
                            info!(step, "changed the database's schema");
                        }
                    })
                } else {
                    store.check_schema().await
                };
                match schema {
                    Ok(()) => {}
                    Err(MigrateError::Store(error)) => return Ok(Checked::Away(chain(&error))),
                    Err(error) => return Err(StartError::Schema(error)),
                }
                match check_secrets(store.as_ref(), fingerprints, health).await {
                    Ok(()) => Ok(Checked::Good),
                    Err(error) => Ok(Checked::Away(chain(&error))),
                }
            }
            Self::Broker { settings, kinds, apply } => {
                let missing = if *apply {
                    rabbitmq::apply_topology(settings, kinds).await.map(|_| None)
                } else {
                    rabbitmq::missing_topology(settings, kinds).await
                };
                match missing {
                    Ok(None) => Ok(Checked::Good),
                    Ok(Some(piece)) => {
                        Ok(Checked::Away(format!("the {} is not there: run `warren topology apply`", piece.title())))
                    }
                    Err(error @ TopologyError::Differs { .. }) => Err(StartError::Topology(error)),
                    Err(error @ (TopologyError::Broker { .. } | TopologyError::Management(_))) => {
                        Ok(Checked::Away(chain(&error)))
                    }
                }
            }
        }
    }
}

/// Whether this process makes the same ids as the others of its installation. One that does not is not ready.
async fn check_secrets(store: &dyn Store, ours: &Fingerprints, health: &Health) -> Result<(), StoreError> {
    store.settle_value(SINCE, &clock::now().to_string()).await?;
    let Some(newest) = ours.tags.first() else { return Ok(()) };
    let dedup = store.settle_value(DEDUP, &ours.dedup).await?;
    let mut tag = store.settle_value(TAG, newest).await?;
    if tag != *newest && ours.tags.contains(&tag) && store.replace_value(TAG, &tag, newest).await? {
        info!("the tag key of ids was changed");
        tag.clone_from(newest);
    }
    let problem = if dedup != ours.dedup {
        Some("id.dedup_key is another one than the installation's: the same key would give another job")
    } else if tag != *newest && !ours.tags.contains(&tag) {
        Some("id.tag_keys lacks the installation's newest key: its ids would not be known here")
    } else {
        None
    };
    health.report("ids", problem.map_or(Ok(()), |problem| Err(problem.into())));
    Ok(())
}
