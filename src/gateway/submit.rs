//! From a request to a job: checked, named, and durable before it is answered. Every protocol ends here.

use std::{sync::Arc, time::Duration};

use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use tokio::time::timeout;
use uuid::Uuid;

use super::{
    Gateway,
    caller::Caller,
    event,
    problem::{OUTCOME_UNKNOWN, Problem, STORE_UNAVAILABLE},
    room::Room,
};
use crate::{
    broker::{Outgoing, PublishError},
    clock, crash_point, id,
    job::{Due, Envelope, Key, Kind, Micros, NewJob, State, Trace},
    nearest::{did_you_mean, shorten},
    runtime::registry::{Accepted, Format},
    store::{Known, StoreError},
    telemetry::IDEMPOTENT_HITS,
};

/// The furthest that a job may lie ahead.
pub(super) const FURTHEST: Duration = Duration::from_hours(24 * 366);
/// How long whoever sends a job with a delay waits for the database. A little longer than a connection to it is waited for:
/// where there is none, the job is surely not accepted.
const PATIENCE: Duration = Duration::from_secs(4);
/// Before jobs that met others at their rows are put into the database again.
const CONFLICT_PAUSE: Duration = Duration::from_millis(20);
/// How far a due time may lie behind.
const LATEST: SignedDuration = SignedDuration::from_hours(24);

/// One job to be accepted.
#[derive(Debug)]
pub struct Submission<'a> {
    /// Who sends it, and for whom.
    pub caller: &'a Caller,
    /// The name of its kind, as it was given.
    pub kind: &'a str,
    /// How its body is written.
    pub format: Format,
    /// Its body.
    pub body: &'a [u8],
    /// What makes a repeat the same job.
    pub name: Name<'a>,
    /// When it is due.
    pub when: When,
    /// Who sends it.
    pub source: Option<Arc<str>>,
    /// W3C trace context.
    pub trace: Option<Box<Trace>>,
}

/// What makes a repeat the same job, beside what its message says itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Name<'a> {
    /// Nothing.
    #[default]
    None,
    /// An idempotency key: a repeat with another body is told so.
    Key(&'a str),
    /// What its sender calls it, such as an event's id. A repeat may differ and is the same job.
    Given {
        /// Whose names these are: equal names from elsewhere are other jobs.
        by: &'a str,
        /// The name.
        name: &'a str,
    },
}

/// When a job is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum When {
    /// At once.
    #[default]
    Now,
    /// So long from now.
    In(Duration),
    /// At an instant; one that is over is at once, and `late`.
    At(Timestamp),
}

/// A job that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submitted {
    /// Its id.
    pub id: Uuid,
    /// Its kind.
    pub kind: Kind,
    /// `queued` or `scheduled`; for a repeat, where it is known to stand.
    pub state: State,
    /// It had been accepted before.
    pub replayed: bool,
    /// It was due before it came.
    pub late: bool,
}

/// A job that was found to be one of its kind, and has its id.
#[derive(Debug)]
pub(super) struct Checked {
    envelope: Envelope,
    body: Vec<u8>,
    due: Option<Due>,
    submitted: Submitted,
}

/// A job that is on its way: what is answered once it is durable.
struct Promised {
    submitted: Submitted,
    /// Of its body, if it has an idempotency key.
    digest: Option<[u8; 32]>,
}

/// Where a job goes that was checked.
enum Way {
    /// Nowhere: there is an answer to it.
    Answered(Result<Submitted, Problem>),
    /// To the broker.
    Now(Promised, Outgoing),
    /// Into the store.
    Later(Promised, NewJob),
}

/// Jobs that take the same way, each with its place among those that came with it.
struct Jobs<T> {
    promised: Vec<(usize, Promised)>,
    jobs: Vec<T>,
}

impl<T> Default for Jobs<T> {
    fn default() -> Self {
        Self { promised: Vec::new(), jobs: Vec::new() }
    }
}

impl<T> Jobs<T> {
    fn with_room_for(jobs: usize) -> Self {
        Self { promised: Vec::with_capacity(jobs), jobs: Vec::with_capacity(jobs) }
    }

    fn push(&mut self, place: usize, promised: Promised, job: T) {
        self.promised.push((place, promised));
        self.jobs.push(job);
    }
}

/// What became of a job: durable, there before it, or neither and why.
type Kept = Result<Option<Known>, Problem>;

