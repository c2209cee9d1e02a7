//! What the operator says: defaults, a file, the environment, flags, in that order.
//!
//! Owns the settings and their rules. Every mistake is reported at once, with the place where it was made; a secret is
//! never printed, not even a wrong one.

mod events;
mod keys;
mod layers;
mod limits;
mod sources;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;
use toml::Value;
use warren_workers::{
    Policy,
    policy::{MAX_BACKOFF, MAX_TIMEOUT},
    webhook::{self, sign},
};

use self::layers::Layers;
pub(crate) use self::layers::shown_file;
pub use self::{
    events::{Events, Unrouted},
    keys::Access,
    layers::{Mistake, parse_duration},
    limits::{Limits, TlsFiles},
    sources::{Scheme, Secret as SourceSecret, Source},
};
use crate::{
    broker::rabbitmq::{self, AmqpUrl},
    id,
    store::postgres::PgUrl,
    telemetry,
};

/// The settings' defaults, which are their documentation too.
pub const DEFAULTS: &str = include_str!("default.toml");
/// The file that is read if none is named and it is there.
const FILE: &str = "warren.toml";

/// Everything that the operator says.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where an embedded installation keeps its files.
    pub data_dir: PathBuf,
    /// Where jobs come in.
    pub gateway_listen: SocketAddr,
    /// What those who connect to it may do, and with which certificate.
    pub limits: Limits,
    /// Who may do what.
    pub access: Access,
    /// Where health and metrics are, if it is said.
    pub admin_listen: Option<SocketAddr>,
    /// The servers, or none: embedded.
    pub servers: Option<Servers>,
    /// Whether a starting process declares what is missing in the broker.
    pub apply_topology: bool,
    /// Whether a starting process brings the schema up to date.
    pub migrate: bool,
    /// The secrets behind ids, if they are given.
    pub ids: Option<Ids>,
    /// How long a stopping process waits for jobs that run.
    pub drain: Duration,
    /// How long a worker holds jobs that have not started while the database is away.
    pub hold: Duration,
    /// How long a job waits for a build that reads its version.
    pub unknown_version: Duration,
    /// How long rows are kept.
    pub retention: Retention,
    /// Outgoing webhooks.
    pub webhook: webhook::Settings,
    /// Which events become which jobs.
    pub events: Events,
    /// How kinds are run, where it differs from what their workers say.
    pub kinds: BTreeMap<String, KindSettings>,
    /// Where signed webhooks come in from.
    pub sources: BTreeMap<String, Source>,
    /// What is logged.
    pub log_level: String,
    /// How.
    pub log_format: LogFormat,
}

/// The servers of an installation.
#[derive(Debug, Clone)]
pub struct Servers {
    /// The broker.
    pub broker: rabbitmq::Settings,
    /// The database.
    pub database: PgUrl,
}

/// The secrets behind ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ids {
    /// Behind keyed ids.
    pub dedup_key: id::Secret,
    /// Behind the tags of unkeyed ids; the first one mints.
    pub tag_keys: Vec<id::Secret>,
}

/// How long rows of jobs that are over are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// As a fence against late copies.
    pub unkeyed: Duration,
    /// As the window in which a key is known.
    pub keyed: Duration,
}

/// How a kind is run, where it differs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct KindSettings {
    /// The kind whose work it does, where it is none of this build's own.
    pub like: Option<String>,
    concurrency: Option<u32>,
    timeout: Option<Duration>,
    attempts: Option<u32>,
    backoff_base: Option<Duration>,
    backoff_factor: Option<f64>,
    backoff_cap: Option<Duration>,
    keep_body: Option<Duration>,
    keep_output: Option<Duration>,
}

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// Text.
    Text,
    /// A JSON object a line.
    Json,
}

/// What flags say.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// `--config`
    pub config: Option<PathBuf>,
    /// `--listen`
    pub listen: Option<String>,
    /// `--admin-listen`
    pub admin_listen: Option<String>,
    /// `--data-dir`
    pub data_dir: Option<PathBuf>,
}

