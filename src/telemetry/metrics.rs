//! The names of everything that is counted, and the handles that hot paths hold.
//!
//! A name is a promise to dashboards and alerts, so it stands here once, with its sentence. Labels are `kind`,
//! `outcome`, `state`, `reason`, `listener`, `role` and `source`: never a job's id, a tenant or an error's text.

use std::sync::Arc;

use metrics::{Counter, Gauge, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use super::Timer;
use crate::job::Kind;

/// Jobs that the broker confirmed, by kind.
pub const PUBLISHED: &str = "warren_jobs_published_total";
/// Runs that ended, by kind and outcome.
pub const FINISHED: &str = "warren_jobs_finished_total";
/// Publishes that were not confirmed, by reason.
pub const PUBLISH_ERRORS: &str = "warren_publish_errors_total";
/// Requests that were let in by no key, by reason.
pub const AUTH_REFUSED: &str = "warren_auth_refused_total";
/// Completions that lost the fence: their job had moved on.
pub const FENCED: &str = "warren_fenced_total";
/// Requests that repeated a job under its key.
pub const IDEMPOTENT_HITS: &str = "warren_idempotent_hits_total";
/// Webhooks that came in, by source and outcome.
pub const HOOKS: &str = "warren_hooks_received_total";
/// Events of SDKs that were refused in an answer which served the others, by reason.
pub const EVENTS_REFUSED: &str = "warren_events_refused_total";
/// Events of SDKs that were in their request before, and lost nothing by being refused.
pub const EVENTS_REPEATED: &str = "warren_events_repeated_total";
/// From a job's acceptance to its first start.
pub const QUEUE_WAIT: &str = "warren_queue_wait_seconds";
/// From the start of an attempt to its end.
pub const EXECUTION: &str = "warren_execution_seconds";
/// From a publish to its confirm, or to the last confirm of those that were published together.
pub const PUBLISH_CONFIRM: &str = "warren_publish_confirm_seconds";
/// How long it takes to claim jobs that are due.
pub const CLAIM: &str = "warren_claim_seconds";
/// From a job's due time to its publish.
pub const SCHEDULE_LAG: &str = "warren_schedule_lag_seconds";
/// Jobs that wait in the broker, by kind.
pub const QUEUE_DEPTH: &str = "warren_queue_depth";
/// Dead letters, up to a bound beyond which counting costs too much.
pub const DEAD_LETTERS: &str = "warren_dead_letters";
/// Jobs that run in this process, by kind.
pub const INFLIGHT: &str = "warren_inflight";
/// How many may run in this process, by kind.
pub const CONCURRENCY_LIMIT: &str = "warren_concurrency_limit";
/// 1 while there is a connection to the broker.
pub const BROKER_CONNECTED: &str = "warren_broker_connected";
/// 1 while the broker takes no publishes.
pub const BROKER_BLOCKED: &str = "warren_broker_blocked";
/// Threads that a job had not given back when its time was up, by kind.
pub const LOST_THREADS: &str = "warren_lost_threads_total";
/// Messages that the broker could not deliver, and that were kept.
pub const KEPT: &str = "warren_kept_total";
/// Rows that the pruner stripped or removed.
pub const PRUNED: &str = "warren_pruned_total";
/// Connections that are open, by listener.
pub const CONNECTIONS: &str = "warren_connections";
/// Connections and requests that were turned away because there were too many, by reason.
pub const SHED: &str = "warren_shed_total";
/// 1, with the version as its label.
pub const BUILD_INFO: &str = "warren_build_info";

/// Buckets of every histogram, in seconds: those of OpenTelemetry, and beyond them the lives of jobs.
pub const BUCKETS: [f64; 17] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 30.0, 60.0, 300.0];

