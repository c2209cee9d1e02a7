//! API keys: what they look like, what they allow, and whether one is good.
//!
//! Owns the form of a key, its scopes, its limits, and the one comparison that decides. It promises that a key is never
//! printed or kept as it is, and that a key that is not good takes the same work whatever is wrong with it. It knows
//! neither HTTP nor a store.

mod rate;
mod scope;
mod text;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use subtle::{Choice, ConstantTimeEq as _, ConstantTimeLess as _};

pub use self::{
    rate::{BadRate, Burst, Rate},
    scope::{Scope, Scopes, UnknownScope},
    text::{BadDigest, BadEnv, BadKeyId, Digest, Env, KeyId, KeyText, Malformed, Presented, looks_like_a_key, parse},
};
use crate::job::{Kind, Micros, Tenant};

/// A key, as it is kept: whose it is, what it allows, and what its secret hashes to.
#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    /// The part of its text that finds it.
    pub id: KeyId,
    /// The part of its text that tells where it belongs.
    pub env: Env,
    /// What its owner calls it.
    pub name: String,
    /// Whose jobs it sends and sees.
    pub tenant: Tenant,
    /// What it allows.
    pub grants: Grants,
    /// The hash of its text.
    pub digest: Digest,
    /// The hash of the text that it had before a rotation, and until when that is good.
    pub previous: Option<(Digest, Micros)>,
    /// When it was made; not known of one that stands in the configuration.
    pub created_at: Option<Micros>,
    /// From when on it is good no more.
    pub expires_at: Option<Micros>,
    /// When it was revoked.
    pub revoked_at: Option<Micros>,
    /// When it was last used, as far as that was written down.
    pub last_used_at: Option<Micros>,
}

/// What a key allows.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Grants {
    /// What may be done with it.
    pub scopes: Scopes,
    /// The kinds that may be sent with it; all of them if none is named.
    pub kinds: Vec<Kind>,
    /// The networks that it may be used from; all of them if none is named.
    pub networks: Vec<IpNet>,
    /// How many requests and jobs a second, and at once.
    pub rate: Option<Burst>,
    /// How many in a longer time.
    pub quota: Option<Rate>,
}

/// What a store keeps of it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    scopes: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    kinds: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    networks: Vec<IpNet>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rate: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    burst: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    quota: Option<String>,
}

impl Grants {
    /// As a store keeps it.
    pub fn to_json(&self) -> String {
        let written = Written {
            scopes: self.scopes.iter().map(|scope| scope.as_str().to_owned()).collect(),
            kinds: self.kinds.iter().map(Kind::to_string).collect(),
            networks: self.networks.clone(),
            rate: self.rate.map(|rate| rate.rate.to_string()),
            burst: self.rate.map(|rate| rate.burst.get()),
            quota: self.quota.map(|quota| quota.to_string()),
        };
        // Text, numbers and lists of them: it cannot fail.
        serde_json::to_string(&written).unwrap_or_default()
    }

    /// From what a store keeps. A scope that a newer build has added is left out, which allows less; anything else that
    /// is not understood is an error, for to leave it out would allow more.
    pub fn from_json(text: &str) -> Result<Self, String> {
        let written: Written = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let kinds = written.kinds.iter().map(|kind| Kind::new(kind).map_err(|error| error.to_string()));
        let rate = written.rate.as_deref().map(str::parse::<Rate>).transpose().map_err(|error| error.to_string())?;
        let rate = rate.map(|rate| Burst::new(rate, written.burst)).transpose().map_err(|error| error.to_string())?;
        Ok(Self {
            scopes: written.scopes.iter().filter_map(|scope| scope.parse().ok()).collect(),
            kinds: kinds.collect::<Result<_, _>>()?,
            networks: written.networks,
            rate,
            quota: written.quota.as_deref().map(str::parse).transpose().map_err(|error: BadRate| error.to_string())?,
        })
    }
}

impl Key {
    /// Whether a name is one.
    pub fn check_name(name: &str) -> Result<(), &'static str> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if (1..=64).contains(&name.len()) && name.bytes().all(allowed) {
            Ok(())
        } else {
            Err("the name of a key is 1 to 64 of the characters A-Z a-z 0-9 . _ -")
        }
    }

    /// Whether it can still be good at a time.
    pub fn is_live(&self, now: Micros) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|at| at > now)
    }
}

