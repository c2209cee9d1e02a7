//! What a request gets that cannot be served: RFC 9457, and the one map from our errors to HTTP's statuses.

use std::time::Duration;

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use tracing::error;
use warren_messages::{DecodeError, Invalid, Problem as FieldProblem};

use crate::{
    broker::PublishError,
    job::chain,
    runtime::registry::{Format, Rejected},
    schema::MOST_PROBLEMS,
    store::StoreError,
};

/// The code of an answer that cannot say whether a job was accepted.
pub const OUTCOME_UNKNOWN: &str = "outcome_unknown";
/// The code of an answer for which the database is needed.
pub const STORE_UNAVAILABLE: &str = "store_unavailable";

/// A request that cannot be served, and why.
#[derive(Debug, Clone)]
pub struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
    errors: Vec<FieldProblem>,
    retry_after: Option<Duration>,
    /// What else the answer says.
    job: Option<uuid::Uuid>,
    headers: Option<Box<HeaderMap>>,
    close: bool,
    /// The sentence stands there a second time, as `message`.
    message: bool,
}

/// What an answer asks for that lets nobody in (RFC 6750).
#[derive(Debug, Clone, Copy)]
pub(super) enum Challenge {
    /// A key, for there was none.
    Missing,
    /// Another key.
    Invalid,
}

/// A problem of one item among many.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "ItemProblem")]
pub struct Item {
    status: u16,
    code: &'static str,
    detail: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<FieldProblem>,
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<uuid::Uuid>,
}

/// A request that cannot be served, and why (RFC 9457).
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Problem")]
struct ProblemBody<'a> {
    #[serde(rename = "type")]
    kind: String,
    title: &'a str,
    status: u16,
    code: &'a str,
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    errors: &'a [FieldProblem],
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<uuid::Uuid>,
    request_id: &'a str,
}

/// The schema of every problem.
pub(super) fn schema(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<ProblemBody>()
}

impl Item {
    /// Its code.
    pub(super) fn code(&self) -> &'static str {
        self.code
    }
}

impl Problem {
    /// A problem with a stable code and a sentence.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        let (retry_after, job, headers, detail) = (None, None, None, detail.into());
        Self { status, code, detail, errors: Vec::new(), retry_after, job, headers, close: false, message: false }
    }

    /// One problem of one field or header.
    pub fn field(code: &'static str, pointer: &str, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        let errors = Invalid::new(pointer, code, detail.clone()).problems().to_vec();
        Self { errors, ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, detail) }
    }

    /// The same, with the connection closed after it: the rest of the request is not read.
    pub fn closing(self) -> Self {
        Self { close: true, ..self }
    }

    /// The same, with a header of its own.
    pub fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.get_or_insert_default().append(name, value);
        self
    }

    /// The same, asking for a key.
    pub(super) fn challenging(self, challenge: Challenge) -> Self {
        let challenge = match challenge {
            Challenge::Missing => "Bearer realm=\"warren\"",
            Challenge::Invalid => "Bearer realm=\"warren\", error=\"invalid_token\"",
        };
        self.with(WWW_AUTHENTICATE, HeaderValue::from_static(challenge))
    }

    /// The same, to be tried again after a while.
    pub fn after(self, pause: Duration) -> Self {
        Self { retry_after: Some(pause), ..self }
    }

    /// A request that would take more memory, or more of anything else, than there is now.
    pub fn overloaded() -> Self {
        let detail = "too much is under way here for now; nothing was accepted. Repeat the request a little later";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", detail).after(Duration::from_secs(1))
    }

    /// The same, of one item among many.
    pub fn item(self) -> Item {
        let Self { status, code, detail, errors, job, .. } = self;
        Item { status: status.as_u16(), code, detail, errors, job }
    }

    /// The same, for a client that looks for its sentence under `message`.
    pub(super) fn with_message(self) -> Self {
        Self { message: true, ..self }
    }

    /// The same as a `503`, for clients that try again after no other status.
    pub(super) fn unavailable(self) -> Self {
        Self { status: StatusCode::SERVICE_UNAVAILABLE, ..self }
    }

    /// After how long the same may be taken.
    pub(super) fn pause(&self) -> Option<Duration> {
        self.retry_after
    }

    /// The same under another code and in other words.
    pub fn saying(self, code: &'static str, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), ..self }
    }

    /// The same, with everything that is wrong.
    pub fn listing(self, errors: Vec<FieldProblem>) -> Self {
        Self { errors, ..self }
    }

    /// Its code.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// Whether a repeat may be served.
    pub fn is_ours(&self) -> bool {
        self.status.is_server_error()
    }

    /// Everything that is wrong: what it lists, or itself.
    pub fn problems(&self) -> Vec<FieldProblem> {
        match self.errors.as_slice() {
            [] => Invalid::new("", self.code, self.detail.clone()).problems().to_vec(),
            errors => errors.to_vec(),
        }
    }

    /// The same, about a job.
    pub fn about(self, job: uuid::Uuid) -> Self {
        Self { job: Some(job), ..self }
    }

    /// A body that was not accepted.
    pub fn rejected(rejected: &Rejected, format: Format) -> Self {
        let invalid = |invalid: &Invalid| Self {
            errors: invalid.problems().iter().take(MOST_PROBLEMS).cloned().collect(),
            ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_body", "the body breaks the rules of its kind")
        };
        match rejected {
            // Of a body that says one thing twice nobody knows which is meant: it is no body, whatever its kind.
            Rejected::Decode(DecodeError::Unfit(problems))
                if problems.problems().iter().any(|problem| problem.code == "duplicate_key") =>
            {
                let detail = "the body has a key twice: say each thing once";
                let (status, code) = (StatusCode::BAD_REQUEST, "duplicate_key");
                Self { status, code, detail: detail.to_owned(), ..invalid(problems) }
            }
            Rejected::Invalid(problems) | Rejected::Decode(DecodeError::Unfit(problems)) => invalid(problems),
            Rejected::TooLarge => Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", rejected.to_string()),
            Rejected::Decode(error) => {
                let (status, code) = match error {
                    DecodeError::Empty => (StatusCode::BAD_REQUEST, "empty_body"),
                    DecodeError::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
                    DecodeError::TooDeep => (StatusCode::BAD_REQUEST, "too_deep"),
                    DecodeError::NotAMap => (StatusCode::UNPROCESSABLE_ENTITY, "not_a_map"),
                    DecodeError::BadText { .. } => (StatusCode::BAD_REQUEST, "bad_encoding"),
                    DecodeError::Malformed { .. } if format == Format::Json => {
                        (StatusCode::BAD_REQUEST, "invalid_json")
                    }
                    DecodeError::Malformed { .. } => (StatusCode::BAD_REQUEST, "invalid_msgpack"),
                    DecodeError::Unfit(_) | DecodeError::UnknownVersion { .. } => {
                        (StatusCode::UNPROCESSABLE_ENTITY, "invalid_body")
                    }
                };
                Self::new(status, code, error.to_string())
            }
        }
    }

    /// A job that was not published, or may have been.
    pub fn publish(error: &PublishError) -> Self {
        let detail = match error {
            PublishError::OutcomeUnknown => {
                "the broker did not confirm the job in time; it may have been accepted. Repeat the request with the same \
                 Idempotency-Key: if it was, the repeat is the same job"
                    .to_owned()
            }
            error => format!("{error}; the job was not accepted"),
        };
        let status = match error {
            PublishError::NoRoom => StatusCode::INSUFFICIENT_STORAGE,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        let pause = match error {
            PublishError::Busy | PublishError::OutcomeUnknown => 1,
            PublishError::NoRoom => 30,
            _ => 5,
        };
        Self { retry_after: Some(Duration::from_secs(pause)), ..Self::new(status, error.code(), detail) }
    }

    /// A store that did not do its part.
    pub fn store(error: &StoreError, code: &'static str, detail: &str) -> Self {
        error!(error = chain(error), "the store failed a request");
        let status = StatusCode::SERVICE_UNAVAILABLE;
        Self { retry_after: Some(Duration::from_secs(5)), ..Self::new(status, code, detail) }
    }
}

