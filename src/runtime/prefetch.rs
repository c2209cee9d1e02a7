//! How many deliveries of a kind may be out at a time. Pure.
//!
//! Too few starve a fast kind: each has to go to the broker and back. Too many wait here for a slow one, where nobody
//! else can have them, and their broker's clock runs. So the prefetch follows what a kind finishes.

use std::time::{Duration, Instant};

use warren_workers::Policy;

/// More than this on one line gains nothing, and lapin buffers without a bound of its own.
const MAX_PER_LINE: usize = 1000;
/// What a kind finishes in this time may wait for it: a few trips to the broker and back.
const AHEAD: Duration = Duration::from_millis(50);
/// All bodies of a kind that are out.
const MAX_KIND_BYTES: u64 = 64 << 20;
/// All bodies of all kinds of a process that are out.
const MAX_PROCESS_BYTES: u64 = 256 << 20;
/// A broker takes back what is held for half an hour, and counts from the delivery.
const HELD_AT_MOST: Duration = Duration::from_mins(15);
/// Before a prefetch grows again: as long as it takes to measure.
const GROWS_EVERY: Duration = Duration::from_millis(100);
/// Before a prefetch shrinks: a burst that is over may come again.
const SHRINKS_EVERY: Duration = Duration::from_mins(1);

/// The prefetch of one kind.
#[derive(Debug)]
pub(super) struct Prefetch {
    concurrency: usize,
    /// Most that can be worked off before the broker takes it back.
    held: usize,
    lines: usize,
    current: usize,
    changed: Instant,
    measured: Instant,
    ended: u64,
    bytes: u64,
    /// The most that was finished in [`AHEAD`], since the last change.
    fastest: usize,
    mean_body: u64,
}

impl Prefetch {
    pub(super) fn new(policy: &Policy, lines: usize, now: Instant) -> Self {
        let rounds = (HELD_AT_MOST.as_secs_f64() / policy.timeout.as_secs_f64()).max(1.0);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let held = (policy.concurrency as f64 * rounds) as usize;
        let current = (policy.concurrency + 16).min(held).min(MAX_PER_LINE * lines);
        Self {
            concurrency: policy.concurrency,
            held,
            lines: lines.min(current),
            current,
            changed: now,
            measured: now,
            ended: 0,
            bytes: 0,
            fastest: 0,
            mean_body: 0,
        }
    }

    /// How many lines there are: no more than may be out, for every line has one out at least.
    pub(super) fn lines(&self) -> usize {
        self.lines
    }

    /// For each line; together no more than may be out.
    pub(super) fn per_line(&self) -> u16 {
        u16::try_from((self.current / self.lines).clamp(1, MAX_PER_LINE)).unwrap_or(u16::MAX)
    }

    /// The bytes that may be out, as far as bodies have been seen.
    pub(super) fn bytes(&self) -> u64 {
        self.current as u64 * self.mean_body
    }

    /// Takes in how many jobs have ended and how many bytes came in since the start, and answers whether the prefetch
    /// is another one now. `share` is what other kinds leave of the process's bytes, from 0 to 1.
    pub(super) fn measure(&mut self, ended: u64, bytes: u64, share: f64, now: Instant) -> bool {
        let window = now - self.measured;
        if window < GROWS_EVERY {
            return false;
        }
        let (finished, came) = (ended - self.ended, bytes - self.bytes);
        (self.measured, self.ended, self.bytes) = (now, ended, bytes);
        if let Some(mean) = came.checked_div(finished) {
            self.mean_body = if self.mean_body == 0 { mean } else { (self.mean_body * 3 + mean) / 4 };
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let ahead = (finished as f64 * AHEAD.as_secs_f64() / window.as_secs_f64()) as usize;
        self.fastest = self.fastest.max(ahead);
        let grown = self.target(ahead, share);
        let shrunk = self.target(self.fastest, share);
        let new = if grown * 2 >= self.current * 3 && now - self.changed >= GROWS_EVERY {
            grown
        } else if shrunk * 2 <= self.current && now - self.changed >= SHRINKS_EVERY {
            shrunk
        } else {
            return false;
        };
        (self.current, self.changed, self.fastest) = (new, now, 0);
        true
    }

    fn target(&self, ahead: usize, share: f64) -> usize {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let bytes = (MAX_KIND_BYTES as f64 * share) as u64;
        let by_bytes =
            bytes.checked_div(self.mean_body).map_or(usize::MAX, |jobs| usize::try_from(jobs).unwrap_or(usize::MAX));
        (self.concurrency + ahead).min(MAX_PER_LINE * self.lines).min(by_bytes).min(self.held).max(self.lines)
    }
}

/// What of its bytes each kind may have, from 0 to 1, when all kinds together would have this many.
pub(super) fn share(all_bytes: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    let share = MAX_PROCESS_BYTES as f64 / all_bytes.max(1) as f64;
    share.min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(concurrency: usize, timeout_s: u64) -> Policy {
        Policy { concurrency, timeout: Duration::from_secs(timeout_s), ..Policy::default() }
    }

    #[test]
    fn it_begins_a_little_above_the_concurrency() {
        let prefetch = Prefetch::new(&policy(100, 60), 2, Instant::now());
        assert_eq!(prefetch.per_line(), 58);
        assert_eq!(Prefetch::new(&policy(5, 600), 2, Instant::now()).per_line(), 3, "15 min / 10 min of 5 is 7");
        let alone = Prefetch::new(&policy(1, 600), 4, Instant::now());
        assert_eq!((alone.lines(), alone.per_line()), (1, 1), "one that takes ten minutes has no other behind it");
    }

    #[test]
    fn it_grows_with_what_a_kind_finishes_and_shrinks_only_after_a_minute() {
        let start = Instant::now();
        let mut prefetch = Prefetch::new(&policy(100, 60), 2, start);
        let at = |ms| start + Duration::from_millis(ms);
        assert!(!prefetch.measure(1_000, 0, 1.0, at(50)), "too soon to tell");
        assert!(prefetch.measure(5_000, 0, 1.0, at(250)), "20,000/s is 1,000 in 50 ms");
        assert_eq!(prefetch.per_line(), 550);
        assert!(!prefetch.measure(5_000, 0, 1.0, at(10_000)), "idle, but not for long");
        assert!(prefetch.measure(5_000, 0, 1.0, at(61_000)));
        assert_eq!(prefetch.per_line(), 50);
    }

    #[test]
    fn large_bodies_bound_it() {
        let start = Instant::now();
        let mut prefetch = Prefetch::new(&policy(100, 60), 2, start);
        // 64 MiB of bodies of 1 MiB.
        assert!(!prefetch.measure(5_000, 5_000 << 20, 1.0, start + Duration::from_millis(250)));
        assert!(prefetch.measure(10_000, 10_000 << 20, 0.5, start + Duration::from_secs(61)));
        assert_eq!(prefetch.per_line(), 16, "half of 64 on two lines");
    }
}