impl Gateway {
    /// Checks a job and names it. Nothing is taken yet.
    pub(super) fn check(&self, submission: Submission<'_>) -> Result<Checked, Problem> {
        submission.caller.count(1)?;
        let Some((kind, registered)) = self.registry.get(submission.kind) else {
            return Err(self.unknown_kind(submission.kind));
        };
        submission.caller.may_send(kind)?;
        let (due, late) = due(submission.when)?;
        let accepted = registered
            .handler
            .accept(submission.format, submission.body, matches!(submission.name, Name::Key(_)))
            .map_err(|rejected| Problem::rejected(&rejected, submission.format))?;
        let Accepted { body, version, dedup_key, digest } = accepted;
        event::refuse_forged(kind, dedup_key.as_deref(), submission.name)?;
        let now = clock::now();
        let tenant = submission.caller.tenant.clone();
        let (id, key) = match (submission.name, dedup_key, digest) {
            (Name::Key(key), _, Some(digest)) => {
                (self.minter.keyed(&tenant, id::IDEMPOTENCY_KEY, kind, key), Key::Digest(digest))
            }
            (Name::Given { by, name }, ..) => (self.minter.keyed(&tenant, by, kind, name), Key::Keyed),
            (_, Some(key), _) => (self.minter.keyed(&tenant, id::DEDUP_KEY, kind, &key), Key::Keyed),
            _ => (self.minter.mint(&tenant, now), Key::None),
        };
        let state = if due.is_some() { State::Scheduled } else { State::Queued };
        let submitted = Submitted { id, kind: kind.clone(), state, replayed: false, late };
        let envelope = Envelope {
            tenant,
            source: submission.source,
            key,
            trace: submission.trace,
            ..Envelope::new(id, kind.clone(), version, now)
        };
        Ok(Checked { envelope, body, due, submitted })
    }

    /// Takes a job that was checked, with the room that it took so far: `Ok` only when it is durable.
    pub(super) async fn take(&self, checked: Checked, mut room: Room) -> Result<Submitted, Problem> {
        // The request may be let go by now; what waits for the broker is bounded all the same.
        room.hold(checked.body.len())?;
        match self.way(checked) {
            Way::Answered(told) => told,
            Way::Now(promised, job) => {
                crash_point!("gateway: not published");
                let published = self.broker.publish(job).await;
                if published.is_ok() {
                    crash_point!("gateway: confirmed, not answered");
                }
                self.answer(promised, of_broker(&published))
            }
            Way::Later(promised, job) => {
                let mut kept = self.schedule(vec![job]).await;
                // One was put in, so one comes out.
                self.answer(
                    promised,
                    kept.pop().unwrap_or_else(|| Err(Problem::publish(&PublishError::OutcomeUnknown))),
                )
            }
        }
    }

    /// Takes jobs together, and answers each in its place: `Ok` only when it is durable. Those that were refused before
    /// stay so.
    pub(super) async fn take_all(&self, checked: Vec<Result<Checked, Problem>>) -> Vec<Result<Submitted, Problem>> {
        // As in `take`.
        let (mut room, mut bytes) = (Room::default(), 0);
        // Most are for now.
        let (mut now, mut later) = (Jobs::with_room_for(checked.len()), Jobs::default());
        let mut taken = Vec::with_capacity(checked.len());
        for (place, checked) in checked.into_iter().enumerate() {
            let held = checked.and_then(|checked| room.hold(bytes + checked.body.len()).map(|()| checked));
            match held.map(|checked| self.way(checked)) {
                Err(problem) => taken.push((place, Err(problem))),
                Ok(Way::Answered(told)) => taken.push((place, told)),
                Ok(Way::Now(promised, job)) => {
                    bytes += job.body.len();
                    now.push(place, promised, job);
                }
                Ok(Way::Later(promised, job)) => {
                    bytes += job.body.len();
                    later.push(place, promised, job);
                }
            }
        }
        let (published, scheduled) = tokio::join!(self.publish(now.jobs), self.schedule(later.jobs));
        let promised = now.promised.into_iter().zip(published).chain(later.promised.into_iter().zip(scheduled));
        taken.extend(promised.map(|((place, promised), kept)| (place, self.answer(promised, kept))));
        taken.sort_unstable_by_key(|(place, _)| *place);
        taken.into_iter().map(|(_, taken)| taken).collect()
    }

    /// Where a job goes that was checked.
    fn way(&self, Checked { envelope, body, due, submitted }: Checked) -> Way {
        let digest = envelope.key.digest().copied();
        if let Some(digest) = digest
            && let Some(before) = self.recent.digest(envelope.id)
        {
            return Way::Answered(repeated(submitted, before == digest));
        }
        let promised = Promised { submitted, digest };
        match due {
            None => Way::Now(promised, Outgoing { envelope, body }),
            Some(due) => Way::Later(promised, NewJob { envelope, body, due, parent: None }),
        }
    }

    /// What is answered to a job, once it is known what became of it. One with a key that is durable is remembered.
    fn answer(&self, Promised { submitted, digest }: Promised, kept: Kept) -> Result<Submitted, Problem> {
        let id = submitted.id;
        let answer = match kept {
            Ok(None) => Ok(submitted),
            Ok(Some(Known { state, digest: before, .. })) => {
                repeated(Submitted { state, ..submitted }, digest == before)
            }
            // Its id leaves the gateway only where the job may have been accepted.
            Err(problem) if problem.code() == OUTCOME_UNKNOWN => Err(problem.about(id)),
            Err(problem) => Err(problem),
        };
        if let (Ok(_), Some(digest)) = (&answer, digest) {
            self.recent.accepted(id, digest);
        }
        answer
    }