impl KindSettings {
    /// Changes a policy where these settings say so.
    pub fn apply(&self, policy: &mut Policy) {
        let KindSettings {
            like: _,
            concurrency,
            timeout,
            attempts,
            backoff_base,
            backoff_factor,
            backoff_cap,
            keep_body,
            keep_output,
        } = self;
        set(&mut policy.concurrency, *concurrency);
        set(&mut policy.timeout, *timeout);
        set(&mut policy.attempts, *attempts);
        set(&mut policy.backoff.base, *backoff_base);
        set(&mut policy.backoff.factor, *backoff_factor);
        set(&mut policy.backoff.cap, *backoff_cap);
        set(&mut policy.retention.body, *keep_body);
        set(&mut policy.retention.output, *keep_output);
    }
}

fn set<T, U: TryFrom<T>>(to: &mut U, from: Option<T>) {
    if let Some(value) = from.and_then(|value| value.try_into().ok()) {
        *to = value;
    }
}

impl Config {
    /// Reads everything, or reports what is wrong with it. `variables` are those of the environment.
    pub fn load(flags: &Flags, variables: &BTreeMap<String, String>) -> Result<Self, Vec<Mistake>> {
        match Self::read(flags, variables) {
            (config, mistakes) if mistakes.is_empty() => Ok(config),
            (_, mistakes) => Err(mistakes),
        }
    }

    /// Reads everything, and everything that is wrong with it. What is wrong is left out.
    pub fn read(flags: &Flags, variables: &BTreeMap<String, String>) -> (Self, Vec<Mistake>) {
        let mut layers = Layers::default();
        layers.add_toml("defaults", DEFAULTS);
        let known = layers.known();
        add_file(&mut layers, flags.config.as_deref());
        add_environment(&mut layers, variables);
        let mut flag = |name: &str, path: [&str; 2], value: &Option<String>| {
            if let Some(value) = value {
                layers.add(name, &path, Value::String(value.clone()));
            }
        };
        flag("--listen", ["gateway", "listen"], &flags.listen);
        flag("--admin-listen", ["admin", "listen"], &flags.admin_listen);
        if let Some(folder) = &flags.data_dir {
            layers.add("--data-dir", &["data_dir"], Value::String(folder.display().to_string()));
        }
        let config = read(&mut layers);
        (config, layers.finish(&known))
    }

    /// What would keep an installation from running with these settings, although each of them is right by itself.
    pub fn problems(&self) -> Vec<Mistake> {
        let mut problems = Vec::new();
        let mut wrong = |setting: &str, problem: String| {
            problems.push(Mistake { origin: "all in all".into(), setting: setting.into(), problem });
        };
        if self.servers.is_some() && self.ids.is_none() {
            wrong("id", NO_IDS.into());
        }
        if self.access.assume_no_keys && !self.gateway_listen.ip().is_loopback() {
            let problem = format!(
                "{} can be reached by others, who always need a key: this is for loopback addresses only",
                self.gateway_listen
            );
            wrong("gateway.assume_no_keys", problem);
        }
        if let Some(Err(mistakes)) = self.limits.tls.as_ref().map(TlsFiles::load) {
            problems.extend(mistakes);
        }
        let mut wrong = |setting: &str, problem: String| {
            problems.push(Mistake { origin: "all in all".into(), setting: setting.into(), problem });
        };
        if let Err(error) = telemetry::filter(&self.log_level) {
            wrong("log.level", error.to_string());
        }
        problems
    }
}

const NO_IDS: &str = "there are no secrets behind job ids: all processes of an installation need the same ones. \
                      Make them once with `warren config keys >> warren.toml`, or set WARREN__ID__DEDUP_KEY and \
                      WARREN__ID__TAG_KEYS";

