//! The pruner: what is kept no longer goes.
//!
//! Goes through time in windows that grow and shrink with what it finds, so that every step is short and none looks at
//! what an earlier one has left.

use std::{ops::Range, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{
    clock,
    config::Retention,
    job::{Kind, Micros, chain},
    runtime::registry::Registry,
    store::{Keepsake, Prune, StoreError},
    telemetry::PRUNED,
};

/// How often it looks when there is nothing to do.
const LOOK: Duration = Duration::from_secs(30);
/// How many rows a step should touch.
const WANTED: u64 = 5000;
const SHORTEST: Micros = 1_000_000;
const LONGEST: Micros = 24 * 3600 * 1_000_000;

/// What goes, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Rule {
    Strip(Kind, Keepsake),
    Remove { keyed: bool },
}

/// One rule's way through time.
#[derive(Debug)]
struct Course {
    rule: Rule,
    age: Duration,
    /// Everything that was over before this is done with.
    done_until: Micros,
    window: Micros,
}

/// Removes what is kept no longer.
pub struct Pruner {
    store: Arc<dyn Prune>,
    courses: Vec<Course>,
}

impl Pruner {
    /// A pruner by these rules.
    pub fn new(store: Arc<dyn Prune>, registry: &Registry, retention: Retention) -> Self {
        let mut rules =
            vec![(Rule::Remove { keyed: false }, retention.unkeyed), (Rule::Remove { keyed: true }, retention.keyed)];
        for (kind, registered) in registry.iter() {
            let kept = registered.policy.retention;
            for (what, age) in [(Keepsake::Body, kept.body), (Keepsake::Output, kept.output)] {
                // Zero: it is not recorded at all. As long as the row: it goes with it.
                if !age.is_zero() && age < retention.keyed {
                    rules.push((Rule::Strip(kind.clone(), what), age));
                }
            }
        }
        let course = |(rule, age)| Course { rule, age, done_until: Micros::MIN, window: 60_000_000 };
        Self { store, courses: rules.into_iter().map(course).collect() }
    }

    /// Works until it is told to stop.
    pub async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            if let Err(error) = self.catch_up(&stop).await {
                warn!(error = chain(&error), "the pruner cannot reach the database");
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    async fn catch_up(&mut self, stop: &CancellationToken) -> Result<(), StoreError> {
        if self.courses.iter().any(|course| course.done_until == Micros::MIN) {
            let Some(oldest) = self.store.oldest_finished().await? else { return Ok(()) };
            for course in &mut self.courses {
                course.done_until = course.done_until.max(oldest);
            }
        }
        for course in &mut self.courses {
            while !stop.is_cancelled() {
                let Some(window) = course.next_window(clock::now()) else { break };
                let touched = match &course.rule {
                    Rule::Strip(kind, what) => self.store.strip(kind, *what, window.clone()).await?,
                    Rule::Remove { keyed } => self.store.remove(*keyed, window.clone()).await?,
                };
                course.advance(window, touched);
                if touched > 0 {
                    debug!(rule = ?course.rule, touched, "pruned");
                    metrics::counter!(PRUNED).increment(touched);
                }
            }
        }
        Ok(())
    }
}

impl Course {
    fn next_window(&self, now: Micros) -> Option<Range<Micros>> {
        let age = Micros::try_from(self.age.as_micros()).unwrap_or(Micros::MAX);
        let end = now.saturating_sub(age);
        // A window of less than a second is not worth a statement.
        (self.done_until + SHORTEST <= end).then(|| self.done_until..end.min(self.done_until + self.window))
    }

    fn advance(&mut self, window: Range<Micros>, touched: u64) {
        self.done_until = window.end;
        if touched > 2 * WANTED {
            self.window = (self.window / 2).max(SHORTEST);
        } else if touched < WANTED / 2 {
            self.window = (self.window * 2).min(LONGEST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_follow_each_other_up_to_the_age_and_adapt_to_what_they_hold() {
        let second = 1_000_000;
        let mut course = Course {
            rule: Rule::Remove { keyed: false },
            age: Duration::from_secs(100),
            done_until: 0,
            window: 60 * second,
        };
        let now = 300 * second;
        assert_eq!(course.next_window(now), Some(0..60 * second));
        course.advance(0..60 * second, 100_000);
        assert_eq!(course.next_window(now), Some(60 * second..90 * second), "half as long after too much");
        course.advance(60 * second..90 * second, 0);
        assert_eq!(course.next_window(now), Some(90 * second..150 * second), "twice as long after too little");
        course.advance(90 * second..150 * second, WANTED);
        assert_eq!(course.next_window(now), Some(150 * second..200 * second), "not beyond what is old enough");
        course.advance(150 * second..200 * second, WANTED);
        assert_eq!(course.next_window(now), None);
    }
}
