//! A client of gateways.

use std::time::Duration;

use reqwest::{
    Client, RequestBuilder, Response,
    header::{AUTHORIZATION, HeaderMap},
};
use serde_json::Value;

use super::wait::until;

/// A client of one gateway.
pub(crate) struct Http {
    pub(crate) client: Client,
    url: String,
}

impl Http {
    pub(crate) fn to(url: &str) -> Self {
        let client = Client::builder().no_proxy().timeout(Duration::from_secs(30)).build().expect("a client");
        Self { client, url: url.to_owned() }
    }

    /// One that sends a key with every request.
    pub(crate) fn with_key(url: &str, key: &str) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, format!("Bearer {key}").parse().expect("a header"));
        let client = Client::builder().no_proxy().timeout(Duration::from_secs(30)).default_headers(headers).build();
        Self { client: client.expect("a client"), url: url.to_owned() }
    }

    pub(crate) fn post(&self, path: &str) -> RequestBuilder {
        self.client.post(format!("{}{path}", self.url))
    }

    pub(crate) fn delete(&self, path: &str) -> RequestBuilder {
        self.client.delete(format!("{}{path}", self.url))
    }

    pub(crate) fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(format!("{}{path}", self.url))
    }

    /// Sends a job that is taken, and answers its id.
    pub(crate) async fn submit(&self, kind: &str, body: &Value) -> String {
        let response = self.post(&format!("/v1/jobs/{kind}")).json(body).send().await.expect("an answer");
        let status = response.status();
        let answer: Value = response.json().await.expect("JSON");
        assert_eq!(status, 202, "{answer}");
        answer["id"].as_str().expect("an id").to_owned()
    }

    /// What is known of a job.
    pub(crate) async fn job(&self, id: &str) -> Value {
        self.get(&format!("/v1/jobs/{id}")).send().await.expect("an answer").json().await.expect("JSON")
    }

    /// Waits until a job is in a state.
    pub(crate) async fn job_in(&self, id: &str, state: &str) -> Value {
        until(&format!("{id} is {state}"), async || Some(self.job(id).await).filter(|job| job["state"] == state)).await
    }
}

/// The status and the body of an answer.
pub(crate) async fn parts(response: Response) -> (u16, Value) {
    let status = response.status().as_u16();
    let text = response.text().await.expect("a body");
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}