/// Whether what was presented is the secret of this key, and the key is good. Does the same work for no key at all.
pub fn verify(key: Option<&Key>, presented: &Digest, now: Micros) -> bool {
    let (digest, previous, until) = match key {
        Some(key) => {
            let (previous, until) = key.previous.unwrap_or((Digest::NONE, 0));
            (key.digest, previous, until)
        }
        None => (Digest::NONE, Digest::NONE, 0),
    };
    let found = Choice::from(u8::from(key.is_some()));
    let live = Choice::from(u8::from(key.is_some_and(|key| key.is_live(now))));
    let overlaps = now.cast_unsigned().ct_lt(&until.cast_unsigned());
    let is_current = digest.bytes().ct_eq(presented.bytes());
    let is_previous = previous.bytes().ct_eq(presented.bytes()) & overlaps;
    bool::from(found & live & (is_current | is_previous))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(current: &str) -> Key {
        Key {
            id: "0123456789AB".parse().unwrap(),
            env: Env::default(),
            name: "shop".into(),
            tenant: Tenant::DEFAULT,
            grants: Grants::default(),
            digest: Digest::of(current),
            previous: None,
            created_at: None,
            expires_at: None,
            revoked_at: None,
            last_used_at: None,
        }
    }

    #[test]
    fn a_key_is_good_until_it_expires_or_is_revoked_and_its_former_secret_until_the_overlap_ends() {
        let (new, old, other) = (Digest::of("new"), Digest::of("old"), Digest::of("other"));
        let plain = key("new");
        assert!(verify(Some(&plain), &new, 100));
        assert!(!verify(Some(&plain), &old, 100));
        assert!(!verify(None, &new, 100));
        assert!(!verify(None, &Digest::NONE, 100), "no key is not a key whose hash is all zeros");
        assert!(!verify(Some(&plain), &Digest::NONE, 100), "one secret is not two");
        let rotated = Key { previous: Some((old, 200)), ..plain.clone() };
        for (now, is_good) in [(199, true), (200, false), (201, false)] {
            assert!(verify(Some(&rotated), &new, now));
            assert_eq!(verify(Some(&rotated), &old, now), is_good, "{now}");
            assert!(!verify(Some(&rotated), &other, now));
        }
        let expiring = Key { expires_at: Some(150), ..rotated.clone() };
        assert!(verify(Some(&expiring), &new, 149) && verify(Some(&expiring), &old, 149));
        assert!(!verify(Some(&expiring), &new, 150) && !verify(Some(&expiring), &old, 150));
        let revoked = Key { revoked_at: Some(1), ..rotated };
        assert!(!verify(Some(&revoked), &new, 100) && !verify(Some(&revoked), &old, 100));
    }

    #[test]
    fn what_a_key_allows_is_kept_whole_and_what_is_not_understood_allows_nothing_more() {
        let grants = Grants {
            scopes: [Scope::JobsWrite, Scope::Admin].into_iter().collect(),
            kinds: vec![Kind::new("a.b").unwrap()],
            networks: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
            rate: Some(Burst::new("100/s".parse().unwrap(), Some(250)).unwrap()),
            quota: Some("1000000/d".parse().unwrap()),
        };
        assert_eq!(Grants::from_json(&grants.to_json()), Ok(grants));
        let newer = Grants::from_json(r#"{"scopes": ["jobs:read", "moon:read"]}"#).unwrap();
        assert_eq!(newer.scopes.iter().collect::<Vec<_>>(), [Scope::JobsRead]);
        for unknown in [
            r#"{"scopes": ["jobs:read"], "hours": "9-17"}"#,
            r#"{"scopes": ["jobs:read"], "kinds": ["A B"]}"#,
            r#"{"scopes": ["jobs:read"], "networks": ["here"]}"#,
            r#"{"scopes": ["jobs:read"], "rate": "1/fortnight"}"#,
            r#"{"scopes": ["jobs:read"], "quota": "x"}"#,
            "",
        ] {
            assert!(Grants::from_json(unknown).is_err(), "{unknown}");
        }
    }
}
