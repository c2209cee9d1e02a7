//! Looks an installation over: what is wrong with it, and what mends it.

use std::time::Duration;

use serde::Serialize;

use super::{StartError, ids, queues::queues};
use crate::{
    broker::rabbitmq::{self, topology::Plan},
    clock,
    config::Config,
    id::Minter,
    job::{Kind, Micros, State, chain},
    store::{MigrateError, Store},
};

/// How far the clocks of a process and of the database may be apart.
const SKEW: Micros = 2_000_000;
/// How long a process may have given no sign of life.
const ALIVE: Duration = Duration::from_secs(20);

/// How grave a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Grade {
    /// As it should be.
    Ok,
    /// It works, and someone should look.
    Warning,
    /// It does not work.
    Problem,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How grave it is.
    pub grade: Grade,
    /// What was looked at.
    pub part: &'static str,
    /// What was found.
    pub found: String,
    /// What mends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

/// What was found so far.
#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn ok(&mut self, part: &'static str, found: impl Into<String>) {
        self.0.push(Finding { grade: Grade::Ok, part, found: found.into(), fix: None });
    }

    fn warning(&mut self, part: &'static str, found: impl Into<String>, fix: impl Into<String>) {
        self.0.push(Finding { grade: Grade::Warning, part, found: found.into(), fix: Some(fix.into()) });
    }

    fn problem(&mut self, part: &'static str, found: impl Into<String>, fix: impl Into<String>) {
        self.0.push(Finding { grade: Grade::Problem, part, found: found.into(), fix: Some(fix.into()) });
    }
}

/// Looks an installation over.
pub async fn doctor(config: &Config, kinds: &[Kind]) -> Vec<Finding> {
    let mut findings = Findings::default();
    for mistake in config.problems() {
        findings.problem(
            "configuration",
            format!("{}: {}", mistake.setting, mistake.problem),
            "see `warren config check`",
        );
    }
    match super::open_store(config).await {
        Ok(store) => {
            findings.ok("database", "it answers, and its schema is what this build needs");
            look_at_store(&mut findings, config, store.as_ref()).await;
        }
        Err(error) => {
            let fix = match &error {
                StartError::Schema(MigrateError::Older { .. }) => "run `warren migrate`",
                StartError::Schema(MigrateError::Newer { .. }) => "run the newer warren that has changed it",
                StartError::Database(_) => "start `warren up` once, or name the folder with --data-dir",
                _ => "check DATABASE_URL, and that the database runs and lets this user in",
            };
            findings.problem("database", chain(&error), fix);
        }
    }
    if let Some(servers) = &config.servers {
        look_at_broker(&mut findings, &servers.broker, kinds).await;
    }
    look_at_queues(&mut findings, config, kinds).await;
    findings.0
}

async fn look_at_store(findings: &mut Findings, config: &Config, store: &dyn Store) {
    if let Ok(theirs) = store.now().await {
        let skew = clock::now() - theirs;
        if skew.abs() > SKEW {
            let found = format!(
                "this machine's clock is {:.1} s off the database's",
                Duration::from_micros(skew.unsigned_abs()).as_secs_f64()
            );
            findings.warning("clock", found, "keep the time of all machines with NTP; due times follow the database's");
        } else {
            findings.ok("clock", "this machine's is the database's, but for less than 2 s");
        }
    }
    look_at_secrets(findings, config, store).await;
    look_at_keys(findings, config, store).await;
    match store.count(State::Dead, 10_000).await {
        Ok(0) => findings.ok("dead letters", "none"),
        Ok(dead) => findings.warning("dead letters", format!("{dead} wait for a decision"), "see `warren dead list`"),
        Err(error) => findings.problem("dead letters", chain(&error), "see the database's own log"),
    }
    let Ok(alive) = store.instances(ALIVE).await else { return };
    let has = |role: &str| alive.iter().any(|it| it.instance.roles.split(' ').any(|has| has == role));
    for (role, effect) in [
        ("gateway", "no job comes in over HTTP"),
        ("worker", "no job is run"),
        ("dispatcher", "no retry, delay or replay is published"),
        ("keeper", "nothing old is removed, and what the broker gives up stays there"),
    ] {
        if has(role) {
            findings.ok("roles", format!("a {role} lives"));
        } else {
            let found = format!("no {role} has given a sign of life for {} s: {effect}", ALIVE.as_secs());
            findings.warning("roles", found, format!("start `warren up {role}`"));
        }
    }
}

