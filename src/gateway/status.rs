//! What is known of a job.

use std::time::Duration;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;
use warren_messages::{Bytes, codec};

use super::{
    Gateway,
    problem::{Problem, STORE_UNAVAILABLE},
};
use crate::{
    clock,
    id::Origin,
    job::{CANCELLED, Micros, State, Tenant},
    store::{AttemptRecord, Cancelled, JobRecord},
};
use http::StatusCode;

/// A job, as it is shown over HTTP and by the command line.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Job")]
pub struct JobView {
    /// Which job.
    pub id: Uuid,
    /// Its kind; not known of a job that waits in the broker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Where it stands.
    pub state: State,
    /// Whether it has a row. One that waits in the broker for the first time has none.
    pub recorded: bool,
    /// When it was accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Timestamp>,
    /// When it is due.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub due_at: Option<Timestamp>,
    /// When it was over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
    /// Who sent it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The job that asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<Uuid>,
    /// Its present run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<u32>,
    /// How many attempts have failed since it was accepted, or last replayed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed_attempts: Option<u16>,
    /// Why it is not simply done: a stable code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The same, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Of one that was called off: whether it had run by then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ran: Option<bool>,
    /// What it left behind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<Value>,
    /// Its body, where that is kept and shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<Value>,
    /// The same as bytes, where they are no body that can be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body_base64: Option<Bytes>,
    /// Its failed attempts, oldest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub attempts: Vec<AttemptView>,
    /// How often it was sent again under its key with another body.
    #[serde(skip_serializing_if = "is_zero")]
    pub idempotency_conflicts: u32,
}

/// A failed attempt.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Attempt")]
pub struct AttemptView {
    /// Its number, from 1; begins again at a replay.
    pub attempt: u16,
    /// The run that failed.
    pub run: u32,
    /// A stable code.
    pub code: String,
    /// For people.
    pub error: String,
    /// When.
    pub failed_at: Option<Timestamp>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

fn instant(at: Micros) -> Option<Timestamp> {
    Timestamp::from_microsecond(at).ok()
}

impl JobView {
    /// A job that has a row. Its body is shown only to operators.
    pub fn of(record: JobRecord, with_body: bool) -> Self {
        let envelope = record.envelope;
        let (body, body_base64) = match record.body.filter(|_| with_body) {
            None => (None, None),
            // What is no body may still be readable, and is shown as what it is.
            Some(bytes) => match codec::check(&bytes).and_then(|()| codec::to_json(&bytes)) {
                Ok(body) => (Some(body), None),
                Err(_) => (None, Some(Bytes(bytes))),
            },
        };
        Self {
            id: envelope.id,
            kind: Some(envelope.kind.to_string()),
            state: record.state,
            recorded: true,
            created_at: instant(envelope.created_at),
            due_at: record.due_at.and_then(instant),
            finished_at: record.finished_at.and_then(instant),
            source: envelope.source.as_deref().map(str::to_owned),
            parent: record.parent,
            run: Some(envelope.run),
            failed_attempts: Some(envelope.attempt),
            ran: (record.state == State::Cancelled).then(|| record.reason.as_deref() == Some(CANCELLED[1])),
            reason: record.reason,
            error: record.error,
            output: record.output.and_then(|bytes| codec::to_json(&bytes).ok()),
            body,
            body_base64,
            attempts: record.attempts.into_iter().map(AttemptView::of).collect(),
            idempotency_conflicts: record.conflicts,
        }
    }

    /// A job that has none.
    pub fn waiting(id: Uuid, created_at: Option<Micros>) -> Self {
        Self {
            id,
            kind: None,
            state: State::Queued,
            recorded: false,
            created_at: created_at.and_then(instant),
            due_at: None,
            finished_at: None,
            source: None,
            parent: None,
            run: None,
            failed_attempts: None,
            reason: None,
            error: None,
            ran: None,
            output: None,
            body: None,
            body_base64: None,
            attempts: Vec::new(),
            idempotency_conflicts: 0,
        }
    }
}

impl AttemptView {
    fn of(record: AttemptRecord) -> Self {
        let AttemptRecord { run, attempt, code, error, failed_at } = record;
        Self { attempt, run, code, error, failed_at: instant(failed_at) }
    }
}

impl Gateway {
    /// What is known of a job of this tenant.
    pub async fn status(&self, tenant: &Tenant, id: &str) -> Result<JobView, Problem> {
        let id = Uuid::try_parse(id).map_err(|_| unknown())?;
        let record = self.store.get(Some(tenant), id).await;
        let record = record.map_err(|error| {
            Problem::store(
                &error,
                STORE_UNAVAILABLE,
                "the database cannot be reached, so nothing can be said of any job; jobs are still accepted",
            )
        })?;
        if let Some(record) = record {
            return Ok(JobView::of(record, false));
        }
        match self.minter.origin(tenant, id) {
            Origin::Foreign => Err(unknown()),
            Origin::Keyed => Ok(JobView::waiting(id, None)),
            Origin::Unkeyed(at) if clock::now() - at > self.remembered => {
                let detail = "this job is so old that nothing is kept of it any more";
                Err(Problem::new(StatusCode::GONE, "expired", detail))
            }
            Origin::Unkeyed(at) => Ok(JobView::waiting(id, Some(at))),
        }
    }

    /// Waits for a job to be over, and tells of it if it is by then.
    pub(super) async fn ended(&self, tenant: &Tenant, id: Uuid, at_most: Duration) -> Option<JobView> {
        self.waiters.wait(tenant, id, at_most).await;
        let record = self.store.get(Some(tenant), id).await.ok()??;
        record.state.is_terminal().then(|| JobView::of(record, false))
    }

    /// Calls a job of this tenant off: true if that is done, false if it is asked for.
    pub async fn cancel(&self, tenant: &Tenant, id: &str) -> Result<(Uuid, bool), Problem> {
        let id = Uuid::try_parse(id).map_err(|_| unknown())?;
        let unrecorded = match self.minter.origin(tenant, id) {
            Origin::Foreign => false,
            Origin::Keyed => true,
            Origin::Unkeyed(at) => clock::now() - at <= self.remembered,
        };
        let cancelled = self.store.cancel(Some(tenant), id, unrecorded).await.map_err(|error| {
            let detail = "the database cannot be reached, so no job can be called off; repeat the request";
            Problem::store(&error, STORE_UNAVAILABLE, detail)
        })?;
        match cancelled {
            Cancelled::Done | Cancelled::Over(State::Cancelled) => Ok((id, true)),
            Cancelled::Requested => Ok((id, false)),
            Cancelled::Over(state) => {
                let detail = format!("this job is over, it is {state}: nothing is left to call off");
                Err(Problem::new(StatusCode::CONFLICT, "already_finished", detail).about(id))
            }
            Cancelled::Unknown => Err(unknown()),
        }
    }
}

fn unknown() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "unknown_job", "there is no such job")
}
