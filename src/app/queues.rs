//! What waits where, for operators.

use std::time::Duration;

use serde::Serialize;

use super::{StartError, open_store};
use crate::{
    broker::{embedded, rabbitmq},
    config::Config,
    job::Kind,
    sqlite::{Database, Use},
    store::MigrateError,
};

/// One waiting line.
#[derive(Debug, Clone, Serialize)]
pub struct QueueView {
    /// The kind of its jobs, or `dead` and `unrouted` for what the keeper takes.
    pub name: String,
    /// How many jobs wait to be given out; not known of a queue that is not there.
    pub waiting: Option<u64>,
    /// How many consumers it has, where it has any of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consumers: Option<u32>,
    /// For about how long the oldest has been waiting, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest_s: Option<u64>,
}

/// All waiting lines of an installation.
pub async fn queues(config: &Config, kinds: &[Kind]) -> Result<Vec<QueueView>, StartError> {
    let store = open_store(config).await?;
    let view = |name: &str, waiting, consumers| QueueView { name: name.into(), waiting, consumers, oldest_s: None };
    let mut views: Vec<_> = match &config.servers {
        Some(servers) => {
            let names = servers.broker.names();
            let queues: Vec<_> =
                kinds.iter().map(|kind| names.queue(kind)).chain([names.dead(), names.unrouted()]).collect();
            let found = rabbitmq::queues(&servers.broker, &queues).await.map_err(StartError::Topology)?;
            let titles = kinds.iter().map(Kind::as_str).chain(["dead", "unrouted"]);
            let one = |(title, found): (&str, Option<(u32, u32)>)| {
                view(title, found.map(|(waiting, _)| waiting.into()), found.map(|(_, consumers)| consumers))
            };
            titles.zip(found).map(one).collect()
        }
        None => {
            let database = Database::open(&config.data_dir, Use::Visitor).await?;
            let waiting = embedded::unsettled(&database).await;
            let waiting = waiting.map_err(|source| {
                let source = crate::store::StoreError::Unavailable(source.into());
                StartError::Schema(MigrateError::Store(source))
            })?;
            let of =
                |kind: &Kind| waiting.iter().find(|(name, _)| name == kind.as_str()).map_or(0, |(_, count)| *count);
            kinds.iter().map(|kind| view(kind.as_str(), Some(of(kind)), None)).collect()
        }
    };
    let depths: Vec<_> =
        kinds.iter().zip(&views).map(|(kind, view)| (kind.clone(), view.waiting.unwrap_or(0))).collect();
    let waiting: Vec<_> = depths.iter().filter(|(_, depth)| *depth > 0).cloned().collect();
    let ages = store.waiting_since(&waiting).await.map_err(|error| StartError::Schema(MigrateError::Store(error)))?;
    for ((kind, _), age) in waiting.iter().zip(ages) {
        if let Some(view) = views.iter_mut().find(|view| view.name == kind.as_str()) {
            view.oldest_s = age.map(|age: Duration| age.as_secs());
        }
    }
    Ok(views)
}
