//! The installation that is measured: names and files of its own, processes of this very program.

use std::{
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use warren_messages::{Message as _, probe::Probe};

use super::cpu::{self, Server};
use crate::{
    app,
    broker::rabbitmq,
    cli::Failure,
    config::{Config, Flags, Servers},
    job::{Kind, chain},
    store::postgres,
};

/// How long a process may take to say that it is up.
const START: Duration = Duration::from_secs(30);

/// An installation that is made to be measured.
pub(super) struct Installation {
    flags: Flags,
    folder: PathBuf,
    schema: String,
    environment: Vec<(String, String)>,
    pub(super) servers: Option<Servers>,
    pub(super) kinds: Vec<Kind>,
    /// The kinds that the jobs of a drain are spread over.
    pub(super) drained: Vec<Kind>,
    /// The servers that run on this machine.
    pub(super) nearby: Vec<Server>,
}

/// One process of it. Ended when it is dropped.
pub(super) struct Process {
    pub(super) roles: &'static str,
    child: Child,
    pub(super) gateway: Option<String>,
    pub(super) admin: String,
}

impl Installation {
    /// Makes it, beside whatever else there is on the servers.
    pub(super) async fn prepare(
        flags: &Flags,
        config: &Config,
        mut kinds: Vec<Kind>,
        spread: u16,
    ) -> Result<Self, Failure> {
        let names = if spread == 1 {
            vec![Probe::KIND.to_owned()]
        } else {
            (1..=spread).map(|n| format!("bench{n}")).collect()
        };
        let drained: Result<Vec<_>, _> = names.iter().map(|name| Kind::new(name)).collect();
        let drained = drained.map_err(|error| Failure::Failed(error.to_string()))?;
        let name = format!("warren-bench-{}", std::process::id());
        let folder = std::env::temp_dir().join(&name);
        std::fs::create_dir_all(&folder).map_err(|error| Failure::Failed(format!("{}: {error}", folder.display())))?;
        let schema = name.replace('-', "_");
        let mut environment = vec![("WARREN__LOG__LEVEL".to_owned(), "warn".to_owned())];
        for kind in &drained {
            if !kinds.contains(kind) {
                let variable = format!("WARREN__KIND__{}__LIKE", kind.as_str().to_ascii_uppercase());
                environment.push((variable, Probe::KIND.to_owned()));
                kinds.push(kind.clone());
            }
        }
        let mut servers = config.servers.clone();
        if let Some(servers) = &mut servers {
            servers.broker.prefix.clone_from(&name);
            let ids = app::generate_ids()?;
            let tags: Vec<_> = ids.tag_keys.iter().map(|tag| format!("\"{}\"", tag.reveal())).collect();
            environment.extend([
                ("WARREN__BROKER__PREFIX".into(), name),
                ("WARREN__ID__DEDUP_KEY".into(), ids.dedup_key.reveal()),
                ("WARREN__ID__TAG_KEYS".into(), format!("[{}]", tags.join(", "))),
                // Read by every client of Postgres: its tables are in a schema of their own.
                ("PGOPTIONS".into(), format!("-c search_path={schema}")),
            ]);
            postgres::make_schema(&servers.database, &schema).await?;
            rabbitmq::apply_topology(&servers.broker, &kinds).await?;
        }
        let nearby = servers.as_ref().map_or_else(Vec::new, |Servers { broker, database, .. }| {
            let broker = Server::find("(RabbitMQ)", "beam.smp", broker.url.address());
            let database = database.address().and_then(|address| Server::find("(Postgres)", "postgres", address));
            broker.into_iter().chain(database).collect()
        });
        Ok(Self { flags: flags.clone(), folder, schema, environment, servers, kinds, drained, nearby })
    }

    /// What a result is worth: which engine, and what it does before it says that something is durable.
    pub(super) async fn durability(&self) -> Result<String, Failure> {
        Ok(match &self.servers {
            None => "embedded: SQLite, WAL, synchronous=FULL".into(),
            Some(servers) => format!(
                "RabbitMQ: quorum queues, publisher confirms; Postgres: {}",
                postgres::durability(&servers.database).await?
            ),
        })
    }

    /// Starts a process with these roles: all of them on the embedded engine.
    pub(super) fn start(&self, roles: &'static str) -> Result<Process, Failure> {
        let failed = |error: std::io::Error| Failure::Failed(format!("cannot start a process: {error}"));
        let mut command = Command::new("/proc/self/exe");
        command.arg("up").args(roles.split_whitespace().filter(|_| self.servers.is_some()));
        command.args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--data-dir"]).arg(&self.folder);
        if let Some(file) = &self.flags.config {
            command.arg("--config").arg(file);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let mut child = command.stdout(Stdio::piped()).spawn().map_err(failed)?;
        let (sender, lines) = std::sync::mpsc::channel();
        if let Some(stdout) = child.stdout.take() {
            std::thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    _ = sender.send(line);
                }
            });
        }
        let mut process = Process { roles, child, gateway: None, admin: String::new() };
        loop {
            let Ok(line) = lines.recv_timeout(START) else {
                return Err(Failure::Failed(format!("a process with the roles {roles} did not start")));
            };
            let line = line.trim();
            if let Some(url) = line.strip_prefix("health").and_then(|url| url.trim().strip_suffix("/readyz")) {
                url.clone_into(&mut process.admin);
            }
            if let Some(url) = line.strip_prefix("jobs").and_then(|url| url.trim().strip_suffix("/v1/jobs/{kind}")) {
                process.gateway = Some(url.trim_start_matches("http://").to_owned());
            }
            let has_gateway = self.servers.is_none() || roles.contains("gateway");
            if !process.admin.is_empty() && (process.gateway.is_some() || !has_gateway) {
                return Ok(process);
            }
        }
    }

    /// Removes all of it.
    pub(super) async fn remove(self) {
        if let Some(servers) = &self.servers {
            if let Err(error) = rabbitmq::delete_topology(&servers.broker, &self.kinds).await {
                eprintln!("warren: what was made in the broker stays: {}", chain(&error));
            }
            if let Err(error) = postgres::drop_schema(&servers.database, &self.schema).await {
                eprintln!("warren: the schema {} stays: {}", self.schema, chain(&error));
            }
        }
        _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Process {
    /// The CPU time that it has used so far, in microseconds.
    pub(super) fn cpu_us(&self) -> u64 {
        cpu::cpu_us(self.child.id())
    }

    /// The most memory that it has held, in MiB.
    pub(super) fn peak_memory_mib(&self) -> u64 {
        cpu::peak_memory_mib(self.child.id())
    }

    /// Ends it as a supervisor does, and waits for its end.
    pub(super) fn end(mut self) {
        let asked = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        if asked.is_ok_and(|status| status.success()) {
            _ = self.child.wait();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