async fn look_at_secrets(findings: &mut Findings, config: &Config, store: &dyn Store) {
    const FIX: &str = "give every process the same [id] section";
    let ours = match &config.ids {
        Some(ids) => Some(ids.clone()),
        None if config.servers.is_none() => ids::of_folder(&config.data_dir).ok(),
        None => None,
    };
    let Some(minter) = ours.and_then(|ids| Minter::new(&ids.dedup_key, &ids.tag_keys).ok()) else { return };
    let stands = async |name| store.value(name).await.ok().flatten();
    let fingerprints = minter.fingerprints();
    let dedup = stands(ids::DEDUP).await.is_none_or(|stands| stands == fingerprints.dedup);
    let tags = stands(ids::TAG).await.is_none_or(|stands| fingerprints.tags.contains(&stands));
    match (dedup, tags) {
        (true, true) => findings.ok("id secrets", "they are the installation's"),
        (false, _) => findings.problem("id secrets", "id.dedup_key is another one than the installation's", FIX),
        (_, false) => findings.problem("id secrets", "id.tag_keys lacks the installation's newest key", FIX),
    }
}

async fn look_at_keys(findings: &mut Findings, config: &Config, store: &dyn Store) {
    let Ok(Some(stored)) = store.keys(None).await else { return };
    let all: Vec<_> = config.access.keys.iter().chain(&stored.keys).collect();
    let live = all.iter().filter(|key| key.is_live(clock::now())).count();
    let address = config.gateway_listen;
    let is_open = all.is_empty() && stored.not_understood.is_empty() && address.ip().is_loopback();
    match live {
        0 if is_open => findings.ok("keys", "none, and only this machine can reach the gateway"),
        0 => findings.problem(
            "keys",
            format!("there is no key that is good, so the gateway at {address} refuses every request"),
            "make one with `warren key create`",
        ),
        live => findings.ok("keys", format!("{live} can be used")),
    }
    if !stored.not_understood.is_empty() {
        let count = stored.not_understood.len();
        let found = format!("{count} were made by another build, and let nobody in here");
        findings.warning(
            "keys",
            found,
            "run the newer warren that has made them, or revoke them with `warren key revoke`",
        );
    }
}

async fn look_at_broker(findings: &mut Findings, settings: &rabbitmq::Settings, kinds: &[Kind]) {
    let plans = match rabbitmq::plan_topology(settings, kinds).await {
        Ok(plans) => plans,
        Err(error) => {
            let found = chain(&error);
            let fix = if found.contains("ACCESS_REFUSED") {
                "give the broker's user the permissions in deploy/README.md, or the right password"
            } else {
                "check AMQP_URL, and that the broker runs"
            };
            findings.problem("broker", found, fix);
            return;
        }
    };
    findings.ok("broker", "it answers");
    let mut stands = true;
    for (piece, plan) in &plans {
        match plan {
            Plan::Stands | Plan::Ensure => {}
            Plan::Make => {
                stands = false;
                findings.problem(
                    "topology",
                    format!("the {} is not there", piece.title()),
                    "run `warren topology apply`",
                );
            }
            Plan::Differs(difference) => {
                stands = false;
                let fix = "empty it, delete it, and run `warren topology apply`: what a queue is declared with stays";
                findings.problem("topology", difference.clone(), fix);
            }
        }
    }
    if stands {
        findings.ok("topology", "every exchange and queue stands as it must");
    }
    let Some(management) = settings.management() else {
        let fix = "set broker.management_url, so that version, flags and limits of queues can be looked at";
        findings.warning("broker", "its management API is not known here", fix);
        return;
    };
    match management.version().await {
        Ok(version) => findings.ok("broker", format!("RabbitMQ {version}")),
        Err(error) => findings.problem("broker", chain(&error), "check broker.management_url"),
    }
    if let Ok(flags) = management.disabled_flags().await
        && !flags.is_empty()
    {
        let found = format!("feature flags are not enabled: {}", flags.join(", "));
        findings.warning("broker", found, "rabbitmqctl enable_feature_flag all");
    }
    match management.unbounded(&settings.names(), kinds).await {
        Ok(unbounded) if unbounded.is_empty() => findings.ok("queue limits", "every queue is bounded"),
        Ok(unbounded) => {
            let kinds: Vec<_> = unbounded.iter().map(Kind::as_str).collect();
            findings.warning(
                "queue limits",
                format!("not bounded: {}", kinds.join(", ")),
                "run `warren topology apply`",
            );
        }
        Err(error) => findings.problem("queue limits", chain(&error), "check broker.management_url"),
    }
}

async fn look_at_queues(findings: &mut Findings, config: &Config, kinds: &[Kind]) {
    let Ok(queues) = queues(config, kinds).await else { return };
    for queue in queues {
        if queue.waiting.is_some_and(|waiting| waiting > 0) && queue.consumers == Some(0) {
            let found = format!("{} jobs wait in {} and nobody takes them", queue.waiting.unwrap_or(0), queue.name);
            let role = if matches!(queue.name.as_str(), "dead" | "unrouted") { "keeper" } else { "worker" };
            findings.warning("queues", found, format!("start `warren up {role}`"));
        }
    }
}
