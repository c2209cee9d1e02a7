//! Where signed webhooks come in from: `[source.NAME]`.
//!
//! Owns the schemes' names and the form of their secrets. A secret is never printed, not even a wrong one.

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use url::Url;

use super::layers::{Layers, shown_file};
use crate::job::Tenant;

/// How far a webhook's own time may lie from ours, if nothing else is said.
const TOLERANCE: Duration = Duration::from_mins(5);
/// What it may be set to. What is remembered of ids grows with it.
const TOLERANCES: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(1);

/// Someone who sends webhooks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// How it shows that it is who it says it is.
    pub scheme: Scheme,
    /// What it shows that with; any of them will do, so that one can be replaced while it still holds the other.
    pub secrets: Vec<Secret>,
    /// How far a webhook's own time may lie from ours, either way.
    pub tolerance: Duration,
    /// Whose its events are.
    pub tenant: Tenant,
}

/// How a webhook shows where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scheme {
    /// Standard Webhooks, also under Svix' older names of headers.
    StandardWebhooks,
    /// GitHub's `X-Hub-Signature-256`.
    GithubSha256,
    /// Stripe's `Stripe-Signature`.
    Stripe,
    /// Twilio's `X-Twilio-Signature`.
    Twilio {
        /// The address that Twilio calls and signs, as far as its query.
        url: String,
    },
    /// A shared token in `Authorization`.
    Bearer,
}

/// What a webhook is signed with. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// For whoever computes a signature with it.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<&[u8]> for Secret {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A scheme by its name alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    StandardWebhooks,
    GithubSha256,
    Stripe,
    Twilio,
    Bearer,
}

impl FromStr for Named {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text {
            "standard-webhooks" => Ok(Self::StandardWebhooks),
            "github-sha256" => Ok(Self::GithubSha256),
            "stripe" => Ok(Self::Stripe),
            "twilio" => Ok(Self::Twilio),
            "bearer" => Ok(Self::Bearer),
            _ => Err("must be standard-webhooks, github-sha256, stripe, twilio or bearer"),
        }
    }
}

impl Named {
    /// Reads a secret in the form that its sender hands out. What is wrong with one is said without repeating it.
    fn secret(self, text: &str) -> Result<Secret, String> {
        let bytes = match self {
            Self::StandardWebhooks => {
                let encoded = text.strip_prefix("whsec_").ok_or("a secret of this scheme begins with whsec_")?;
                let bytes = STANDARD.decode(encoded).map_err(|_| "what follows whsec_ is not base64")?;
                if !(24..=64).contains(&bytes.len()) {
                    return Err(format!(
                        "a secret of this scheme holds 24 to 64 bytes, this one holds {}",
                        bytes.len()
                    ));
                }
                bytes
            }
            Self::Bearer if text.len() < 16 || !text.bytes().all(|byte| byte.is_ascii_graphic()) => {
                return Err("a token is 16 or more visible ASCII characters, without spaces".into());
            }
            _ if text.trim() != text || text.is_empty() => {
                return Err("a secret is not empty, and no space stands before or behind it".into());
            }
            _ => text.as_bytes().to_owned(),
        };
        Ok(Secret(bytes))
    }
}

/// Any text: whether it is a secret depends on the scheme, which is read elsewhere.
struct Text(String);

impl FromStr for Text {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

/// All of them, by name. What is wrong is noted, and left out.
pub(super) fn read(layers: &mut Layers) -> BTreeMap<String, Source> {
    let names = layers.names_under(&["source"]);
    names.into_iter().filter_map(|name| source(layers, &name).map(|source| (name, source))).collect()
}

/// One of them. Every setting is read, so that one run shows every mistake.
fn source(layers: &mut Layers, name: &str) -> Option<Source> {
    let section = format!("source.{name}");
    let setting = |key: &str| format!("{section}.{key}");
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte);
    let is_name = (1..=40).contains(&name.len()) && name.bytes().all(allowed);
    if !is_name {
        layers.mistake("source", &section, "the name of a source is 1 to 40 of the characters a-z 0-9 _ -");
    }
    let scheme_is_said = layers.is_set(&["source", name, "scheme"]);
    let named = layers.parsed::<Named>(&["source", name, "scheme"]);
    if !scheme_is_said {
        let problem = "is missing: standard-webhooks, github-sha256, stripe, twilio or bearer";
        layers.mistake("source", &setting("scheme"), problem);
    }
    let secrets = secrets(layers, name, named);
    let url = url(layers, name);
    let tolerance_path = ["source", name, "tolerance"];
    let tolerance =
        if layers.is_set(&tolerance_path) { layers.duration(&tolerance_path, TOLERANCES) } else { Some(TOLERANCE) };
    let tenant = match layers.text(&["source", name, "tenant"]) {
        None => Some(Tenant::DEFAULT),
        Some((tenant, origin)) => {
            Tenant::new(&tenant).map_err(|rule| layers.mistake(&origin, &setting("tenant"), rule.to_string())).ok()
        }
    };
    let scheme = match (named?, url) {
        (Named::Twilio, Address::Good(url)) => Scheme::Twilio { url },
        (Named::Twilio, Address::Bad) => return None,
        (Named::Twilio, Address::None) => {
            let problem =
                "is missing: the address that Twilio calls and signs, such as https://example.com/v1/hooks/sms";
            layers.mistake("source", &setting("url"), problem);
            return None;
        }
        (_, Address::Good(_) | Address::Bad) => {
            layers.mistake("source", &setting("url"), "only the scheme twilio signs an address: leave it away");
            return None;
        }
        (Named::StandardWebhooks, Address::None) => Scheme::StandardWebhooks,
        (Named::GithubSha256, Address::None) => Scheme::GithubSha256,
        (Named::Stripe, Address::None) => Scheme::Stripe,
        (Named::Bearer, Address::None) => Scheme::Bearer,
    };
    is_name.then_some(Source { scheme, secrets: secrets?, tolerance: tolerance?, tenant: tenant? })
}

