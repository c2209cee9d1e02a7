//! The pruner: what is kept no longer goes.
//!
//! Goes through time in windows that grow and shrink with what it finds, so that every step is short and none looks at
//! what an earlier one has left. What is kept equally long of several kinds is one rule, so that rows are not looked at once for
//! each kind.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use warren_workers::policy;

use crate::{
    clock,
    config::Retention,
    job::{Kind, Micros, chain},
    runtime::registry::Registry,
    store::{Keepsake, Kinds, Pruned, Removable, SINCE, Store, StoreError},
    telemetry::PRUNED,
};

/// How often it looks when there is nothing to do.
const LOOK: Duration = Duration::from_secs(30);
/// A step touches at most this many times the rows that it should.
const AT_MOST: u32 = 3;
/// Less than this up to the present is not worth a statement.
const WORTH: Micros = 1_000_000;
/// The first window, and the one after a longer one that holds more than a step may touch. What waits in it may be dense, and
/// each further step that does not get through looks again over what those before it have removed; where it is not, windows are
/// long again after a few.
const FIRST: Micros = 1_000_000;
/// In which a fast database records about as many rows as a step should touch.
const SHORTEST: Micros = 50_000;
const LONGEST: Micros = 3600 * 1_000_000;
/// Clocks differ: what is over may have been so a little before the installation began.
const DAY: Micros = 24 * 3600 * 1_000_000;
/// How long a step should take at most, whatever it has touched: a statement has ten seconds.
const LONG: Duration = Duration::from_secs(2);
/// How far a rule gets before that is written down.
const WRITTEN_EVERY: Micros = 300 * 1_000_000;

/// What goes, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Rule {
    Strip(Keepsake, Kinds),
    Remove(Removable),
}

impl Rule {
    /// Under which it is written down how far it has come. The kinds are not in it: they may be many.
    fn name(&self, age: Duration) -> String {
        let what = match self {
            Self::Strip(Keepsake::Body, _) => "strip.body",
            Self::Strip(Keepsake::Output, _) => "strip.output",
            Self::Remove(Removable { keyed: true, .. }) => "remove.keyed",
            Self::Remove(Removable { keyed: false, .. }) => "remove.unkeyed",
        };
        match self.kinds() {
            Kinds::AllBut(_) => format!("pruner.{what}"),
            Kinds::Only(_) => format!("pruner.{what}.{}ms", age.as_millis()),
        }
    }

    fn kinds(&self) -> &Kinds {
        match self {
            Self::Strip(_, of) | Self::Remove(Removable { of, .. }) => of,
        }
    }

    /// How far it has come, as it is written down: with the kinds that it is for, or that it leaves out.
    fn progress(&self, done_until: Micros) -> String {
        let (kinds, only) = self.kinds().named();
        let names: Vec<_> = kinds.iter().map(Kind::as_str).collect();
        match (only, names.join(" ")) {
            (true, names) => format!("{done_until} of {names}"),
            (false, names) if !names.is_empty() => format!("{done_until} but {names}"),
            (false, _) => done_until.to_string(),
        }
    }

    /// Reads what [`Rule::progress`] wrote. `None` if it was for other kinds.
    fn done_until(&self, written: &str) -> Option<Micros> {
        let done = written.split(' ').next()?.parse().ok()?;
        (self.progress(done) == written).then_some(done)
    }
}

/// One rule's way through time.
#[derive(Debug)]
struct Course {
    rule: Rule,
    age: Duration,
    /// Everything that was over before this is done with. `None` until it was read.
    done_until: Option<Micros>,
    /// What is written down of that.
    written: String,
    window: Micros,
    /// Up to here most may have been removed by a step that found as many as it might: that little is found says nothing.
    partly_until: Micros,
}

/// Removes what is kept no longer.
pub struct Pruner {
    store: Arc<dyn Store>,
    courses: Vec<Course>,
}

/// How long a row of a kind is kept: as a fence, and as long as anything of it is.
fn row_age(fence: Duration, kept: policy::Retention) -> Duration {
    fence.max(kept.body).max(kept.output)
}

/// How long any row of a job without a key is kept at most.
pub fn longest_unkeyed(registry: &Registry, retention: Retention) -> Duration {
    let ages = registry.iter().map(|(_, registered)| row_age(retention.unkeyed, registered.policy.retention));
    ages.max().unwrap_or(retention.unkeyed)
}

