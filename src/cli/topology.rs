//! `warren topology`

use clap::Subcommand;
use serde_json::json;

use super::{Ask, Failure, output};
use crate::broker::rabbitmq::{
    self,
    topology::{self, Names, Plan},
};

/// See and declare what must stand in the broker.
#[derive(Debug, Subcommand)]
pub(super) enum Topology {
    /// Say what `apply` would do
    Plan,
    /// Declare what is missing. What stands otherwise than it must is an error that names the difference
    Apply,
    /// Print everything as RabbitMQ's definitions.json
    Export {
        /// The virtual host that it is for
        #[arg(long, default_value = "/")]
        vhost: String,
    },
}

impl Topology {
    pub(super) async fn run(self, ask: Ask) -> Result<(), Failure> {
        let config = ask.config()?;
        let kinds = ask.registry(&config)?.kinds();
        if let Self::Export { vhost } = self {
            let names = config.servers.map_or_else(|| Names::new("warren"), |servers| servers.broker.names());
            let definitions = topology::definitions(&names, &kinds, &vhost);
            println!("{}", serde_json::to_string_pretty(&definitions).unwrap_or_default());
            return Ok(());
        }
        let Some(servers) = config.servers else {
            return Err(Failure::Usage("an embedded installation has no broker: set AMQP_URL and DATABASE_URL".into()));
        };
        if let Self::Plan = self {
            let plans = rabbitmq::plan_topology(&servers.broker, &kinds).await?;
            let rows: Vec<_> =
                plans.iter().map(|(piece, plan)| json!({ "piece": piece.title(), "plan": plan })).collect();
            output::print(ask.output, &rows, || {
                let rows = plans.iter().map(|(piece, plan)| {
                    let plan = match plan {
                        Plan::Stands => "stands".into(),
                        Plan::Make => "will be made".into(),
                        Plan::Ensure => "will be made if it is missing".into(),
                        Plan::Differs(difference) => format!("STANDS OTHERWISE: {difference}"),
                    };
                    vec![piece.title(), plan]
                });
                output::table(&["PIECE", "PLAN"], rows)
            });
            return match plans.iter().any(|(_, plan)| matches!(plan, Plan::Differs(_))) {
                true => Err(Failure::Differs("something stands otherwise than it must".into())),
                false => Ok(()),
            };
        }
        let pieces = rabbitmq::apply_topology(&servers.broker, &kinds).await?;
        let titles: Vec<_> = pieces.iter().map(topology::Piece::title).collect();
        let bounded = servers.broker.management.is_some();
        output::print(ask.output, &json!({ "pieces": titles, "bounded": bounded }), || {
            let bounded = if bounded {
                "the queues are bounded"
            } else {
                "broker.management_url is not set, so the queues were not bounded"
            };
            format!("{}\n{} pieces stand; {bounded}", titles.join("\n"), titles.len())
        });
        Ok(())
    }
}
