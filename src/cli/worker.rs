//! `warren worker`

use std::time::Duration;

use clap::Subcommand;
use jiff::Timestamp;
use serde_json::json;

use super::{Ask, Failure, output};
use crate::app;

/// See what runs where.
#[derive(Debug, Subcommand)]
pub(super) enum Worker {
    /// List the processes of the installation: their roles, versions, signs of life, and the jobs that they run
    List {
        /// Those that gave a sign of life within so many seconds
        #[arg(long, default_value_t = 60)]
        within: u64,
    },
}

impl Worker {
    pub(super) async fn run(self, ask: Ask) -> Result<(), Failure> {
        let Self::List { within } = self;
        let store = app::open_store(&ask.config()?).await?;
        let instances = store.instances(Duration::from_secs(within)).await?;
        let views: Vec<_> = instances
            .iter()
            .map(|record| {
                let it = &record.instance;
                json!({
                    "id": it.id, "host": it.host, "pid": it.pid, "version": it.version,
                    "roles": it.roles.split(' ').collect::<Vec<_>>(),
                    "started_at": Timestamp::from_microsecond(record.started_at).ok(),
                    "beat_s": record.beat_ago.as_secs_f64(),
                    "work": it.work,
                })
            })
            .collect();
        output::print(ask.output, &views, || {
            let rows = instances.iter().map(|record| {
                let it = &record.instance;
                vec![
                    it.host.clone(),
                    it.pid.to_string(),
                    it.version.clone(),
                    it.roles.clone(),
                    output::instant(Timestamp::from_microsecond(record.started_at).ok()),
                    format!("{:.0} s ago", record.beat_ago.as_secs_f64()),
                    it.work.len().to_string(),
                ]
            });
            let mut lines =
                vec![output::table(&["HOST", "PID", "VERSION", "ROLES", "STARTED", "LAST SEEN", "RUNS"], rows)];
            for work in instances.iter().flat_map(|record| &record.instance.work) {
                let progress = work.progress.map_or(String::new(), |(done, total)| format!(", {done} of {total}"));
                lines.push(format!("  {} {} for {} s{progress}", work.id, work.kind, work.seconds));
            }
            lines.join("\n")
        });
        Ok(())
    }
}