fn rules(registry: &Registry, retention: Retention) -> Vec<(Rule, Duration)> {
    let mut rules = Vec::new();
    for (keyed, fence) in [(false, retention.unkeyed), (true, retention.keyed)] {
        let longer = by_age(registry, |kept| Some(row_age(fence, kept)).filter(|age| *age > fence));
        let mut all: Vec<_> = longer.values().flatten().cloned().collect();
        all.sort();
        let only = longer.into_iter().map(|(age, kinds)| (Kinds::Only(kinds), age));
        let each = only.chain([(Kinds::AllBut(all), fence)]);
        rules.extend(each.map(|(of, age)| (Rule::Remove(Removable { keyed, of }), age)));
    }
    for what in [Keepsake::Body, Keepsake::Output] {
        let shorter = by_age(registry, |kept| {
            let age = match what {
                Keepsake::Body => kept.body,
                Keepsake::Output => kept.output,
            };
            // Zero: it is not recorded at all. As long as the row: it goes with it.
            Some(age).filter(|age| !age.is_zero() && *age < row_age(retention.keyed, kept))
        });
        // Of kinds that this process does not know, nothing: they may be kept longer.
        rules.extend(shorter.into_iter().map(|(age, kinds)| (Rule::Strip(what, Kinds::Only(kinds)), age)));
    }
    rules
}

/// The kinds that have an age, together with all that have the same.
fn by_age(registry: &Registry, age: impl Fn(policy::Retention) -> Option<Duration>) -> BTreeMap<Duration, Vec<Kind>> {
    let mut ages = BTreeMap::<_, Vec<_>>::new();
    for (kind, registered) in registry.iter() {
        if let Some(age) = age(registered.policy.retention) {
            ages.entry(age).or_default().push(kind.clone());
        }
    }
    ages
}

impl Pruner {
    /// A pruner by these rules.
    pub fn new(store: Arc<dyn Store>, registry: &Registry, retention: Retention) -> Self {
        let rules = rules(registry, retention).into_iter();
        Self { store, courses: rules.map(|(rule, age)| Course::new(rule, age)).collect() }
    }

    /// Works until it is told to stop.
    pub async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let done = match self.catch_up(&stop).await {
                Ok(()) => self.store.forget().await,
                Err(error) => Err(error),
            };
            if let Err(error) = done {
                warn!(error = chain(&error), "the pruner cannot reach the database");
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// One rule after the other: one that fails keeps no other from its turn. The error is that the database is away.
    async fn catch_up(&mut self, stop: &CancellationToken) -> Result<(), StoreError> {
        for course in &mut self.courses {
            if stop.is_cancelled() {
                break;
            }
            match course.catch_up(self.store.as_ref(), stop).await {
                Ok(()) => {}
                Err(away @ StoreError::NotReached(_)) => return Err(away),
                Err(error) => {
                    let rule = course.rule.name(course.age);
                    warn!(rule, error = chain(&error), "a rule of the pruner cannot go on");
                }
            }
        }
        Ok(())
    }
}

impl Course {
    fn new(rule: Rule, age: Duration) -> Self {
        Self { rule, age, done_until: None, written: String::new(), window: FIRST, partly_until: Micros::MIN }
    }

    async fn catch_up(&mut self, store: &dyn Store, stop: &CancellationToken) -> Result<(), StoreError> {
        let wanted = store.rows_a_step();
        let at_most = wanted * AT_MOST;
        self.begin(store).await?;
        while !stop.is_cancelled() {
            let Some(window) = self.next_window(clock::now()) else { break };
            let began = Instant::now();
            let step = match &self.rule {
                Rule::Strip(what, of) => store.strip(*what, of, window.clone(), at_most).await,
                Rule::Remove(which) => store.remove(which, window.clone(), at_most).await,
            };
            let Pruned { found, touched } = step.inspect_err(|error| self.failed(error))?;
            self.advance(&window, found, wanted, began.elapsed());
            self.write_down(store).await?;
            if touched > 0 {
                debug!(rule = ?self.rule, touched, "pruned");
                metrics::counter!(PRUNED).increment(touched);
            }
        }
        Ok(())
    }

