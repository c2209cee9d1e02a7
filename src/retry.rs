//! What becomes of a failed attempt, and how long to wait. Pure.
//!
//! The only user of the `backoff` crate, which is unmaintained and whose own retry loops have traps (a spread beyond the
//! cap, an end after 15 minutes): it is asked for one number at a time, and that number is bounded here.

use std::time::Duration;

use backoff::{ExponentialBackoff, backoff::Backoff as _};
use warren_workers::{Backoff, Disposition, Policy};

/// What becomes of a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Another attempt, after this long.
    Again(Duration),
    /// The same attempt again, after this long.
    Later(Duration),
    /// No more.
    Dead,
}

/// The longest that a worker may put a job off in one go.
const LONGEST_SNOOZE: Duration = Duration::from_hours(168);

/// Decides by what the failure says of itself. `failed` counts this failure too.
pub fn decide(policy: &Policy, failed: u16, disposition: Disposition) -> Verdict {
    match disposition {
        Disposition::DeadLetter => Verdict::Dead,
        Disposition::Snooze(delay) => Verdict::Later(delay.min(LONGEST_SNOOZE)),
        _ if failed >= policy.attempts => Verdict::Dead,
        Disposition::Retry => Verdict::Again(delay(&policy.backoff, failed)),
        // Never sooner than the policy says: a pause of zero, or a date that is over by our clock, would burn all attempts.
        Disposition::RetryAfter(pause) => Verdict::Again(delay(&policy.backoff, failed).max(pause.min(LONGEST_SNOOZE))),
    }
}

/// How long to wait after the n-th failure, n from 1: `base * factor^(n-1)` up to `cap`, spread at random between a half
/// of that and the whole.
pub fn delay(backoff: &Backoff, failed: u16) -> Duration {
    let whole = interval(backoff, failed);
    let mut steps = ExponentialBackoff {
        current_interval: whole.mul_f64(0.75),
        initial_interval: backoff.base,
        // The crate spreads around its interval: a third of three quarters around three quarters is [1/2, 1].
        randomization_factor: 1.0 / 3.0,
        multiplier: backoff.factor,
        max_interval: backoff.cap,
        // Otherwise it ends after 15 minutes, without a word.
        max_elapsed_time: None,
        ..ExponentialBackoff::default()
    };
    steps.next_backoff().unwrap_or(whole).clamp(whole / 2, whole)
}

/// The wait without its spread.
fn interval(Backoff { base, factor, cap }: &Backoff, failed: u16) -> Duration {
    // In f64, for a Duration panics where this grows to infinity; NaN cannot be, since the policy was checked.
    let seconds = base.as_secs_f64() * factor.powi(i32::from(failed.saturating_sub(1)));
    Duration::try_from_secs_f64(seconds).map_or(*cap, |interval| interval.min(*cap))
}

/// Growing pauses between attempts to reach something: a broker, a database.
#[derive(Debug, Clone)]
pub struct Reconnect {
    failed: u16,
}

impl Reconnect {
    const BACKOFF: Backoff = Backoff { base: Duration::from_millis(100), factor: 2.0, cap: Duration::from_secs(5) };

    /// From the shortest pause.
    pub fn new() -> Self {
        Self { failed: 0 }
    }

    /// The next pause.
    pub fn pause(&mut self) -> Duration {
        self.failed = self.failed.saturating_add(1);
        delay(&Self::BACKOFF, self.failed)
    }

    /// It was reached.
    pub fn reset(&mut self) {
        self.failed = 0;
    }
}

impl Default for Reconnect {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff = Backoff { base: Duration::from_secs(2), factor: 3.0, cap: Duration::from_secs(100) };

    #[test]
    fn a_wait_grows_by_its_factor_up_to_its_cap() {
        // 2, 6, 18, 54, then 162 which the cap cuts.
        let expected = [2, 6, 18, 54, 100, 100].map(Duration::from_secs);
        let actual: Vec<_> = (1..=6).map(|failed| interval(&BACKOFF, failed)).collect();
        assert_eq!(actual, expected);
    }

    #[test]
    fn a_wait_is_spread_between_its_half_and_its_whole_and_never_passes_the_cap() {
        for failed in [1, 2, 5, 100, u16::MAX] {
            let whole = interval(&BACKOFF, failed);
            let waits: Vec<_> = (0..500).map(|_| delay(&BACKOFF, failed)).collect();
            assert!(waits.iter().all(|wait| (whole / 2..=whole).contains(wait)), "{failed}");
            let (least, most) = (waits.iter().min(), waits.iter().max());
            assert!(
                most.zip(least).is_some_and(|(most, least)| (*most).checked_sub(*least).unwrap() > whole / 4),
                "{failed}: no spread"
            );
        }
    }

    #[test]
    fn the_last_allowed_failure_is_the_end_and_a_snooze_never_is() {
        let policy = Policy { attempts: 3, backoff: BACKOFF, ..Policy::default() };
        assert!(matches!(decide(&policy, 2, Disposition::Retry), Verdict::Again(_)));
        assert_eq!(decide(&policy, 3, Disposition::Retry), Verdict::Dead);
        assert_eq!(decide(&policy, 1, Disposition::DeadLetter), Verdict::Dead);
        let second = Duration::from_secs(1);
        let minute = Duration::from_mins(1);
        assert_eq!(decide(&policy, 2, Disposition::RetryAfter(minute)), Verdict::Again(minute));
        let Verdict::Again(pause) = decide(&policy, 2, Disposition::RetryAfter(Duration::ZERO)) else {
            panic!("there is a third attempt");
        };
        assert!((Duration::from_secs(3)..=Duration::from_secs(6)).contains(&pause), "no sooner than the policy says");
        assert_eq!(decide(&policy, 30, Disposition::Snooze(second)), Verdict::Later(second));
    }
}
