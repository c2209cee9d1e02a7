//! How jobs of one kind are run.

use std::time::Duration;

/// How jobs of one kind are run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Policy {
    /// How many run at once in one process.
    pub concurrency: usize,
    /// How long one attempt may take. At most ten minutes: a broker takes back what is held for thirty.
    pub timeout: Duration,
    /// How many attempts may fail before the job is a dead letter; the first one counts.
    pub attempts: u16,
    /// How long to wait between attempts.
    pub backoff: Backoff,
    /// Whether each job has a thread of its own, for work that computes for long between its await points. Others share a
    /// few threads, and one that computes delays them.
    pub blocking: bool,
    /// What is kept of a job that is over, and for how long.
    pub retention: Retention,
}

/// Exponential backoff: before attempt n + 1 it waits `base * factor^(n-1)`, never more than `cap`, spread at random
/// between a half of that and the whole.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backoff {
    /// Before the second attempt.
    pub base: Duration,
    /// How much longer each further wait is; at least 1.
    pub factor: f64,
    /// The longest wait.
    pub cap: Duration,
}

/// What is kept of a job that has succeeded. Dead letters are kept whole until someone decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// How long its body is kept; zero: it is not recorded at all.
    pub body: Duration,
    /// How long its output is kept.
    pub output: Duration,
}

/// The longest timeout.
pub const MAX_TIMEOUT: Duration = Duration::from_mins(10);
/// The longest backoff.
pub const MAX_BACKOFF: Duration = Duration::from_hours(168);

impl Default for Policy {
    /// 100 at once, a minute each, 20 attempts over about half a day, the output kept for a day.
    fn default() -> Self {
        Self {
            concurrency: 100,
            timeout: Duration::from_mins(1),
            attempts: 20,
            backoff: Backoff::default(),
            blocking: false,
            retention: Retention::default(),
        }
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self { base: Duration::from_secs(5), factor: 2.0, cap: Duration::from_hours(1) }
    }
}

impl Default for Retention {
    fn default() -> Self {
        Self { body: Duration::ZERO, output: Duration::from_hours(24) }
    }
}

impl Policy {
    /// Every reason for which such a policy cannot be run, as sentences.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut rule = |holds: bool, problem: String| {
            if !holds {
                problems.push(problem);
            }
        };
        rule(self.concurrency >= 1, "concurrency is 0: at least one job must be able to run".into());
        rule(self.concurrency <= 10_000, format!("concurrency is {}: at most 10000 in one process", self.concurrency));
        rule(!self.timeout.is_zero(), "timeout is zero: no job could finish".into());
        rule(
            self.timeout <= MAX_TIMEOUT,
            format!(
                "timeout is {:?}: at most {MAX_TIMEOUT:?}, because a broker takes back what is held for longer; split the job",
                self.timeout
            ),
        );
        rule(self.attempts >= 1, "attempts is 0: the first attempt counts as one".into());
        let Backoff { base, factor, cap } = self.backoff;
        rule(!base.is_zero(), "backoff.base is zero: failures would spin".into());
        rule(
            factor.is_finite() && factor >= 1.0,
            format!("backoff.factor is {factor}: a wait must not become shorter"),
        );
        rule(cap >= base, format!("backoff.cap ({cap:?}) is less than backoff.base ({base:?})"));
        rule(cap <= MAX_BACKOFF, format!("backoff.cap is {cap:?}: at most {MAX_BACKOFF:?}"));
        problems
    }
}