fn add_file(layers: &mut Layers, named: Option<&Path>) {
    let path = named.unwrap_or_else(|| Path::new(FILE));
    match std::fs::read_to_string(path) {
        Ok(text) => layers.add_toml(&path.display().to_string(), &text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && named.is_none() => {}
        Err(error) => layers.mistake(&path.display().to_string(), "", format!("cannot be read: {error}")),
    }
}

fn add_environment(layers: &mut Layers, variables: &BTreeMap<String, String>) {
    for (name, text) in variables {
        layers.add_variable(name, text);
    }
    for (name, path) in [("AMQP_URL", ["broker", "url"]), ("DATABASE_URL", ["database", "url"])] {
        if let Some(url) = variables.get(name) {
            layers.add(name, &path, Value::String(url.clone()));
        }
        let name = format!("{name}_FILE");
        if let Some(file) = variables.get(&name) {
            match std::fs::read_to_string(file) {
                Ok(url) => layers.add(&name, &path, Value::String(url.trim().to_owned())),
                Err(error) => layers.mistake(&name, "", format!("{} cannot be read: {error}", shown_file(file))),
            }
        }
    }
    if let Some(level) = variables.get("RUST_LOG") {
        layers.add("RUST_LOG", &["log", "level"], Value::String(level.clone()));
    }
}

const DAY: Duration = Duration::from_hours(24);
const YEAR: Duration = Duration::from_hours(24 * 366);
const MILLISECOND: Duration = Duration::from_millis(1);
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

fn read(layers: &mut Layers) -> Config {
    Config {
        data_dir: layers.text(&["data_dir"]).map(|(text, _)| PathBuf::from(text)).unwrap_or_default(),
        gateway_listen: address(layers, &["gateway", "listen"]).unwrap_or(NOWHERE),
        limits: limits::read(layers),
        access: keys::access(layers),
        admin_listen: address(layers, &["admin", "listen"]),
        servers: servers(layers),
        apply_topology: layers.boolean(&["broker", "apply_topology"]).unwrap_or(true),
        migrate: layers.boolean(&["database", "migrate"]).unwrap_or(true),
        ids: ids(layers),
        drain: layers.duration(&["worker", "drain"], Duration::ZERO..=MAX_TIMEOUT).unwrap_or_default(),
        hold: layers.duration(&["worker", "hold"], Duration::from_secs(10)..=MAX_TIMEOUT).unwrap_or_default(),
        unknown_version: layers
            .duration(&["worker", "unknown_version"], Duration::from_secs(1)..=YEAR)
            .unwrap_or_default(),
        retention: Retention {
            unkeyed: layers.duration(&["retention", "unkeyed"], DAY..=YEAR * 10).unwrap_or(DAY),
            keyed: layers.duration(&["retention", "keyed"], DAY * 30..=YEAR * 10).unwrap_or(DAY * 30),
        },
        webhook: webhook(layers),
        events: events::read(layers),
        kinds: kinds(layers),
        sources: sources::read(layers),
        log_level: layers.text(&["log", "level"]).map(|(level, _)| level).unwrap_or_default(),
        log_format: layers.parsed(&["log", "format"]).unwrap_or(LogFormat::Auto),
    }
}

/// An address to listen on; port 0 takes any that is free.
fn address(layers: &mut Layers, path: &[&str]) -> Option<SocketAddr> {
    layers.parsed::<Listen>(path).map(|listen| listen.0)
}

struct Listen(SocketAddr);

impl std::str::FromStr for Listen {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        text.parse().map(Self).map_err(|_| "an address to listen on reads 127.0.0.1:8080 or [::1]:8080")
    }
}

impl std::str::FromStr for LogFormat {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text {
            "auto" => Ok(Self::Auto),
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("must be auto, text or json"),
        }
    }
}

