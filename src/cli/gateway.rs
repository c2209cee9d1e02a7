//! Talks to a gateway over HTTP, as any sender does.

use std::{net::SocketAddr, time::Duration};

use reqwest::{Client, RequestBuilder};
use serde_json::Value;

use super::Failure;

const TIMEOUT: Duration = Duration::from_secs(15);

/// A gateway somewhere.
pub(super) struct Gateway {
    client: Client,
    url: String,
}

impl Gateway {
    /// At a URL, or where the configuration has one listen.
    pub(super) fn new(url: Option<&str>, listen: SocketAddr) -> Result<Self, Failure> {
        let client = Client::builder().timeout(TIMEOUT).no_proxy().build();
        let client = client.map_err(|error| Failure::Failed(format!("no HTTP client: {error}")))?;
        let url = url.map_or_else(|| format!("http://{listen}"), |url| url.trim_end_matches('/').to_owned());
        Ok(Self { client, url })
    }

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
        Err(match status.as_u16() {
            404 | 410 => Failure::NotFound(text),
            400..500 => Failure::Refused(text),
            _ => Failure::Unreachable(text),
        })
    }
}