    async fn publish(&self, jobs: Vec<Outgoing>) -> Vec<Kept> {
        if jobs.is_empty() {
            return Vec::new();
        }
        crash_point!("gateway: many not published");
        let published = self.broker.publish_all(jobs).await;
        if published.contains(&Ok(())) {
            crash_point!("gateway: many confirmed, not answered");
        }
        published.iter().map(of_broker).collect()
    }

    /// Jobs with a due time go into the store, and leave it through the dispatcher.
    async fn schedule(&self, mut jobs: Vec<NewJob>) -> Vec<Kept> {
        if jobs.is_empty() {
            return Vec::new();
        }
        let inserted = timeout(PATIENCE, self.insert(&jobs)).await;
        let inserted = inserted.unwrap_or_else(|elapsed| Err(StoreError::Unavailable(elapsed.into())));
        let problem = match inserted {
            Ok(before) => return before.into_iter().map(Ok).collect(),
            // One among many: halve until it stands alone.
            Err(StoreError::Data(_)) if jobs.len() > 1 => {
                let second = jobs.split_off(jobs.len() / 2);
                let (mut first, second) = tokio::join!(Box::pin(self.schedule(jobs)), Box::pin(self.schedule(second)));
                first.extend(second);
                return first;
            }
            Err(error @ StoreError::Unavailable(_)) => {
                let detail = "the database did not answer in time; the job may have been accepted. Repeat the request \
                              with the same Idempotency-Key: if it was, the repeat is the same job";
                Problem::store(&error, OUTCOME_UNKNOWN, detail)
            }
            Err(StoreError::NoRoom(_)) => Problem::publish(&PublishError::NoRoom),
            Err(error) => {
                let detail =
                    "a job with a delay is kept in the database, which cannot take it now; it was not accepted";
                Problem::store(&error, STORE_UNAVAILABLE, detail)
            }
        };
        jobs.iter().map(|_| Err(problem.clone())).collect()
    }

    /// Puts jobs into the store. Others that are at the same rows are waited for.
    async fn insert(&self, jobs: &[NewJob]) -> Result<Vec<Option<Known>>, StoreError> {
        loop {
            match self.store.insert(jobs).await {
                Err(StoreError::Conflict(_)) => tokio::time::sleep(CONFLICT_PAUSE).await,
                told => return told,
            }
        }
    }

    /// What is said to a kind that is not there.
    pub(super) fn unknown_kind(&self, name: &str) -> Problem {
        if let Err(rule) = Kind::new(name) {
            return Problem::field("bad_kind_name", "", format!("`{}` is no kind: {rule}", shorten(name)));
        }
        let hint = did_you_mean(name, self.registry.iter().map(|(kind, _)| kind.as_str()));
        Problem::new(StatusCode::NOT_FOUND, "unknown_kind", format!("there is no kind {name}{hint}"))
    }
}

/// What became of a job that the broker was given.
fn of_broker(published: &Result<(), PublishError>) -> Kept {
    published.as_ref().map(|()| None).map_err(Problem::publish)
}

/// What a repeat under a known key gets.
fn repeated(submitted: Submitted, same_body: bool) -> Result<Submitted, Problem> {
    if same_body {
        metrics::counter!(IDEMPOTENT_HITS).increment(1);
        return Ok(Submitted { replayed: true, ..submitted });
    }
    let detail = "this Idempotency-Key was used for a job with another body: use a key of its own for each job";
    Err(Problem::new(StatusCode::CONFLICT, "idempotency_conflict", detail).about(submitted.id))
}

/// When a job is due for the store, and whether that was before it came.
fn due(when: When) -> Result<(Option<Due>, bool), Problem> {
    match when {
        When::Now => Ok((None, false)),
        When::In(delay) if delay.is_zero() => Ok((None, false)),
        When::In(delay) => Ok((Some(Due::In(delay)), false)),
        When::At(at) => {
            let ahead = at.duration_since(Timestamp::now());
            if ahead < -LATEST {
                let detail = format!("{at} is more than a day ago: leave the header away to run the job now");
                return Err(Problem::field("bad_run_at", "", detail));
            }
            if ahead.is_negative() {
                return Ok((None, true));
            }
            if Duration::try_from(ahead).is_ok_and(|ahead| ahead > FURTHEST) {
                let detail = format!("{at} is more than {} days ahead", FURTHEST.as_secs() / 86_400);
                return Err(Problem::field("bad_run_at", "", detail));
            }
            let at: Micros = at.as_microsecond();
            Ok((Some(Due::At(at)), false))
        }
    }
}