fn servers(layers: &mut Layers) -> Option<Servers> {
    let prefix = layers.parsed::<Prefix>(&["broker", "prefix"]);
    let management = layers.parsed(&["broker", "management_url"]);
    let given = |layers: &mut Layers, path: [&str; 2]| layers.text(&path);
    let (broker, database) = (given(layers, ["broker", "url"]), given(layers, ["database", "url"]));
    let ((amqp, amqp_origin), (pg, pg_origin)) = match (broker, database) {
        (Some(broker), Some(database)) => (broker, database),
        (None, None) => return None,
        (Some((_, origin)), None) => {
            layers.mistake(
                &origin,
                "broker.url",
                "there is a broker but no database: set DATABASE_URL too, or neither",
            );
            return None;
        }
        (None, Some((_, origin))) => {
            layers.mistake(&origin, "database.url", "there is a database but no broker: set AMQP_URL too, or neither");
            return None;
        }
    };
    let url = amqp.parse::<AmqpUrl>().map_err(|error| layers.mistake(&amqp_origin, "broker.url", error.to_string()));
    let database = pg.parse::<PgUrl>().map_err(|error| layers.mistake(&pg_origin, "database.url", error.to_string()));
    let client = format!("warren {}", std::process::id());
    let broker = rabbitmq::Settings { url: url.ok()?, prefix: prefix?.0, client, management };
    Some(Servers { broker, database: database.ok()? })
}

struct Prefix(String);

impl std::str::FromStr for Prefix {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if (1..=50).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err("a prefix is 1 to 50 of the characters A-Z a-z 0-9 . _ -")
        }
    }
}

fn ids(layers: &mut Layers) -> Option<Ids> {
    let dedup_key = layers.parsed(&["id", "dedup_key"]);
    let tag_keys = layers.list(&["id", "tag_keys"]);
    match (dedup_key, tag_keys.is_empty()) {
        (Some(dedup_key), false) => Some(Ids { dedup_key, tag_keys }),
        (None, true) => None,
        (Some(_), true) => {
            layers.mistake("id", "id.tag_keys", "there is a dedup_key but no tag key: `warren config keys` makes both");
            None
        }
        (None, false) => {
            layers.mistake(
                "id",
                "id.dedup_key",
                "there are tag keys but no dedup_key: `warren config keys` makes both",
            );
            None
        }
    }
}

fn webhook(layers: &mut Layers) -> webhook::Settings {
    let rules = webhook::guard::Rules {
        allow_private: layers.list::<IpNet>(&["webhook", "allow_private"]),
        allow_http: layers.boolean(&["webhook", "allow_http"]).unwrap_or(false),
        allow_ports: layers.list(&["webhook", "allow_ports"]),
    };
    let per_host = layers.integer(&["webhook", "per_host"], 1..=10_000).unwrap_or(8) as usize;
    let names = layers.names_under(&["webhook", "secrets"]);
    let secrets = names
        .into_iter()
        .map(|name| {
            let secrets = layers.list::<sign::Secret>(&["webhook", "secrets", &name]);
            if secrets.is_empty() {
                layers.mistake("webhook", &format!("webhook.secrets.{name}"), "names no usable secret");
            }
            (name, secrets)
        })
        .collect();
    webhook::Settings { rules, secrets, per_host }
}