/// Says once what each name means.
pub(super) fn describe() {
    describe_counter!(PUBLISHED, "Jobs that the broker confirmed");
    describe_counter!(FINISHED, "Runs that ended, by how");
    describe_counter!(PUBLISH_ERRORS, "Publishes that were not confirmed");
    describe_counter!(AUTH_REFUSED, "Requests without a key that would let them in");
    describe_counter!(FENCED, "Completions whose job had moved on, so that nothing was recorded");
    describe_counter!(IDEMPOTENT_HITS, "Requests that repeated a job under its key");
    describe_counter!(HOOKS, "Webhooks that came in, by source and what became of them");
    describe_counter!(EVENTS_REFUSED, "Events of SDKs that were refused, by why");
    describe_counter!(EVENTS_REPEATED, "Events of SDKs that a request held twice");
    describe_histogram!(QUEUE_WAIT, Unit::Seconds, "From a job's acceptance to its first start");
    describe_histogram!(EXECUTION, Unit::Seconds, "From the start of an attempt to its end");
    describe_histogram!(
        PUBLISH_CONFIRM,
        Unit::Seconds,
        "From a publish to its confirm, or to the last of those published together"
    );
    describe_histogram!(CLAIM, Unit::Seconds, "How long it takes to claim jobs that are due");
    describe_histogram!(SCHEDULE_LAG, Unit::Seconds, "From a job's due time to its publish");
    describe_gauge!(QUEUE_DEPTH, "Jobs that wait in the broker");
    describe_gauge!(DEAD_LETTERS, "Dead letters, counted up to 10000");
    describe_gauge!(INFLIGHT, "Jobs that run in this process");
    describe_gauge!(CONCURRENCY_LIMIT, "How many jobs may run at once in this process");
    describe_gauge!(BROKER_CONNECTED, "1 while there is a connection to the broker");
    describe_gauge!(BROKER_BLOCKED, "1 while the broker takes no publishes");
    describe_counter!(LOST_THREADS, "Threads that a job had not given back when its time was up");
    describe_counter!(KEPT, "Messages that the broker could not deliver, and that were kept");
    describe_counter!(PRUNED, "Rows that the pruner stripped or removed");
    describe_gauge!(CONNECTIONS, "Connections that are open");
    describe_counter!(SHED, "Connections and requests that were turned away because there were too many");
    describe_gauge!(BUILD_INFO, "1, with the version as its label");
    gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
}

/// What is counted for every job of one kind: looked up once, because looking up costs more than counting.
#[derive(Debug, Clone)]
pub struct KindMetrics {
    /// Done.
    pub ok: Counter,
    /// Failed, to be tried again.
    pub retry: Counter,
    /// Given up.
    pub dead: Counter,
    /// Called off.
    pub cancelled: Counter,
    /// Put off without a failure.
    pub snooze: Counter,
    /// Attempts that took too long; they count under retry or dead too.
    pub timeout: Counter,
    /// Attempts that panicked; they count under retry or dead too.
    pub panic: Counter,
    /// See [`LOST_THREADS`].
    pub lost_thread: Counter,
    /// See [`QUEUE_WAIT`].
    pub queue_wait: Arc<Timer>,
    /// See [`EXECUTION`].
    pub execution: Arc<Timer>,
    /// See [`INFLIGHT`].
    pub inflight: Gauge,
}

impl KindMetrics {
    /// The handles of a kind.
    pub fn new(kind: &Kind) -> Self {
        let finished = |outcome| counter!(FINISHED, "kind" => kind.to_string(), "outcome" => outcome);
        Self {
            ok: finished("ok"),
            retry: finished("retry"),
            dead: finished("dead"),
            cancelled: finished("cancelled"),
            snooze: finished("snooze"),
            timeout: finished("timeout"),
            panic: finished("panic"),
            lost_thread: counter!(LOST_THREADS, "kind" => kind.to_string()),
            queue_wait: Arc::new(Timer::new(histogram!(QUEUE_WAIT, "kind" => kind.to_string()))),
            execution: Arc::new(Timer::new(histogram!(EXECUTION, "kind" => kind.to_string()))),
            inflight: gauge!(INFLIGHT, "kind" => kind.to_string()),
        }
    }
}