/// Those that are listed, and those that stand in a file, one a line.
fn secrets(layers: &mut Layers, name: &str, scheme: Option<Named>) -> Option<Vec<Secret>> {
    let (setting, file_setting) = (format!("source.{name}.secrets"), format!("source.{name}.secrets_file"));
    let is_list = layers.is_set(&["source", name, "secrets"]);
    let listed = layers.list::<Text>(&["source", name, "secrets"]);
    let mut texts: Vec<_> = listed.into_iter().map(|Text(text)| (setting.as_str(), text)).collect();
    if let Some((file, origin)) = layers.text(&["source", name, "secrets_file"]) {
        match std::fs::read_to_string(&file) {
            Ok(lines) => {
                let lines = lines.lines().map(str::trim).filter(|line| !line.is_empty());
                texts.extend(lines.map(|line| (file_setting.as_str(), line.to_owned())));
                if texts.is_empty() {
                    layers.mistake(
                        &origin,
                        &file_setting,
                        format!("{} holds no secret, one a line", shown_file(&file)),
                    );
                    return None;
                }
            }
            Err(error) => {
                layers.mistake(&origin, &file_setting, format!("{} cannot be read: {error}", shown_file(&file)));
                return None;
            }
        }
    }
    if texts.is_empty() {
        let problem =
            if is_list { "names no usable secret" } else { "is missing: a list such as [\"...\"], or secrets_file" };
        layers.mistake("source", &setting, problem);
        return None;
    }
    let scheme = scheme?;
    let mut secrets = Vec::with_capacity(texts.len());
    for (index, (from, text)) in texts.iter().enumerate() {
        match scheme.secret(text) {
            Ok(secret) => secrets.push(secret),
            Err(problem) => layers.mistake("source", from, format!("secret {}: {problem}", index + 1)),
        }
    }
    (secrets.len() == texts.len()).then_some(secrets)
}

/// An address, or none, or one that is none.
enum Address {
    None,
    Good(String),
    Bad,
}

/// The address that is signed, kept as it is written: a parsed one would be written otherwise, and sign otherwise.
fn url(layers: &mut Layers, name: &str) -> Address {
    let Some((text, origin)) = layers.text(&["source", name, "url"]) else { return Address::None };
    let problem = match Url::parse(&text) {
        Ok(url) if !matches!(url.scheme(), "https" | "http") => "must begin with https:// (or http://)",
        Ok(url) if !url.username().is_empty() || url.password().is_some() => {
            "must hold no user and no password: Twilio does not sign them"
        }
        Ok(url) if url.query().is_some() || url.fragment().is_some() => {
            "must end before the ? : the query of each request is signed as it comes"
        }
        Ok(_) => return Address::Good(text),
        Err(_) => "is no address: it reads https://example.com/v1/hooks/sms",
    };
    layers.mistake(&origin, &format!("source.{name}.url"), problem);
    Address::Bad
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_may_stand_in_the_environment_alone_and_its_secrets_are_never_printed() {
        let mut layers = Layers::default();
        for (name, text) in [
            ("WARREN__SOURCE__GITHUB__SCHEME", "github-sha256"),
            ("WARREN__SOURCE__GITHUB__SECRETS", "[\"the old one\", \"the new one\"]"),
            ("WARREN__SOURCE__GITHUB__TENANT", "acme"),
        ] {
            layers.add_variable(name, text);
        }
        let sources = read(&mut layers);
        assert_eq!(layers.finish(&[]), []);
        let source = Source {
            scheme: Scheme::GithubSha256,
            secrets: vec![Secret(b"the old one".into()), Secret(b"the new one".into())],
            tolerance: Duration::from_mins(5),
            tenant: Tenant::new("acme").expect("a name"),
        };
        assert_eq!(sources, BTreeMap::from([("github".to_owned(), source)]));
        assert!(!format!("{sources:?}").contains("one"), "{sources:?}");
    }
}
