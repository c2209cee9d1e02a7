//! The store port: the truth about every job that is not simply waiting in the broker.
//!
//! # The contract
//!
//! - **Units of work.** Every method is one transaction: it happens whole or not at all. No caller ever holds one open.
//! - **The fence.** A completion is recorded if there is no row, or the row is of the same tenant, not terminal, and its
//!   run is not higher. What loses is not an error: its job has moved on.
//! - **One clock.** Due times are judged by the store's own clock; a delay is added there.
//! - **A claim ends with what it was for.** Whatever moves a job on takes the claim off its row.
//! - **No lost wake-up.** What makes a job due within a second wakes the dispatcher that waits on [`Due::wait`].
//!
//! The adapters know no role. They mirror each other's files, and are run by one conformance suite,
//! `tests/it/conformance/store.rs`.

mod keys;
mod migrations;
pub mod postgres;
pub mod sqlite;
mod turns;

use std::{error::Error, ops::Range, sync::Arc, time::Duration};

use async_trait::async_trait;
use uuid::Uuid;

pub use self::keys::{Keys, StoredKeys, StrangeKey};
use crate::job::{Completion, Envelope, Kind, Micros, NewJob, State, Tenant};

/// Why the store did not do a unit of work.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be reached. Nothing was done.
    #[error("the database cannot be reached")]
    NotReached(#[source] Box<dyn Error + Send + Sync>),
    /// It was reached and then did not answer. Whether the work was done is not known.
    #[error("the database did not answer")]
    Unavailable(#[source] Box<dyn Error + Send + Sync>),
    /// The disk is full. Nothing was done.
    #[error("the disk is full")]
    NoRoom(#[source] Box<dyn Error + Send + Sync>),
    /// Others were at the same rows. Nothing was done; the same again may well succeed.
    #[error("the database asks for another try")]
    Conflict(#[source] Box<dyn Error + Send + Sync>),
    /// It refuses this data, and will refuse it again. Nothing was done.
    #[error("the database refuses the data")]
    Data(#[source] Box<dyn Error + Send + Sync>),
}

impl StoreError {
    /// The same, of something that is done before any work.
    pub(crate) fn not_reached(self) -> Self {
        match self {
            Self::Unavailable(cause) => Self::NotReached(cause),
            other => other,
        }
    }
}

/// The name of the value that says when the installation began, in microseconds since the epoch.
pub const SINCE: &str = "since";

/// What is due sooner than this wakes the dispatcher; for the rest it wakes by itself.
pub(crate) const SOON: Duration = Duration::from_secs(1);

/// Records completions, on a connection of its own.
#[async_trait]
pub trait Record: Send {
    /// Records these rows of a batch in one transaction: at most one completion for an id, sorted by id. Answers how
    /// many lost the fence. After [`StoreError::Unavailable`] the next call begins on a fresh connection, and the same
    /// rows again are harmless. (The batch is shared, because a writer may outlive its caller.)
    async fn record(&mut self, batch: &Arc<Vec<Completion>>, rows: Range<usize>) -> Result<usize, StoreError>;
}

/// What the roles ask of single jobs.
#[async_trait]
pub trait Jobs: Send + Sync {
    /// Puts jobs into the store that begin their life there. Answers, for each in order, the row that was there before: for
    /// the second of two with the same id, that of the first.
    async fn insert(&self, jobs: &[NewJob]) -> Result<Vec<Option<Known>>, StoreError>;

    /// What is known of jobs, for the fence: the rows among these ids.
    async fn lookup(&self, ids: &[Uuid]) -> Result<Vec<Known>, StoreError>;

    /// Notes on jobs that they were published again under their key with another body.
    async fn note_conflicts(&self, ids: &[Uuid]) -> Result<(), StoreError>;

    /// A job with its failed attempts: of this tenant, or of any if none is named.
    async fn get(&self, tenant: Option<&Tenant>, id: Uuid) -> Result<Option<JobRecord>, StoreError>;

    /// Jobs that have a row, the newest first, without bodies and outputs.
    async fn list(&self, filter: &Filter) -> Result<Vec<JobRecord>, StoreError>;

    /// Jobs that were over after a time, the oldest first, without bodies and outputs.
    async fn ended(&self, after: Micros, kind: Option<&Kind>, limit: u32) -> Result<Vec<JobRecord>, StoreError>;

    /// How many jobs are in a state, counted no further than `limit`. Not for `succeeded`, which no index serves.
    async fn count(&self, state: State, limit: u32) -> Result<u32, StoreError>;

    /// Gives a dead letter another life: due now, its attempts counted from 0.
    async fn replay(&self, id: Uuid) -> Result<Transition, StoreError>;

    /// Drops a dead letter for good.
    async fn discard(&self, id: Uuid) -> Result<Transition, StoreError>;

    /// Publishes a job once more that is not over, under another run: whatever is under way of it counts no more.
    async fn requeue(&self, id: Uuid) -> Result<Transition, StoreError>;
}

/// What is asked to call jobs off.
#[async_trait]
pub trait Cancel: Send + Sync {
    /// Calls a job off, of this tenant or of any if none is named: at once where nobody has it, else by a tombstone, which
    /// holds for all its runs until it is over, replayed or requeued. A job without a row gets one only if it is
    /// `unrecorded` by the caller's word.
    async fn cancel(&self, tenant: Option<&Tenant>, id: Uuid, unrecorded: bool) -> Result<Cancelled, StoreError>;

    /// The tombstones that were set after one of them, in their order.
    async fn tombstones(&self, after: i64) -> Result<Vec<Tombstone>, StoreError>;

    /// Those of these jobs that have a tombstone.
    async fn called_off(&self, ids: &[Uuid]) -> Result<Vec<Uuid>, StoreError>;
}

/// What the processes of an installation tell of themselves.
#[async_trait]
pub trait Fleet: Send + Sync {
    /// Writes down that a process lives, and what it does.
    async fn beat(&self, instance: &Instance) -> Result<(), StoreError>;

    /// A process has ended as it should.
    async fn leave(&self, id: Uuid) -> Result<(), StoreError>;

    /// The processes that have given a sign of life within this time.
    async fn instances(&self, within: Duration) -> Result<Vec<InstanceRecord>, StoreError>;

    /// Adds to how many jobs of each kind were published in the present ten seconds.
    async fn count_published(&self, counts: &[(Kind, u64)]) -> Result<(), StoreError>;

    /// For each kind and how many of its jobs wait: how long ago as many as that had not been published yet, which is
    /// about how long the oldest has been waiting. `None` where that is longer ago than is counted.
    async fn waiting_since(&self, depths: &[(Kind, u64)]) -> Result<Vec<Option<Duration>>, StoreError>;

    /// Forgets processes that have given no sign of life for an hour, counts that are older than a week, and tombstones of
    /// jobs that are over or that nobody has met for a month.
    async fn forget(&self) -> Result<u64, StoreError>;
}

/// One process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// A new one for each process.
    pub id: Uuid,
    /// Its number on its host.
    pub pid: u32,
    /// Where it runs.
    pub host: String,
    /// What it runs.
    pub version: String,
    /// Its roles, joined by spaces.
    pub roles: String,
    /// The jobs that it runs.
    pub work: Vec<Work>,
}

/// One process, as others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceRecord {
    /// What it says of itself.
    pub instance: Instance,
    /// Since when it runs.
    pub started_at: Micros,
    /// How long ago it last gave a sign of life.
    pub beat_ago: Duration,
}

/// One job that runs.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Work {
    /// Which one.
    pub id: Uuid,
    /// Its kind.
    pub kind: String,
    /// For how long.
    pub seconds: u64,
    /// What it last said of its progress, as (done, total).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<(u64, u64)>,
}

/// The tenant of a tombstone that an operator has set for a job of which nobody knows yet whose it is.
pub(crate) const ANY_TENANT: &str = "*";

/// What came of calling a job off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancelled {
    /// It will not run.
    Done,
    /// Whoever meets it next calls it off.
    Requested,
    /// It is over.
    Over(State),
    /// There is no such job.
    Unknown,
}