impl Problem {
    /// Its body.
    fn body(&self, request_id: &str) -> Vec<u8> {
        let body = ProblemBody {
            kind: format!("urn:warren:problem:{}", self.code),
            title: self.status.canonical_reason().unwrap_or("Problem"),
            status: self.status.as_u16(),
            code: self.code,
            detail: &self.detail,
            message: self.message.then_some(self.detail.as_str()),
            errors: &self.errors,
            job: self.job,
            request_id,
        };
        // Text, numbers and lists of them: it cannot fail.
        serde_json::to_vec(&body).unwrap_or_default()
    }

    /// The whole answer as HTTP/1.1 has it, where there is no request that it could be the response to. The connection
    /// is to be closed after it.
    pub(super) fn to_http1(&self) -> Vec<u8> {
        let request_id = request_id();
        let body = self.body(&request_id);
        let retry = self.retry_after.map_or(String::new(), |pause| format!("retry-after: {}\r\n", pause.as_secs()));
        let head = format!(
            "HTTP/1.1 {}\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\nx-request-id: {request_id}\r\n\
             {retry}connection: close\r\n\r\n",
            self.status,
            body.len()
        );
        [head.as_bytes(), &body].concat()
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let request_id = request_id();
        let mut response = Response::new(Body::from(self.body(&request_id)));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Ok(id) = HeaderValue::from_str(&request_id) {
            headers.insert("x-request-id", id);
        }
        if let Some(pause) = self.retry_after {
            headers.insert(RETRY_AFTER, pause.as_secs().into());
        }
        headers.extend(self.headers.into_iter().flat_map(|more| *more));
        if self.close {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if self.status.is_server_error() {
            error!(request_id, code = self.code, detail = self.detail, "a request failed");
        }
        response
    }
}

/// Finds a request in the logs.
fn request_id() -> String {
    let mut bytes = [0; 8];
    // Without randomness it is a poor name, but a request must not fail for it.
    _ = getrandom::fill(&mut bytes);
    format!("{:016x}", u64::from_be_bytes(bytes))
}
