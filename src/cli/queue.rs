//! `warren queue`

use clap::Subcommand;

use super::{Ask, Failure, output};
use crate::app;

/// See what waits where.
#[derive(Debug, Subcommand)]
pub(super) enum Queue {
    /// List all waiting lines: how many jobs, how many consumers, and for about how long the oldest has waited
    List,
}

impl Queue {
    pub(super) async fn run(self, ask: Ask) -> Result<(), Failure> {
        let config = ask.config()?;
        let kinds = ask.registry(&config)?.kinds();
        let queues = app::queues(&config, &kinds).await?;
        output::print(ask.output, &queues, || {
            let known =
                |number: Option<u64>, unit: &str| number.map_or_else(|| "-".into(), |number| format!("{number}{unit}"));
            let rows = queues.iter().map(|queue| {
                vec![
                    queue.name.clone(),
                    known(queue.waiting, ""),
                    known(queue.consumers.map(u64::from), ""),
                    known(queue.oldest_s, " s"),
                ]
            });
            output::table(&["QUEUE", "WAITING", "CONSUMERS", "OLDEST"], rows)
        });
        Ok(())
    }
}