/// A job that is to be called off as soon as someone meets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tombstone {
    /// Grows with each.
    pub seq: i64,
    /// Which job.
    pub id: Uuid,
}

/// What the dispatcher asks.
#[async_trait]
pub trait Due: Send + Sync {
    /// Takes jobs whose time has come, at most `limit` and fairly between kinds, for the length of a lease. None of the
    /// kinds in `except`.
    async fn claim(&self, limit: usize, lease: Duration, except: &[Kind]) -> Result<Claim, StoreError>;

    /// These were published: `queued`, unless they have moved on. Answers how many had not.
    async fn published(&self, token: Uuid, ids: &[Uuid]) -> Result<u64, StoreError>;

    /// These were not published: due at once, for anyone.
    async fn release(&self, token: Uuid, ids: &[Uuid]) -> Result<(), StoreError>;

    /// How long until the next job is due that no one holds, by the store's clock: zero if one is.
    async fn next_due(&self, except: &[Kind]) -> Result<Option<Duration>, StoreError>;

    /// Waits until something may have become due sooner than was known, but no longer than this.
    async fn wait(&self, at_most: Duration);
}

/// What the pruner asks. It goes through time in windows, so that no step ever looks at what an earlier one has left.
#[async_trait]
pub trait Prune: Send + Sync {
    /// How many rows a step should touch: the more, the less it looks at beside them, and the longer it takes.
    fn rows_a_step(&self) -> u32;

