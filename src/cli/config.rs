//! `warren config`

use clap::Subcommand;
use serde_json::json;

use super::{Ask, Failure, output};
use crate::{app, config};

/// Check the configuration, and make secrets for it.
#[derive(Debug, Subcommand)]
pub(super) enum Config {
    /// Report every mistake in the configuration
    Check,
    /// Make the secrets behind job ids, as a piece of a configuration file
    Keys,
    /// Print every setting with its default and what it means
    Defaults,
}

impl Config {
    pub(super) fn run(self, ask: &Ask) -> Result<(), Failure> {
        match self {
            Self::Check => {
                let (config, registry) = ask.installation()?;
                let kinds = registry.kinds();
                let admin = config.admin_listen.unwrap_or_else(|| app::Roles::ALL.admin_listen());
                let servers = config.servers.as_ref();
                let engine = servers.map_or_else(
                    || format!("embedded, in {}", config.data_dir.display()),
                    |servers| format!("{} and {}", servers.broker.url, servers.database),
                );
                let answer = json!({
                    "engine": engine,
                    "gateway": config.gateway_listen,
                    "admin": admin,
                    "kinds": kinds,
                });
                output::print(ask.output, &answer, || {
                    let kinds: Vec<_> = kinds.iter().map(ToString::to_string).collect();
                    format!(
                        "the configuration is right\n  engine   {engine}\n  gateway  {}\n  admin    {}\n  kinds    {}",
                        config.gateway_listen,
                        admin,
                        kinds.join(", ")
                    )
                });
                Ok(())
            }
            Self::Keys => {
                print!("{}", app::ids_to_toml(&app::generate_ids()?));
                Ok(())
            }
            Self::Defaults => {
                print!("{}", config::DEFAULTS);
                Ok(())
            }
        }
    }
}