    /// Goes on where the pruner before it was, or begins where the installation began; so too if that one was for other
    /// kinds: it has passed by the rows of these.
    async fn begin(&mut self, store: &dyn Store) -> Result<(), StoreError> {
        if self.done_until.is_none() {
            let now = clock::now();
            let since = store.settle_value(SINCE, &now.to_string()).await?;
            let start = since.parse().unwrap_or(now) - DAY;
            let (name, beginning) = (self.rule.name(self.age), self.rule.progress(start));
            self.written = store.settle_value(&name, &beginning).await?;
            let done = self.rule.done_until(&self.written);
            if done.is_none() && store.replace_value(&name, &self.written, &beginning).await? {
                self.written = beginning;
            }
            self.done_until = Some(done.unwrap_or(start));
        }
        Ok(())
    }

    /// Another keeper may have come further; then that stands.
    async fn write_down(&mut self, store: &dyn Store) -> Result<(), StoreError> {
        let done = self.done_until.unwrap_or_default();
        if done - self.rule.done_until(&self.written).unwrap_or(Micros::MIN / 2) >= WRITTEN_EVERY {
            let (name, text) = (self.rule.name(self.age), self.rule.progress(done));
            self.written = match store.replace_value(&name, &self.written, &text).await? {
                true => text,
                false => store.settle_value(&name, &text).await?,
            };
        }
        Ok(())
    }

    fn next_window(&self, now: Micros) -> Option<Range<Micros>> {
        let done_until = self.done_until?;
        let age = Micros::try_from(self.age.as_micros()).unwrap_or(Micros::MAX);
        let end = now.saturating_sub(age);
        (done_until + WORTH <= end).then(|| done_until..end.min(done_until + self.window))
    }

    fn advance(&mut self, window: &Range<Micros>, found: u64, wanted: u32, took: Duration) {
        let (wanted, at_most) = (u64::from(wanted), u64::from(wanted * AT_MOST));
        if found >= at_most {
            // There is more in it, and nobody knows how much.
            if self.window > FIRST {
                self.window = FIRST;
            } else {
                self.partly_until = window.end;
                self.shorten();
            }
            return;
        }
        self.done_until = Some(window.end);
        if found > 2 * wanted || took > LONG {
            self.window = (self.window / 2).max(SHORTEST);
        } else if found < wanted / 2 && took < LONG / 2 && window.start >= self.partly_until {
            self.window = (self.window * 2).min(LONGEST);
        }
    }

    /// The window was much too long.
    fn shorten(&mut self) {
        self.window = (self.window / 4).max(SHORTEST);
    }

