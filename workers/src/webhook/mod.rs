//! Performs `webhook.deliver`: one signed request to one receiver.
//!
//! Owns the request: its signature, its limits, where it may go ([`guard`]) and how many go to one host at once. It
//! promises that the receiver sees the same `webhook-id` at every attempt with a fresh timestamp, that nothing but a 2xx
//! is a success, that no redirect is followed, and that no answer is read beyond its first kilobyte.

pub mod guard;
mod hosts;
pub mod sign;

use std::{collections::BTreeMap, error::Error as _, sync::Arc, time::Duration, time::Instant};

use jiff::{Timestamp, fmt::rfc2822};
use reqwest::{
    Client, Response, StatusCode,
    header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER},
    redirect,
};
use serde::{Deserialize, Serialize};
use tokio::time::timeout_at;
use url::Url;
use warren_messages::{Invalid, webhook::Deliver as Message};

use self::{
    guard::{Guard, Refused, Rules},
    hosts::Hosts,
    sign::Secret,
};
use crate::{Backoff, Context, Disposition, Job, Policy, WorkError, Worker};

/// From the first byte of the look-up to the last byte of the answer.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(20);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A receiver may ask for a pause, but not for a job that never ends.
const LONGEST_RETRY_AFTER: Duration = Duration::from_hours(1);
/// How long the beginning of an answer's body is waited for: its status is known by then.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// How much of an answer is kept.
const KEPT_ANSWER: usize = 1024;

/// What the operator says about outgoing webhooks.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where they may go.
    pub rules: Rules,
    /// What they are signed with, by the name that a message gives. Several in one: the old and the new one.
    pub secrets: BTreeMap<String, Vec<Secret>>,
    /// How many requests go to one host at once.
    pub per_host: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { rules: Rules::default(), secrets: BTreeMap::new(), per_host: 8 }
    }
}

/// Sends webhooks.
#[derive(Debug)]
pub struct Deliver {
    client: Client,
    guard: Guard,
    hosts: Arc<Hosts>,
    secrets: BTreeMap<String, Vec<Secret>>,
}

/// What a receiver answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// The HTTP status, 200 to 299.
    pub status: u16,
    /// The first kilobyte of the answer; what is not UTF-8 is replaced.
    pub answer: String,
    /// From the look-up to the answer, in milliseconds.
    pub took_ms: u64,
}

