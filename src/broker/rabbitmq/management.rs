//! RabbitMQ's management API: the few calls that AMQP has no words for.

use std::{fmt, str::FromStr, time::Duration};

use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::{Value, json};
use url::Url;

use super::topology::{self, Names};
use crate::job::Kind;

const TIMEOUT: Duration = Duration::from_secs(10);

/// Where the management API is, with its password. Never printed whole.
#[derive(Clone, PartialEq, Eq)]
pub struct ManagementUrl(Url);

/// A text that is no such URL. Does not repeat it: it may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the URL of RabbitMQ's management API reads http://user:password@host:15672")]
pub struct BadManagementUrl;

impl FromStr for ManagementUrl {
    type Err = BadManagementUrl;

    fn from_str(text: &str) -> Result<Self, BadManagementUrl> {
        match Url::parse(text) {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(Self(url)),
            _ => Err(BadManagementUrl),
        }
    }
}

impl fmt::Debug for ManagementUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = self.0.port_or_known_default().unwrap_or(0);
        write!(f, "{}://{}:{port}", self.0.scheme(), self.0.host_str().unwrap_or_default())
    }
}

/// Why a call was not answered as it should be.
#[derive(Debug, thiserror::Error)]
pub enum ManagementError {
    /// It cannot be reached.
    #[error("the broker's management API cannot be reached")]
    Unreachable(#[source] reqwest::Error),
    /// It answered something else.
    #[error("the broker's management API answered {status}: {body}")]
    Refused {
        /// The status.
        status: u16,
        /// The beginning of its answer.
        body: String,
    },
}

/// Calls the management API.
#[derive(Debug, Clone)]
pub struct Management {
    client: Client,
    url: ManagementUrl,
    vhost: String,
}

impl Management {
    /// For one virtual host.
    pub fn new(url: ManagementUrl, vhost: &str) -> Result<Self, ManagementError> {
        let client = Client::builder().timeout(TIMEOUT).no_proxy().build().map_err(ManagementError::Unreachable)?;
        Ok(Self { client, url, vhost: vhost.to_owned() })
    }

    /// Bounds the queues of all kinds.
    pub async fn put_limits(&self, names: &Names) -> Result<(), ManagementError> {
        let policy = topology::limits_policy(names);
        let body = json!({
            "pattern": policy.pattern,
            "definition": policy.definition,
            "apply-to": "queues",
            "priority": 0,
        });
        let request = self.request(Method::PUT, &["policies", &self.vhost, &policy.name]).json(&body);
        answered(request).await.map(drop)
    }

    /// The kinds among these whose queues are not bounded.
    pub async fn unbounded(&self, names: &Names, kinds: &[Kind]) -> Result<Vec<Kind>, ManagementError> {
        let mut unbounded = Vec::new();
        for kind in kinds {
            let request = self.request(Method::GET, &["queues", &self.vhost, &names.queue(kind)]);
            let queue: Value = answered(request).await?.json().await.map_err(ManagementError::Unreachable)?;
            let policy = &queue["effective_policy_definition"];
            if policy["max-length-bytes"].is_null() && policy["max-length"].is_null() {
                unbounded.push(kind.clone());
            }
        }
        Ok(unbounded)
    }

    /// The broker's version.
    pub async fn version(&self) -> Result<String, ManagementError> {
        let overview: Value = answered(self.request(Method::GET, &["overview"]))
            .await?
            .json()
            .await
            .map_err(ManagementError::Unreachable)?;
        Ok(overview["rabbitmq_version"].as_str().unwrap_or("unknown").to_owned())
    }

    /// The feature flags that are not enabled.
    pub async fn disabled_flags(&self) -> Result<Vec<String>, ManagementError> {
        let flags: Value = answered(self.request(Method::GET, &["feature-flags"]))
            .await?
            .json()
            .await
            .map_err(ManagementError::Unreachable)?;
        let flags = flags.as_array().into_iter().flatten();
        let disabled = flags.filter(|flag| flag["state"] == "disabled" && flag["stability"] == "stable");
        Ok(disabled.filter_map(|flag| flag["name"].as_str().map(str::to_owned)).collect())
    }

    fn request(&self, method: Method, path: &[&str]) -> RequestBuilder {
        let mut url = self.url.0.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("api").extend(path);
        }
        let (user, password) = (url.username().to_owned(), url.password().map(str::to_owned));
        _ = url.set_username("");
        _ = url.set_password(None);
        self.client.request(method, url).basic_auth(user, password)
    }
}

async fn answered(request: RequestBuilder) -> Result<Response, ManagementError> {
    let response = request.send().await.map_err(|error| ManagementError::Unreachable(error.without_url()))?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = response.text().await.unwrap_or_default();
    Err(ManagementError::Refused { status: status.as_u16(), body: body.chars().take(200).collect() })
}