    /// A statement failed. It may have been too much to look through in the time that one has.
    fn failed(&mut self, error: &StoreError) {
        if !matches!(error, StoreError::NotReached(_)) {
            self.shorten();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_follow_each_other_up_to_the_age_and_adapt_to_what_they_hold() {
        let second = 1_000_000;
        let rule = Rule::Remove(Removable { keyed: false, of: Kinds::AllBut(Vec::new()) });
        let mut course = Course::new(rule, Duration::from_secs(100));
        (course.done_until, course.window) = (Some(0), 60 * second);
        let now = 300 * second;
        assert_eq!(course.next_window(now), Some(0..60 * second));
        course.advance(&(0..60 * second), 3000, 1000, Duration::ZERO);
        assert_eq!(course.next_window(now), Some(0..second), "there may be more in it, who knows how much");
        course.advance(&(0..second), 3000, 1000, Duration::ZERO);
        assert_eq!(course.next_window(now), Some(0..250_000), "so too, and it is a quarter as long");
        course.advance(&(0..250_000), 0, 1000, Duration::ZERO);
        assert_eq!(course.next_window(now), Some(250_000..500_000), "as long: these went with the first");
        course.advance(&(second..1_250_000), 0, 1000, Duration::ZERO);
        assert_eq!(course.next_window(now), Some(1_250_000..1_750_000), "twice as long after too little");
        course.advance(&(1_250_000..1_750_000), 2001, 1000, Duration::ZERO);
        assert_eq!(course.next_window(now), Some(1_750_000..2 * second), "half as long after too much");
        course.window = 30 * second;
        course.advance(&(45 * second..190 * second), 1000, 1000, Duration::ZERO);
        assert_eq!(course.next_window(now), Some(190 * second..200 * second), "not beyond what is old enough");
        course.advance(&(190 * second..200 * second), 1000, 1000, Duration::ZERO);
        assert_eq!(course.next_window(now), None);
        course.done_until = Some(0);
        course.window = 60 * second;
        course.advance(&(0..60 * second), 1, 1000, LONG / 2);
        assert_eq!(course.next_window(now), Some(60 * second..120 * second), "as long: it took its time");
        course.advance(&(60 * second..120 * second), 1, 1000, LONG * 2);
        assert_eq!(course.next_window(now), Some(120 * second..150 * second), "half as long: it took too much time");
    }

    #[test]
    fn a_rule_begins_anew_when_it_is_for_other_kinds() {
        let kinds = |names: &[&str]| names.iter().map(|name| Kind::new(name).expect("a kind")).collect::<Vec<_>>();
        let rule = |names: &[&str]| Rule::Remove(Removable { keyed: false, of: Kinds::AllBut(kinds(names)) });
        let written = rule(&["a.b", "c.d"]).progress(7);
        assert_eq!(rule(&["a.b", "c.d"]).done_until(&written), Some(7));
        assert_eq!(rule(&["a.b"]).done_until(&written), None, "it has passed by the rows of c.d");
        assert_eq!(rule(&[]).done_until(&written), None);
        assert_eq!(rule(&[]).done_until(&rule(&[]).progress(7)), Some(7));
        let only = |names: &[&str]| Rule::Strip(Keepsake::Output, Kinds::Only(kinds(names)));
        let written = only(&["a.b", "c.d"]).progress(7);
        assert_eq!(only(&["a.b", "c.d"]).done_until(&written), Some(7));
        assert_eq!(only(&["a.b", "c.d", "e.f"]).done_until(&written), None, "it has passed by the rows of e.f");
    }

    #[test]
    fn a_row_lives_as_long_as_anything_that_is_kept_of_it() {
        let mut registry = Registry::default().register(warren_workers::probe::Probe).expect("a good policy");
        let (day, week, month) = (Duration::from_hours(24), Duration::from_hours(168), Duration::from_hours(720));
        let retention = Retention { unkeyed: day, keyed: month };
        registry.change_policy("warren.probe", |policy| policy.retention.output = week).expect("a good policy");
        let kind = registry.kinds().remove(0);
        let remove = |keyed, of| Rule::Remove(Removable { keyed, of });
        assert_eq!(
            rules(&registry, retention),
            [
                (remove(false, Kinds::Only(vec![kind.clone()])), week),
                (remove(false, Kinds::AllBut(vec![kind.clone()])), day),
                (remove(true, Kinds::AllBut(Vec::new())), month),
                (Rule::Strip(Keepsake::Output, Kinds::Only(vec![kind])), week),
            ]
        );
        assert_eq!(longest_unkeyed(&registry, retention), week);
    }

    #[test]
    fn what_is_kept_equally_long_of_many_kinds_is_looked_for_once() {
        let mut registry = Registry::default();
        for name in ["k.a", "k.b", "k.c", "k.d", "k.e", "k.f"] {
            registry = registry.register_as(name, warren_workers::probe::Probe).expect("a good policy");
        }
        let (day, week, month) = (Duration::from_hours(24), Duration::from_hours(168), Duration::from_hours(720));
        for (name, output) in [("k.b", week), ("k.c", Duration::ZERO), ("k.d", week), ("k.e", month)] {
            registry.change_policy(name, |policy| policy.retention.output = output).expect("a good policy");
        }
        let kinds = |names: &[&str]| names.iter().map(|name| Kind::new(name).expect("a kind")).collect::<Vec<_>>();
        let strips = rules(&registry, Retention { unkeyed: day, keyed: month });
        let strips: Vec<_> = strips.into_iter().filter(|(rule, _)| matches!(rule, Rule::Strip(..))).collect();
        assert_eq!(
            strips,
            [
                (Rule::Strip(Keepsake::Output, Kinds::Only(kinds(&["k.a", "k.f"]))), day),
                (Rule::Strip(Keepsake::Output, Kinds::Only(kinds(&["k.b", "k.d"]))), week),
            ],
            "of one nothing is recorded, and of another the row goes with it"
        );
        let names: Vec<_> = strips.iter().map(|(rule, age)| rule.name(*age)).collect();
        assert_eq!(names, ["pruner.strip.output.86400000ms", "pruner.strip.output.604800000ms"]);
    }
}