fn kinds(layers: &mut Layers) -> BTreeMap<String, KindSettings> {
    let names = layers.names_under(&["kind"]);
    let kind = |layers: &mut Layers, name: &str| KindSettings {
        like: layers.text(&["kind", name, "like"]).map(|(like, _)| like),
        concurrency: layers.integer(&["kind", name, "concurrency"], 1..=10_000),
        timeout: layers.duration(&["kind", name, "timeout"], MILLISECOND..=MAX_TIMEOUT),
        attempts: layers.integer(&["kind", name, "attempts"], 1..=1000),
        backoff_base: layers.duration(&["kind", name, "backoff_base"], MILLISECOND..=MAX_BACKOFF),
        backoff_factor: layers.number(&["kind", name, "backoff_factor"]),
        backoff_cap: layers.duration(&["kind", name, "backoff_cap"], MILLISECOND..=MAX_BACKOFF),
        keep_body: layers.duration(&["kind", name, "keep_body"], Duration::ZERO..=YEAR * 10),
        keep_output: layers.duration(&["kind", name, "keep_output"], Duration::ZERO..=YEAR * 10),
    };
    names.into_iter().map(|name| (name.clone(), kind(layers, &name))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, variables: &[(&str, &str)]) -> Result<Config, Vec<String>> {
        let folder = std::env::temp_dir().join(format!("warren-config-{}-{:x}", std::process::id(), text.len()));
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        let file = folder.join("warren.toml");
        std::fs::write(&file, text).expect("a temporary file");
        let variables = variables.iter().map(|(name, text)| ((*name).into(), (*text).into())).collect();
        let flags = Flags { config: Some(file), ..Flags::default() };
        let loaded = Config::load(&flags, &variables);
        std::fs::remove_dir_all(&folder).expect("it was there");
        loaded.map_err(|mistakes| {
            mistakes.iter().map(|mistake| format!("{}: {}", mistake.setting, mistake.problem)).collect()
        })
    }

    #[test]
    fn the_defaults_are_embedded_and_on_loopback() {
        let config = load("", &[]).expect("the defaults are right");
        assert!(config.servers.is_none());
        assert!(config.gateway_listen.ip().is_loopback());
        assert_eq!(config.admin_listen, None);
    }

    #[test]
    fn one_run_shows_every_mistake_and_no_secret() {
        let text = r#"
            [gateway]
            listen = "somewhere"
            [id]
            dedup_key = "hunter2"
            [webhook]
            allow_private = ["10.0.0.0/8", "10.0.0.0/99"]
            [webhook.secrets]
            shop = ["whsec_c2hvcnQ="]
            [kind."a.b"]
            timeout = "2h"
            [wroker]
            drain = "1s"
        "#;
        let variables = [("AMQP_URL", "http://guest:hunter2@x"), ("DATABASE_URL", "mysql://root:hunter2@x")];
        let mistakes = load(text, &variables).expect_err("nothing of it is right");
        let settings: Vec<_> = mistakes.iter().map(|mistake| mistake.split(':').next().unwrap_or("")).collect();
        assert_eq!(
            settings,
            [
                "gateway.listen",
                "broker.url",
                "database.url",
                "id.dedup_key",
                "webhook.allow_private",
                "webhook.secrets.shop",
                "webhook.secrets.shop",
                "kind.a.b.timeout",
                "wroker.drain",
            ]
        );
        assert!(mistakes.iter().all(|mistake| !mistake.contains("hunter2")), "{mistakes:?}");
    }

    #[test]
    fn a_broker_without_a_database_is_a_mistake() {
        let mistakes = load("", &[("AMQP_URL", "amqp://localhost")]).expect_err("only half");
        assert_eq!(mistakes, ["broker.url: there is a broker but no database: set DATABASE_URL too, or neither"]);
    }

    #[test]
    fn flags_win_over_the_environment_which_wins_over_the_file() {
        let text = "[gateway]\nlisten = '127.0.0.1:1'\n[admin]\nlisten = '127.0.0.1:2'\n";
        let config = load(text, &[("WARREN__ADMIN__LISTEN", "127.0.0.1:3")]).expect("all right");
        assert_eq!(config.gateway_listen.port(), 1);
        assert_eq!(config.admin_listen.map(|address| address.port()), Some(3));
        let variables = BTreeMap::from([("WARREN__GATEWAY__LISTEN".to_owned(), "127.0.0.1:4".to_owned())]);
        let flags = Flags { listen: Some("127.0.0.1:5".into()), ..Flags::default() };
        let config = Config::load(&flags, &variables).expect("all right");
        assert_eq!(config.gateway_listen.port(), 5);
    }
}