    /// Drops the body or the output of jobs of some kinds that are over since a time in the window, and need neither any
    /// more: of `at_most` so many.
    async fn strip(
        &self,
        what: Keepsake,
        of: &Kinds,
        window: Range<Micros>,
        at_most: u32,
    ) -> Result<Pruned, StoreError>;

    /// Removes the rows of jobs that are over since a time in the window, and are no dead letters: `at_most` so many.
    async fn remove(&self, which: &Removable, window: Range<Micros>, at_most: u32) -> Result<Pruned, StoreError>;
}

/// What came of a step of the pruner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pruned {
    /// How many rows it found: if as many as it might, there may be more in its window.
    pub found: u64,
    /// How many of those it stripped or removed, and not another at the same time.
    pub touched: u64,
}

impl Pruned {
    /// Nobody else was at what was found.
    pub fn all_of(found: u64) -> Self {
        Self { found, touched: found }
    }
}

/// Which rows go together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removable {
    /// Those with a key, or those without.
    pub keyed: bool,
    /// Of which kinds.
    pub of: Kinds,
}

/// Some kinds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kinds {
    /// These.
    Only(Vec<Kind>),
    /// All but these, known or not.
    AllBut(Vec<Kind>),
}

impl Kinds {
    /// The kinds in the list, and whether they are those that are meant and not those that are left out.
    pub fn named(&self) -> (&[Kind], bool) {
        match self {
            Self::Only(kinds) => (kinds, true),
            Self::AllBut(kinds) => (kinds, false),
        }
    }
}

/// What is kept of a job that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Keepsake {
    /// Its body.
    Body,
    /// Its output.
    Output,
}

/// What the installation as a whole asks.
#[async_trait]
pub trait Installation: Send + Sync {
    /// Brings the schema up to what this build needs; answers the steps that it took.
    async fn migrate(&self) -> Result<Vec<String>, MigrateError>;

    /// Whether the schema is what this build needs.
    async fn check_schema(&self) -> Result<(), MigrateError>;

    /// Writes a value unless the name has one already, and answers the one that stands.
    async fn settle_value(&self, name: &str, value: &str) -> Result<String, StoreError>;

    /// Writes a value in place of another. False if that is not the one that stands.
    async fn replace_value(&self, name: &str, from: &str, to: &str) -> Result<bool, StoreError>;

    /// The value that stands under a name.
    async fn value(&self, name: &str) -> Result<Option<String>, StoreError>;

    /// The store's own time.
    async fn now(&self) -> Result<Micros, StoreError>;

    /// Whether the store answers.
    async fn ping(&self) -> Result<(), StoreError>;
}

