//! Talks to a gateway over HTTP, as any sender does.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use reqwest::{Client, RequestBuilder};
use serde_json::Value;

use super::Failure;
use crate::config::{Config, shown_file};

const TIMEOUT: Duration = Duration::from_secs(15);
/// The variable that holds a key.
const KEY: &str = "WARREN_KEY";

/// Which gateway, and with which key.
#[derive(Debug, Args)]
pub(super) struct Target {
    /// The gateway's URL; where the configuration has it listen, if not given
    #[arg(long, value_name = "URL")]
    gateway: Option<String>,
    /// A file with the key to send; the variable WARREN_KEY, if not given
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

/// A gateway somewhere.
pub(super) struct Gateway {
    client: Client,
    url: String,
    key: Option<String>,
}

impl Target {
    /// The key, from where it is no part of a command line: those are seen by everyone on the machine.
    fn key(&self) -> Result<Option<String>, Failure> {
        let key = match &self.key_file {
            Some(file) => Some(std::fs::read_to_string(file).map_err(|error| {
                let file = shown_file(&file.to_string_lossy()).to_owned();
                Failure::Usage(format!("the key cannot be read from {file}: {error}"))
            })?),
            None => std::env::var(KEY).ok(),
        };
        let key = key.map(|key| key.trim().to_owned()).filter(|key| !key.is_empty());
        if key.as_ref().is_some_and(|key| !key.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(Failure::Usage("the key is no key: it is one word of letters, digits and _".into()));
        }
        Ok(key)
    }

    /// Its URL, or where the configuration has one listen. Where that speaks TLS, nothing is sent in clear.
    fn url(&self, config: &Config) -> Result<String, Failure> {
        let listen = config.gateway_listen;
        match (self.gateway.as_deref(), config.limits.tls.is_some()) {
            (Some(url), true) if !url.to_ascii_lowercase().starts_with("https://") => Err(Failure::Usage(
                "the gateway speaks TLS ([gateway.tls]), so its URL begins with https://; nothing was sent".into(),
            )),
            (Some(url), _) => Ok(url.trim_end_matches('/').to_owned()),
            (None, false) => Ok(format!("http://{listen}")),
            (None, true) => Err(Failure::Usage(format!(
                "the gateway speaks TLS ([gateway.tls]), and its certificate is for a name, which {listen} is not: name it \
                 with --gateway https://NAME:{}",
                listen.port()
            ))),
        }
    }

    /// At its URL, or where the configuration has one listen.
    pub(super) fn open(&self, config: &Config) -> Result<Gateway, Failure> {
        let client = Client::builder().timeout(TIMEOUT).no_proxy().build();
        let client = client.map_err(|error| Failure::Failed(format!("no HTTP client: {error}")))?;
        let url = self.url(config)?;
        Ok(Gateway { client, url, key: self.key()? })
    }
}

impl Gateway {
    /// Sends a job.
    pub(super) fn submit(&self, kind: &str, body: String) -> RequestBuilder {
        let request = self.client.post(format!("{}/v1/jobs/{kind}", self.url));
        request.header("content-type", "application/json").body(body)
    }

    /// Asks for a job.
    pub(super) fn status(&self, id: &str) -> RequestBuilder {
        self.client.get(format!("{}/v1/jobs/{id}", self.url))
    }

    /// The answer, or what went wrong as the gateway says it.
    pub(super) async fn answer(&self, request: RequestBuilder) -> Result<Value, Failure> {
        let request = match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        };
        let response = request.send().await.map_err(|error| {
            let cause = crate::job::chain(&error.without_url());
            Failure::Unreachable(format!("no gateway answers at {}: {cause}; is `warren up` running?", self.url))
        })?;
        let status = response.status();
        let answer: Value = response.json().await.unwrap_or_default();
        if status.is_success() {
            return Ok(answer);
        }
        let mut text = answer["detail"].as_str().unwrap_or("no further explanation").to_owned();
        for error in answer["errors"].as_array().into_iter().flatten() {
            let part = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
            text.extend(["\n  ".to_owned(), part("pointer"), ": ".to_owned(), part("detail")]);
        }
        if status.as_u16() == 401 {
            text.push_str(match self.key {
                Some(_) => "\n  the key came from --key-file or from the variable WARREN_KEY",
                None => {
                    "\n  set the variable WARREN_KEY, or name a file with --key-file; `warren key create` makes a key"
                }
            });
        }
        Err(match status.as_u16() {
            404 | 410 => Failure::NotFound(text),
            400..500 => Failure::Refused(text),
            _ => Failure::Unreachable(text),
        })
    }
}
