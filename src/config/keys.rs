//! Who may do what: the keys that stand in the configuration, and what goes with them.

use std::collections::BTreeMap;

use ipnet::IpNet;
use jiff::Timestamp;

use super::layers::{Layers, shown_file};
use crate::{
    job::{Kind, Micros, Tenant},
    keys::{self, Burst, Digest, Env, Grants, Key, KeyId, Rate, Scope},
};

/// Who may do what.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// The keys that stand in the configuration.
    pub keys: Vec<Key>,
    /// Whether a gateway on a loopback address takes it that there are no keys while it cannot know.
    pub assume_no_keys: bool,
    /// The proxies whose word on who sends is believed.
    pub trusted_proxies: Vec<IpNet>,
}

pub(super) fn access(layers: &mut Layers) -> Access {
    let names = layers.names_under(&["key"]);
    let mut keys: Vec<Key> = Vec::with_capacity(names.len());
    for name in names {
        let Some(key) = key(layers, &name) else { continue };
        if let Some(same) = keys.iter().find(|other| other.id == key.id) {
            let problem = format!("has the same id as key.{}: each key has its own", same.name);
            layers.mistake("key", &format!("key.{name}"), problem);
        }
        keys.push(key);
    }
    Access {
        keys,
        assume_no_keys: layers.boolean(&["gateway", "assume_no_keys"]).unwrap_or(false),
        trusted_proxies: layers.list(&["gateway", "trusted_proxies"]),
    }
}

/// A name of ours out of a text.
struct Named<T>(T);

impl std::str::FromStr for Named<Kind> {
    type Err = crate::job::BadName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Kind::new(text).map(Self)
    }
}

impl std::str::FromStr for Named<Tenant> {
    type Err = crate::job::BadName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Tenant::new(text).map(Self)
    }
}

/// An instant out of a text.
struct Instant(Micros);

impl std::str::FromStr for Instant {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let at: Timestamp = text.parse().map_err(|_| "a time reads 2027-01-01T00:00:00Z")?;
        Ok(Self(at.as_microsecond()))
    }
}

fn key(layers: &mut Layers, name: &str) -> Option<Key> {
    let section = format!("key.{name}");
    let at = |setting| ["key", name, setting];
    if let Err(rule) = Key::check_name(name) {
        layers.mistake("key", &section, rule);
    }
    let id = layers.parsed::<KeyId>(&at("id"));
    let digests = layers.list::<Digest>(&at("sha256"));
    let file = layers.text(&at("key_file"));
    let scopes = layers.list::<Scope>(&at("scopes"));
    let rate = layers.parsed::<Rate>(&at("rate"));
    let burst = layers.integer(&at("burst"), 1..=u32::MAX);
    let rate = match (rate, burst) {
        (Some(rate), burst) => match Burst::new(rate, burst) {
            Ok(rate) => Some(rate),
            Err(error) => {
                layers.mistake("key", &format!("{section}.burst"), error.to_string());
                None
            }
        },
        (None, Some(_)) => {
            layers.mistake("key", &format!("{section}.burst"), "there is no rate that it belongs to");
            None
        }
        (None, None) => None,
    };
    let grants = Grants {
        scopes: scopes.into_iter().collect(),
        kinds: layers.list::<Named<Kind>>(&at("kinds")).into_iter().map(|kind| kind.0).collect(),
        networks: layers.list(&at("networks")),
        rate,
        quota: layers.parsed(&at("quota")),
    };
    if grants.scopes.is_empty() {
        let all = Scope::ALL.map(Scope::as_str).join(", ");
        layers.mistake("key", &format!("{section}.scopes"), format!("names no usable scope; there are {all}"));
    }
    let tenant = layers.parsed::<Named<Tenant>>(&at("tenant")).map_or(Tenant::DEFAULT, |tenant| tenant.0);
    let expires_at = layers.parsed::<Instant>(&at("expires")).map(|at| at.0);
    let said = match (id, digests.is_empty(), file) {
        (Some(id), false, None) => Ok((id, digests)),
        (None, true, Some((file, _))) => of_file(&file),
        _ => Err("needs either id and sha256, or key_file: `warren key create NAME --toml` makes both".to_owned()),
    };
    let (id, digests) = said.map_err(|problem| layers.mistake("key", &section, problem)).ok()?;
    let (digest, previous) = match digests.as_slice() {
        [digest] => (*digest, None),
        // Which of the two is the older does not matter: both are good for as long as both stand there.
        [digest, previous] => (*digest, Some((*previous, Micros::MAX))),
        _ => {
            layers.mistake("key", &section, "has more than two secrets: while one is rotated there are two");
            return None;
        }
    };
    let (created_at, revoked_at, last_used_at) = (None, None, None);
    let (env, name) = (Env::default(), name.to_owned());
    Some(Key { id, env, name, tenant, grants, digest, previous, created_at, expires_at, revoked_at, last_used_at })
}