/// A store: all of its roles, and lanes to record on.
pub trait Store: Jobs + Cancel + Due + Prune + Fleet + Keys + Installation + std::fmt::Debug {
    /// A way to record that shares nothing with others.
    fn lane(&self) -> Box<dyn Record>;
}

/// What the fence must know of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Which job.
    pub id: Uuid,
    /// Who it belongs to.
    pub tenant: Tenant,
    /// Where it stands.
    pub state: State,
    /// Its present run.
    pub run: u32,
    /// The digest that its idempotency key promises.
    pub digest: Option<[u8; 32]>,
}

/// Jobs taken for a lease.
#[derive(Debug, Clone, Default)]
pub struct Claim {
    /// Proves the lease.
    pub token: Uuid,
    /// What was taken.
    pub jobs: Vec<Claimed>,
}

/// One job that was taken.
#[derive(Debug, Clone)]
pub struct Claimed {
    /// Everything but its body.
    pub envelope: Envelope,
    /// Encoded.
    pub body: Vec<u8>,
    /// How long it has been due.
    pub late: Duration,
}

/// Everything that is recorded of a job.
#[derive(Debug, Clone)]
pub struct JobRecord {
    /// Its identity, and its present run and count of failures.
    pub envelope: Envelope,
    /// Where it stands.
    pub state: State,
    /// When it is due.
    pub due_at: Option<Micros>,
    /// When it became terminal.
    pub finished_at: Option<Micros>,
    /// The job that asked for it.
    pub parent: Option<Uuid>,
    /// Its body, where it is kept.
    pub body: Option<Vec<u8>>,
    /// Its output, where it is kept.
    pub output: Option<Vec<u8>>,
    /// Why it is not simply done: a stable code.
    pub reason: Option<String>,
    /// The same, for people.
    pub error: Option<String>,
    /// How often it was published again under its key with another body.
    pub conflicts: u32,
    /// Its failed attempts, oldest first.
    pub attempts: Vec<AttemptRecord>,
}

/// One failed attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptRecord {
    /// The run that failed.
    pub run: u32,
    /// Its number, from 1; begins again at a replay.
    pub attempt: u16,
    /// A stable code.
    pub code: String,
    /// For people.
    pub error: String,
    /// When.
    pub failed_at: Micros,
}

/// Which jobs to list.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only of this tenant.
    pub tenant: Option<Tenant>,
    /// Only of this kind.
    pub kind: Option<Kind>,
    /// Only in this state. `None` is every state but `succeeded`, and of those that have succeeded only the last hour is
    /// looked at: they may be billions, and no index serves them.
    pub state: Option<State>,
    /// Only those older than this one: the (`created_at`, id) of the last one seen.
    pub before: Option<(Micros, Uuid)>,
    /// How many.
    pub limit: u32,
}

impl Filter {
    /// The states that it asks for.
    pub(crate) fn states(&self) -> Vec<State> {
        match self.state {
            Some(state) => vec![state],
            None => State::ALL.into_iter().filter(|state| *state != State::Succeeded).collect(),
        }
    }
}

/// What came of a change that needs a job to be in a certain state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transition {
    /// It was done.
    Done,
    /// There is no such job.
    Unknown,
    /// It stands elsewhere.
    Refused {
        /// Where.
        state: State,
        /// Its reason.
        reason: Option<String>,
    },
}

/// Why the schema is not what it must be.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// It is older than this build needs, or not there at all.
    #[error("the database's schema is at version {found}, this build needs {needed}: run `warren migrate`")]
    Older {
        /// What is there.
        found: i64,
        /// What must be there.
        needed: i64,
    },
    /// A newer build has changed it.
    #[error("the database's schema is at version {found}, this build knows only up to {needed}: run a newer warren")]
    Newer {
        /// What is there.
        found: i64,
        /// What this build knows.
        needed: i64,
    },
    /// A step that was taken is not the one that this build knows under its number.
    #[error("step {0} of the database's schema is not the one that this build knows")]
    Differs(i64),
    /// A step failed.
    #[error("the database's schema cannot be changed")]
    Failed(#[source] Box<dyn Error + Send + Sync>),
    /// It cannot be asked.
    #[error("the database's schema cannot be read")]
    Store(#[source] StoreError),
}
