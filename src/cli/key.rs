//! `warren key`

use std::time::Duration;

use clap::{Args, Subcommand};
use ipnet::IpNet;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;
use toml::Value;

use super::{Ask, Failure, output};
use crate::{
    app, clock,
    config::{Config, parse_duration},
    job::{Kind, Micros, Tenant},
    keys::{Burst, Env, Grants, Key as ApiKey, KeyText, Rate, Scope, Scopes},
    nearest::did_you_mean,
    store::{Store, StrangeKey},
};

/// Make, see and revoke the keys that senders and operators need.
#[derive(Debug, Subcommand)]
pub(super) enum Key {
    /// Make a key. It is shown this once, and nobody can show it again
    Create(Create),
    /// List all keys, those of the configuration too
    List,
    /// Give a key another secret. The one that it had stays good for a while
    Rotate(Rotate),
    /// Revoke a key for good: every gateway refuses it within a few seconds
    Revoke {
        /// Its name or its id
        key: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct Create {
    /// What to call it: seen in lists, and on the jobs that are sent with it
    name: String,
    /// Whose jobs it sends and sees
    #[arg(long, default_value = "default", value_parser = parse_tenant)]
    tenant: Tenant,
    /// What may be done with it: jobs:write, jobs:read, jobs:cancel, events:write, metrics:read, admin [default: jobs:write
    /// and jobs:read]
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<Scope>,
    /// A kind that may be sent with it; all kinds, if none is named
    #[arg(long = "kind", value_name = "KIND", value_parser = parse_kind)]
    kinds: Vec<Kind>,
    /// A network that it may be used from, such as 10.0.0.0/8; everywhere, if none is named
    #[arg(long = "network", value_name = "CIDR")]
    networks: Vec<IpNet>,
    /// How long it is good: 12h, 90d; until it is revoked, if not given
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    expires: Option<Duration>,
    /// How many requests and jobs each gateway process takes: 100/s, 6000/m
    #[arg(long)]
    rate: Option<Rate>,
    /// How many at once
    #[arg(long, requires = "rate")]
    burst: Option<u32>,
    /// The same over a longer time: 1000000/d
    #[arg(long)]
    quota: Option<Rate>,
    /// Where it belongs, to be seen in the key itself
    #[arg(long, default_value = "live")]
    env: Env,
    /// Keep it nowhere, and print the piece of a configuration file that lets it in
    #[arg(long)]
    toml: bool,
}

#[derive(Debug, Args)]
pub(super) struct Rotate {
    /// Its name or its id
    key: String,
    /// How long the secret that it had stays good; none at all with 0s
    #[arg(long, default_value = "24h", value_name = "DURATION", value_parser = parse_duration)]
    overlap: Duration,
}

fn parse_tenant(text: &str) -> Result<Tenant, String> {
    Tenant::new(text).map_err(|error| error.to_string())
}

fn parse_kind(text: &str) -> Result<Kind, String> {
    Kind::new(text).map_err(|error| error.to_string())
}

/// How long a secret may overlap its successor.
const LONGEST_OVERLAP: Duration = Duration::from_hours(24 * 90);

impl Key {
    pub(super) async fn run(self, ask: Ask) -> Result<(), Failure> {
        match self {
            Self::Create(create) => create.run(&ask).await,
            Self::List => list(&ask).await,
            Self::Rotate(rotate) => rotate.run(&ask).await,
            Self::Revoke { key } => revoke(&ask, &key).await,
        }
    }
}

fn no_randomness(error: getrandom::Error) -> Failure {
    Failure::Failed(format!("the operating system gives no random bytes: {error}"))
}

fn since_now(time: Duration) -> Micros {
    clock::now().saturating_add(Micros::try_from(time.as_micros()).unwrap_or(Micros::MAX))
}

impl Create {
    async fn run(self, ask: &Ask) -> Result<(), Failure> {
        ApiKey::check_name(&self.name).map_err(|rule| Failure::Usage(rule.into()))?;
        let rate = self.rate.map(|rate| Burst::new(rate, self.burst)).transpose();
        let rate = rate.map_err(|error| Failure::Usage(error.to_string()))?;
        let scopes: Scopes = if self.scopes.is_empty() {
            [Scope::JobsWrite, Scope::JobsRead].into_iter().collect()
        } else {
            self.scopes.into_iter().collect()
        };
        let (id, text) = KeyText::mint(&self.env).map_err(no_randomness)?;
        let grants = Grants { scopes, kinds: self.kinds, networks: self.networks, rate, quota: self.quota };
        let key = ApiKey {
            id,
            env: self.env,
            name: self.name,
            tenant: self.tenant,
            grants,
            digest: text.digest(),
            previous: None,
            created_at: None,
            expires_at: self.expires.map(since_now),
            revoked_at: None,
            last_used_at: None,
        };
        if self.toml {
            let section = section(&key);
            output::print(ask.output, &json!({ "key": text.reveal(), "toml": section }), || {
                format!(
                    "# The key, for whoever is to send it; what follows does not give it away.\n# {}\n{section}",
                    text.reveal()
                )
            });
            return Ok(());
        }
        let config = ask.config()?;
        let taken = |name: &str| {
            Failure::Refused(format!("there is a key {name} already: rotate it, revoke it, or take another name"))
        };
        if config.access.keys.iter().any(|other| other.name == key.name) {
            return Err(taken(&key.name));
        }
        let store = app::open_store(&config).await?;
        if !store.create_key(&key).await? {
            return Err(taken(&key.name));
        }
        shown(ask, &key, &text, "keep it now: it is shown this once");
        Ok(())
    }
}

/// The section of a configuration file that lets a key in.
fn section(key: &ApiKey) -> String {
    let Grants { scopes, kinds, networks, rate, quota } = &key.grants;
    let texts = |texts: Vec<String>| Value::Array(texts.into_iter().map(Value::String).collect());
    let mut lines = vec![
        ("id", Value::String(key.id.to_string())),
        ("sha256", texts(vec![key.digest.to_string()])),
        ("scopes", texts(scopes.iter().map(|scope| scope.to_string()).collect())),
        ("tenant", Value::String(key.tenant.to_string())),
    ];
    if !kinds.is_empty() {
        lines.push(("kinds", texts(kinds.iter().map(Kind::to_string).collect())));
    }
    if !networks.is_empty() {
        lines.push(("networks", texts(networks.iter().map(IpNet::to_string).collect())));
    }
    if let Some(at) = instant(key.expires_at) {
        lines.push(("expires", Value::String(at.to_string())));
    }
    if let Some(rate) = rate {
        lines.push(("rate", Value::String(rate.rate.to_string())));
        lines.push(("burst", Value::Integer(rate.burst.get().into())));
    }
    if let Some(quota) = quota {
        lines.push(("quota", Value::String(quota.to_string())));
    }
    let lines = lines.into_iter().map(|(name, value)| format!("{name} = {value}\n"));
    format!("[key.{}]\n{}", Value::String(key.name.clone()), lines.collect::<String>())
}

fn shown(ask: &Ask, key: &ApiKey, text: &KeyText, advice: &str) {
    let answer = json!({ "id": key.id.as_str(), "name": key.name, "key": text.reveal() });
    output::print(ask.output, &answer, || text.reveal().to_owned());
    if ask.output == super::Output::Table {
        eprintln!("warren: this is the key {} ({}); {advice}", key.name, key.grants.scopes);
    }
}

fn instant(at: Option<Micros>) -> Option<Timestamp> {
    at.and_then(|at| Timestamp::from_microsecond(at).ok())
}

async fn stored(store: &dyn Store) -> Result<(Vec<ApiKey>, Vec<StrangeKey>), Failure> {
    Ok(store.keys(None).await?.map_or_else(Default::default, |stored| (stored.keys, stored.not_understood)))
}

/// A key that was named.
struct Found {
    id: String,
    name: String,
    is_revoked: bool,
    /// All of it, if this build understands it.
    key: Option<ApiKey>,
}

impl Found {
    fn is(&self, named: &str) -> bool {
        self.name == named || self.id == named
    }
}

/// The key of this name or id, which is not revoked and not of the configuration.
async fn find(config: &Config, store: &dyn Store, named: &str) -> Result<Found, Failure> {
    if let Some(key) = config.access.keys.iter().find(|key| key.name == named || key.id.as_str() == named) {
        let text = format!("the key {} stands in the configuration: change it there and restart", key.name);
        return Err(Failure::Refused(text));
    }
    let (keys, strange) = stored(store).await?;
    let ours = keys.into_iter().map(|key| {
        let (id, name, is_revoked) = (key.id.to_string(), key.name.clone(), key.revoked_at.is_some());
        Found { id, name, is_revoked, key: Some(key) }
    });
    let strange = strange.into_iter().map(|StrangeKey { id, name, revoked_at, .. }| {
        let is_revoked = revoked_at.is_some();
        Found { id, name, is_revoked, key: None }
    });
    let mut all: Vec<_> = ours.chain(strange).collect();
    if let Some(at) = all.iter().position(|found| !found.is_revoked && found.is(named)) {
        return Ok(all.swap_remove(at));
    }
    if let Some(Found { id, name, .. }) = all.iter().find(|found| found.is(named)) {
        return Err(Failure::Refused(format!("the key {name} ({id}) is revoked, for good")));
    }
    let hint = did_you_mean(named, all.iter().map(|found| found.name.as_str()));
    // What was named may be a whole key, which must not be repeated.
    Err(Failure::NotFound(format!("there is no key of this name or id{hint} (see `warren key list`)")))
}

impl Rotate {
    async fn run(self, ask: &Ask) -> Result<(), Failure> {
        if self.overlap > LONGEST_OVERLAP {
            return Err(Failure::Usage("the secret before it stays good for 90d at most".into()));
        }
        let config = ask.config()?;
        let store = app::open_store(&config).await?;
        let Found { name, key, .. } = find(&config, store.as_ref(), &self.key).await?;
        let Some(key) = key else {
            let text = format!(
                "this build does not understand the key {name}, which another one has made: rotate it with that, or revoke it"
            );
            return Err(Failure::Refused(text));
        };
        let text = KeyText::mint_for(&key.env, key.id).map_err(no_randomness)?;
        if !store.rotate_key(key.id, text.digest(), self.overlap).await? {
            return Err(Failure::Refused(format!("the key {} was revoked meanwhile", key.name)));
        }
        let until = output::instant(instant(Some(since_now(self.overlap))));
        let former =
            if self.overlap.is_zero() { "is good no more".into() } else { format!("stays good until {until}") };
        shown(ask, &key, &text, &format!("keep it now: it is shown this once. The one before it {former}"));
        Ok(())
    }
}

async fn revoke(ask: &Ask, named: &str) -> Result<(), Failure> {
    let config = ask.config()?;
    let store = app::open_store(&config).await?;
    let Found { id, name, .. } = find(&config, store.as_ref(), named).await?;
    if !store.revoke_key(&id).await? {
        return Err(Failure::Refused(format!("the key {name} was revoked meanwhile")));
    }
    output::print(ask.output, &json!({ "id": id, "name": name, "revoked": true }), || {
        format!("{name} is revoked: gateways refuse it within 5 s, or as soon as they reach the database again")
    });
    Ok(())
}

/// Where a key stands that is not in the configuration.
const DATABASE: &str = "database";

/// A key, as it is listed.
#[derive(Serialize)]
struct KeyView {
    id: String,
    name: String,
    tenant: String,
    state: &'static str,
    stands_in: &'static str,
    scopes: Vec<&'static str>,
    kinds: Vec<Kind>,
    networks: Vec<IpNet>,
    rate: Option<String>,
    burst: Option<u32>,
    quota: Option<String>,
    created_at: Option<Timestamp>,
    expires_at: Option<Timestamp>,
    revoked_at: Option<Timestamp>,
    last_used_at: Option<Timestamp>,
    /// Until when the secret before the last rotation is good, if it is.
    previous_until: Option<Timestamp>,
}

impl KeyView {
    fn of(key: ApiKey, stands_in: &'static str) -> Self {
        let now = clock::now();
        let state = match (key.revoked_at, key.is_live(now)) {
            (Some(_), _) => "revoked",
            (None, false) => "expired",
            (None, true) => "live",
        };
        let previous_until = key.previous.filter(|(_, until)| *until > now).map(|(_, until)| until);
        let Grants { scopes, kinds, networks, rate, quota } = key.grants;
        Self {
            id: key.id.to_string(),
            name: key.name,
            tenant: key.tenant.to_string(),
            state,
            stands_in,
            scopes: scopes.iter().map(Scope::as_str).collect(),
            kinds,
            networks,
            rate: rate.map(|rate| rate.rate.to_string()),
            burst: rate.map(|rate| rate.burst.get()),
            quota: quota.map(|quota| quota.to_string()),
            created_at: instant(key.created_at),
            expires_at: instant(key.expires_at),
            revoked_at: instant(key.revoked_at),
            last_used_at: instant(key.last_used_at),
            previous_until: instant(previous_until),
        }
    }

    /// A key that another build has made. What it allows is not known here, so nothing of that is shown.
    fn strange(key: StrangeKey) -> Self {
        Self {
            id: key.id,
            name: key.name,
            tenant: key.tenant,
            state: if key.revoked_at.is_some() { "revoked" } else { "not understood" },
            stands_in: DATABASE,
            scopes: Vec::new(),
            kinds: Vec::new(),
            networks: Vec::new(),
            rate: None,
            burst: None,
            quota: None,
            created_at: instant(Some(key.created_at)),
            expires_at: instant(key.expires_at),
            revoked_at: instant(key.revoked_at),
            last_used_at: instant(key.last_used_at),
            previous_until: None,
        }
    }
}

async fn list(ask: &Ask) -> Result<(), Failure> {
    let config = ask.config()?;
    let store = app::open_store(&config).await?;
    let (ours, strange) = stored(store.as_ref()).await?;
    let stored =
        ours.into_iter().map(|key| KeyView::of(key, DATABASE)).chain(strange.into_iter().map(KeyView::strange));
    let configured = config.access.keys.iter().map(|key| KeyView::of(key.clone(), "configuration"));
    let keys: Vec<_> = configured.chain(stored).collect();
    output::print(ask.output, &keys, || {
        let rows = keys.iter().map(|key| {
            vec![
                key.name.clone(),
                key.id.clone(),
                key.tenant.clone(),
                key.state.to_owned(),
                key.scopes.join(" "),
                output::instant(key.expires_at),
                output::instant(key.last_used_at),
                key.stands_in.to_owned(),
            ]
        });
        match keys.len() {
            0 => "none".into(),
            _ => output::table(&["NAME", "ID", "TENANT", "STATE", "SCOPES", "EXPIRES", "LAST USED", "IN"], rows),
        }
    });
    Ok(())
}