/// A key out of its file, or two of one id while it is rotated. What is wrong is told without repeating any of it.
fn of_file(path: &str) -> Result<(KeyId, Vec<Digest>), String> {
    let shown = shown_file(path);
    let text = std::fs::read_to_string(path).map_err(|error| format!("{shown} cannot be read: {error}"))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut found = BTreeMap::<KeyId, Vec<Digest>>::new();
    for line in lines {
        let key = keys::parse(line).map_err(|error| format!("{shown}: {error}"))?;
        found.entry(key.id).or_default().push(key.digest);
    }
    match found.pop_first() {
        None => Err(format!("there is no key in {shown}")),
        Some(key) if found.is_empty() => Ok(key),
        Some(_) => Err(format!("the keys in {shown} have more than one id: give each its own section")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::KeyText;

    fn read(text: &str) -> (Access, Vec<String>) {
        let mut layers = Layers::default();
        layers.add_toml("test", text);
        let access = access(&mut layers);
        let said = layers.finish(&[]).into_iter().map(|it| format!("{}: {}", it.setting, it.problem)).collect();
        (access, said)
    }

    #[test]
    fn a_key_stands_there_as_its_hash_or_in_a_file_of_its_own() {
        let (id, text) = KeyText::mint(&Env::default()).unwrap();
        let second = KeyText::mint_for(&Env::default(), id).unwrap();
        let (other_id, other) = KeyText::mint(&Env::default()).unwrap();
        let file = std::env::temp_dir().join(format!("warren-key-{}", std::process::id()));
        std::fs::write(&file, format!("{}\n", other.reveal())).unwrap();
        let (access, mistakes) = read(&format!(
            "[key.shop]\nid = '{id}'\nsha256 = ['{}', '{}']\nscopes = ['jobs:write']\ntenant = 'acme'\n\
             kinds = ['a.b']\nnetworks = ['10.0.0.0/8']\nexpires = '2030-01-01T00:00:00Z'\nrate = '10/s'\nburst = 20\n\
             quota = '1000/d'\n[key.ops]\nkey_file = '{}'\nscopes = ['admin']\n",
            second.digest(),
            text.digest(),
            file.display(),
        ));
        std::fs::remove_file(&file).unwrap();
        assert_eq!(mistakes, Vec::<String>::new());
        let [ops, shop] = access.keys.as_slice() else { panic!("two keys") };
        assert_eq!((ops.id, ops.digest, ops.previous), (other_id, other.digest(), None));
        assert_eq!((shop.id, shop.tenant.as_str()), (id, "acme"));
        for text in [&text, &second] {
            assert!(keys::verify(Some(shop), &text.digest(), crate::clock::now()));
        }
        assert_eq!(shop.expires_at, Some(1_893_456_000_000_000), "seconds of 2030 by `date`");
        let rate = shop.grants.rate.unwrap();
        assert_eq!((rate.rate.to_string().as_str(), rate.burst.get()), ("10/s", 20));
    }

    #[test]
    fn every_mistake_is_told_at_once_and_no_key_is_repeated() {
        let (id, text) = KeyText::mint(&Env::default()).unwrap();
        let file = std::env::temp_dir().join(format!("warren-bad-key-{}", std::process::id()));
        std::fs::write(&file, format!("{}x\n", text.reveal())).unwrap();
        let (access, mistakes) = read(&format!(
            "[key.plain]\nid = '{id}'\nsha256 = ['{}']\nscopes = ['jobs:wirte']\n\
             [key.both]\nid = '{id}'\nsha256 = ['{}']\nkey_file = 'x'\nscopes = ['admin']\n\
             [key.file]\nkey_file = '{}'\nscopes = ['admin']\nburst = 2\n\
             [key.'a b']\nid = '{}'\nscopes = ['admin']\nrate = 'fast'\nnetworks = ['home']\nexpires = 'soon'\n",
            text.reveal(),
            text.digest(),
            file.display(),
            text.reveal(),
        ));
        std::fs::remove_file(&file).unwrap();
        assert_eq!(access.keys, []);
        let all = mistakes.join("\n");
        for part in [
            "key.plain.sha256: item 1: the SHA-256 of a key is 64 hexadecimal digits",
            "did you mean jobs:write?",
            "key.both: needs either id and sha256, or key_file",
            "key.file: ",
            "checksum",
            "key.file.burst: there is no rate",
            "key.a b: the name of a key is",
            "key.a b.id: the id of a key is 12",
            "key.a b.rate: a rate reads",
            "key.a b.networks: item 1",
            "key.a b.expires: a time reads",
        ] {
            assert!(all.contains(part), "{part}: {all}");
        }
        assert!(!all.contains(&text.reveal()[22..]), "{all}");
    }
}