/// Why a webhook was not delivered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// 410: the receiver wants no more of it.
    #[error("the receiver answered 410 Gone: {answer}")]
    Gone {
        /// How it began.
        answer: String,
    },
    /// Any other status outside of 200 to 299.
    #[error("the receiver answered {status}: {answer}")]
    Status {
        /// What it was.
        status: StatusCode,
        /// For how long the receiver asked to be left alone.
        retry_after: Option<Duration>,
        /// How the answer began.
        answer: String,
    },
    /// No answer in time.
    #[error("the receiver did not answer within {} s", TOTAL_TIMEOUT.as_secs())]
    TimedOut,
    /// No connection, or one that broke.
    #[error("the receiver cannot be reached")]
    Unreachable(#[source] reqwest::Error),
    /// The guard forbids the target.
    #[error("the target is not allowed")]
    Refused(#[source] Refused),
    /// The URL cannot be read. It was checked on the way in; only a foreign publisher gets here.
    #[error("the URL cannot be read")]
    BadUrl(#[source] url::ParseError),
    /// The message breaks a rule that a request depends on.
    #[error("the request cannot be made")]
    BadRequest(#[source] reqwest::Error),
    /// `secret_ref` names nothing that is configured.
    #[error("no secret is configured under the name `{0}`")]
    UnknownSecret(String),
    /// The message's own deadline is over.
    #[error("its deadline was {0}")]
    Expired(Timestamp),
    /// As many requests as one host gets are under way.
    #[error("{host} is busy with as many requests as one host gets")]
    HostBusy {
        /// Which one.
        host: String,
        /// When to come back.
        again: Duration,
    },
}

impl WorkError for Error {
    fn disposition(&self) -> Disposition {
        match self {
            Self::Status { retry_after: Some(pause), .. } => {
                Disposition::RetryAfter((*pause).min(LONGEST_RETRY_AFTER))
            }
            Self::Status { retry_after: None, .. }
            | Self::TimedOut
            | Self::Unreachable(_)
            | Self::Refused(Refused::Resolved { .. })
            // A secret may reach the configuration after the first job that names it.
            | Self::UnknownSecret(_) => Disposition::Retry,
            Self::HostBusy { again, .. } => Disposition::Snooze(*again),
            Self::Gone { .. } | Self::Refused(_) | Self::BadUrl(_) | Self::BadRequest(_) | Self::Expired(_) => {
                Disposition::DeadLetter
            }
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Gone { .. } => "gone",
            Self::Status { .. } => "bad_status",
            Self::TimedOut => "timed_out",
            Self::Unreachable(_) => "unreachable",
            Self::Refused(refused) => refused.code(),
            Self::BadUrl(_) => "bad_url",
            Self::BadRequest(_) => "bad_request",
            Self::UnknownSecret(_) => "unknown_secret",
            Self::Expired(_) => "deadline_passed",
            Self::HostBusy { .. } => "host_busy",
        }
    }
}

impl Deliver {
    /// A worker that goes through the system's resolver.
    ///
    /// # Errors
    ///
    /// When TLS cannot be set up.
    pub fn new(settings: Settings) -> Result<Self, reqwest::Error> {
        let guard = Guard::new(settings.rules.clone());
        Self::with_guard(settings, guard)
    }

    /// A worker with a guard of its own.
    ///
    /// # Errors
    ///
    /// When TLS cannot be set up.
    pub fn with_guard(settings: Settings, guard: Guard) -> Result<Self, reqwest::Error> {
        let client = Client::builder()
            .user_agent(concat!("warren/", env!("CARGO_PKG_VERSION")))
            .dns_resolver(Arc::new(guard.clone()))
            // A proxy from the environment would connect for us, past the guard.
            .no_proxy()
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TOTAL_TIMEOUT)
            .build()?;
        Ok(Self { client, guard, hosts: Hosts::new(settings.per_host), secrets: settings.secrets })
    }

    async fn send(&self, message: Message, url: Url) -> Result<Output, Error> {
        let body = match (message.body, message.body_base64) {
            (Some(json), _) => (json.to_text().into_bytes(), "application/json"),
            (None, bytes) => (bytes.unwrap_or_default().0, "application/octet-stream"),
        };
        let timestamp = Timestamp::now().as_second();
        let mut request = self
            .client
            .post(url)
            .header("webhook-id", &message.event_id)
            .header("webhook-timestamp", timestamp)
            .header("warren-event-type", &message.event_type);
        if let Some(name) = message.secret_ref {
            let Some(secrets) = self.secrets.get(&name) else {
                return Err(Error::UnknownSecret(name));
            };
            request =
                request.header("webhook-signature", sign::signatures(secrets, &message.event_id, timestamp, &body.0));
        }
        if !message.headers.keys().any(|name| name.eq_ignore_ascii_case(CONTENT_TYPE.as_str())) {
            request = request.header(CONTENT_TYPE, body.1);
        }
        for (name, value) in &message.headers {
            request = request.header(name, value);
        }
        let began = Instant::now();
        let response = request.body(body.0).send().await.map_err(classify)?;
        let status = response.status();
        let retry_after = retry_after(response.headers());
        let answer = beginning(response).await;
        match status {
            status if status.is_success() => Ok(Output {
                status: status.as_u16(),
                answer,
                took_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            }),
            StatusCode::GONE => Err(Error::Gone { answer }),
            status => Err(Error::Status { status, retry_after, answer }),
        }
    }
}

impl Worker for Deliver {
    type Message = Message;
    type Output = Output;
    type Error = Error;

    async fn perform(&self, job: Job<Message>, _: &mut Context) -> Result<Output, Error> {
        let message = job.message;
        if let Some(deadline) = message.deadline
            && Timestamp::now() >= deadline
        {
            return Err(Error::Expired(deadline));
        }
        let url = message.url.read().map_err(Error::BadUrl)?.clone();
        self.guard.check(&url).map_err(Error::Refused)?;
        let host = format!("{}:{}", url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or(0));
        match self.hosts.enter(&host, Instant::now()) {
            Ok(_place) => self.send(message, url).await,
            Err(again) => Err(Error::HostBusy { host, again }),
        }
    }

    /// Where it must not go, as far as its URL alone tells. What a name resolves to is judged when it is sent.
    fn check(&self, message: &Message) -> Result<(), Invalid> {
        match message.url.read() {
            Ok(url) if matches!(url.scheme(), "http" | "https") => {
                self.guard.check(url).map_err(|refused| Invalid::new("/url", refused.code(), refused.to_string()))
            }
            // The message's own rules have said so.
            _ => Ok(()),
        }
    }

    /// Twelve attempts over about a day and a half, as receivers of webhooks expect.
    fn policy(&self) -> Policy {
        Policy {
            concurrency: 200,
            timeout: TOTAL_TIMEOUT + Duration::from_secs(10),
            attempts: 12,
            backoff: Backoff { base: Duration::from_secs(5), factor: 4.0, cap: Duration::from_hours(6) },
            ..Policy::default()
        }
    }
}

/// The guard speaks through the resolver, so its verdict lies at the bottom of the client's error.
fn classify(error: reqwest::Error) -> Error {
    let mut source = error.source();
    while let Some(inner) = source {
        if let Some(refused) = inner.downcast_ref::<Refused>() {
            return Error::Refused(refused.clone());
        }
        source = inner.source();
    }
    // A URL may hold a token, and errors are shown to whoever may see the job.
    let error = error.without_url();
    if error.is_timeout() {
        Error::TimedOut
    } else if error.is_builder() {
        Error::BadRequest(error)
    } else {
        Error::Unreachable(error)
    }
}

/// How an answer begins. The status has decided by then, so a body that is slow or breaks off is only shorter.
async fn beginning(mut response: Response) -> String {
    let mut kept = Vec::with_capacity(KEPT_ANSWER);
    let until = tokio::time::Instant::now() + ANSWER_TIMEOUT;
    while let Ok(Ok(Some(chunk))) = timeout_at(until, response.chunk()).await {
        let room = KEPT_ANSWER - kept.len();
        kept.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if kept.len() == KEPT_ANSWER {
            break;
        }
    }
    String::from_utf8_lossy(&kept).into_owned()
}

/// `Retry-After` as seconds or as a date; what is neither is as if it were not there.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let at = rfc2822::parse(value).ok()?.timestamp();
    Some(Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default())
}
