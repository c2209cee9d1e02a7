//! How much one key may ask of this process, and how that is told in headers.
//!
//! Each process counts for itself and forgets at its end: a limit shared by all would put the database on the hot path. The
//! headers are those of the IETF's draft on rate limit fields, 11th version: `RateLimit-Policy: "default";q=100;w=1` and
//! `RateLimit: "default";r=42;t=1`.

use std::{
    fmt::Write as _,
    num::{NonZeroU32, NonZeroU64},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use governor::{
    Quota, RateLimiter,
    clock::{Clock as _, DefaultClock},
    middleware::StateInformationMiddleware,
    nanos::Nanos,
    state::{NotKeyed, StateStore},
};

use crate::keys::{Burst, Grants};

/// The limits of one key.
#[derive(Debug)]
pub struct Limits {
    rules: Vec<Rule>,
    /// Whoever takes has all rules to himself: what one of them refuses is given back to the others.
    turn: Mutex<()>,
}

/// Why something was not let through. Of two reasons the greater is the one that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Denied {
    /// It will be after this long.
    For(Duration),
    /// It never will: so many at most at once.
    AtMost(u32),
}

/// One limit.
#[derive(Debug)]
struct Rule {
    name: &'static str,
    limit: Burst,
    limiter: RateLimiter<NotKeyed, Standing, DefaultClock, StateInformationMiddleware>,
    standing: Standing,
    /// What was left when it was last asked.
    left: AtomicU32,
}

/// Where a rule stands: governor's own count, in nanoseconds; 0 before anything was taken. Unlike its own store this one can
/// be set back, and it must be used by one at a time.
#[derive(Debug, Clone, Default)]
struct Standing(Arc<AtomicU64>);

impl StateStore for Standing {
    type Key = NotKeyed;

    fn measure_and_replace<T, F, E>(&self, _: &NotKeyed, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let before = NonZeroU64::new(self.0.load(Relaxed)).map(|before| before.get().into());
        let (decision, after) = decide(before)?;
        self.0.store(after.into(), Relaxed);
        Ok(decision)
    }
}

impl Rule {
    fn new(name: &'static str, limit: Burst) -> Option<Self> {
        let quota = Quota::with_period(limit.rate.interval())?.allow_burst(limit.burst);
        let standing = Standing::default();
        let limiter = RateLimiter::new(quota, standing.clone(), DefaultClock::default());
        Some(Self { name, limit, limiter, standing, left: limit.burst.get().into() })
    }

    /// Takes so many, and answers how many are left then.
    fn take(&self, count: NonZeroU32) -> Result<u32, Denied> {
        match self.limiter.check_n(count) {
            Ok(Ok(after)) => Ok(after.remaining_burst_capacity()),
            Ok(Err(until)) => {
                self.left.store(self.left.load(Relaxed).min(count.get() - 1), Relaxed);
                Err(Denied::For(until.wait_time_from(DefaultClock::default().now())))
            }
            Err(capacity) => Err(Denied::AtMost(capacity.0)),
        }
    }

    /// How long it takes until so many have come back.
    fn refilled(&self, count: u32) -> u64 {
        let time = self.limit.rate.interval() * count;
        time.as_secs() + u64::from(time.subsec_nanos() > 0)
    }
}

impl Limits {
    /// As a key says.
    pub fn of(grants: &Grants) -> Self {
        // A quota may be used up at once; it comes back evenly.
        let quota = grants.quota.map(|rate| Burst { rate, burst: rate.count });
        let rules = [("default", grants.rate), ("quota", quota)];
        let rules = rules.into_iter().filter_map(|(name, limit)| Rule::new(name, limit?)).collect();
        Self { rules, turn: Mutex::default() }
    }

    /// How many it holds at once, where it is limited.
    pub fn most(&self) -> Option<u32> {
        self.rules.iter().map(|rule| rule.limit.burst.get()).min()
    }

    /// Takes so many, or none of them: what one limit refuses costs nothing of another.
    pub fn take(&self, count: u32) -> Result<(), Denied> {
        self.take_beside(count, 0)
    }

    /// The same for something of which a part was taken before: where it is refused, the whole of it fits after the pause
    /// that is told, and not only the rest.
    pub fn take_beside(&self, count: u32, before: u32) -> Result<(), Denied> {
        let Some(count) = NonZeroU32::new(count) else { return Ok(()) };
        if let Some(most) = self.most().filter(|most| count.get().saturating_add(before) > *most) {
            return Err(Denied::AtMost(most));
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let former: Vec<_> = self.rules.iter().map(|rule| rule.standing.0.load(Relaxed)).collect();
        // All are asked, whatever the first of them says: who waits is to wait for all of them at once.
        let taken: Vec<_> = self.rules.iter().map(|rule| rule.take(count)).collect();
        let denied = self.rules.iter().zip(&taken).filter_map(|(rule, taken)| match taken {
            Ok(_) => None,
            Err(Denied::For(pause)) => Some(Denied::For(*pause + rule.limit.rate.interval() * before)),
            Err(never) => Some(*never),
        });
        if let Some(denied) = denied.max() {
            self.rules.iter().zip(former).for_each(|(rule, former)| rule.standing.0.store(former, Relaxed));
            return Err(denied);
        }
        for (rule, left) in self.rules.iter().zip(taken.into_iter().flatten()) {
            rule.left.store(left, Relaxed);
        }
        Ok(())
    }

    /// The headers that tell of the limits and of what is left, if there are limits.
    pub fn headers(&self) -> Option<(String, String)> {
        if self.rules.is_empty() {
            return None;
        }
        let (mut policy, mut standing) = (String::new(), String::new());
        for (index, rule) in self.rules.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            let (all, left) = (rule.limit.burst.get(), rule.left.load(Relaxed));
            // Writing into a text cannot fail.
            _ = write!(policy, "{comma}\"{}\";q={all};w={}", rule.name, rule.refilled(all));
            _ = write!(standing, "{comma}\"{}\";r={left};t={}", rule.name, rule.refilled(all.saturating_sub(left)));
        }
        Some((policy, standing))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(rate: Option<(&str, u32)>, quota: Option<&str>) -> Limits {
        let rate = rate.map(|(rate, burst)| Burst::new(rate.parse().unwrap(), Some(burst)).unwrap());
        Limits::of(&Grants { rate, quota: quota.map(|quota| quota.parse().unwrap()), ..Grants::default() })
    }

    #[test]
    fn what_is_taken_is_told_and_more_than_is_left_takes_nothing() {
        // One an hour: nothing comes back while the test runs.
        let limits = limits(Some(("1/h", 10)), Some("1000/d"));
        let told = |limits: &Limits| limits.headers().unwrap();
        let policy = "\"default\";q=10;w=36000, \"quota\";q=1000;w=86400";
        assert_eq!(told(&limits), (policy.into(), "\"default\";r=10;t=0, \"quota\";r=1000;t=0".into()));
        assert_eq!(limits.take(4), Ok(()));
        assert_eq!(told(&limits).1, "\"default\";r=6;t=14400, \"quota\";r=996;t=346");
        let Err(Denied::For(wait)) = limits.take(7) else { panic!("there are only six") };
        assert!((3590..=3600).contains(&wait.as_secs()), "{wait:?} until a seventh has come back");
        assert_eq!(limits.take(6), Ok(()));
        assert_eq!(told(&limits).1, "\"default\";r=0;t=36000, \"quota\";r=990;t=864");
        assert!(matches!(limits.take(1), Err(Denied::For(_))));
        assert_eq!(limits.take(11), Err(Denied::AtMost(10)));
        assert_eq!(
            told(&limits).1,
            "\"default\";r=0;t=36000, \"quota\";r=990;t=864",
            "what was refused costs no quota"
        );
        assert_eq!(limits.take(0), Ok(()));
    }

    #[test]
    fn what_one_limit_refuses_costs_nothing_of_the_other() {
        let told = |limits: &Limits| limits.headers().unwrap().1;
        // The quota refuses, and the rate would allow it.
        let tight = limits(Some(("10/h", 10)), Some("3/d"));
        assert_eq!(tight.take(3), Ok(()));
        for _ in 0..5 {
            assert!(
                matches!(tight.take(2), Err(Denied::For(wait)) if wait > Duration::from_hours(8)),
                "two a day later"
            );
        }
        assert!(told(&tight).starts_with("\"default\";r=7;"), "{}", told(&tight));
        assert_eq!(tight.take(4), Err(Denied::AtMost(3)));
        assert!(told(&tight).starts_with("\"default\";r=7;"), "{}", told(&tight));
        // The rate refuses, and the quota would allow it.
        let slow = limits(Some(("1/h", 2)), Some("100/d"));
        assert_eq!(slow.take(2), Ok(()));
        for _ in 0..5 {
            assert!(matches!(slow.take(1), Err(Denied::For(_))));
        }
        assert!(told(&slow).contains("\"quota\";r=98;"), "{}", told(&slow));
        assert_eq!((tight.most(), slow.most()), (Some(3), Some(2)));
    }

    #[test]
    fn who_has_taken_a_part_is_told_when_the_whole_fits() {
        let limits = limits(Some(("1/h", 10)), None);
        assert_eq!(limits.take(8), Ok(()));
        assert_eq!(limits.take(1), Ok(()));
        // Of ten, nine more: eight of them in eight hours, and the one that was taken in another.
        let Err(Denied::For(rest)) = limits.take_beside(9, 0) else { panic!("there is one") };
        let Err(Denied::For(whole)) = limits.take_beside(9, 1) else { panic!("there is one") };
        assert_eq!((rest.as_secs().div_ceil(3600), whole.as_secs().div_ceil(3600)), (8, 9));
    }

    #[test]
    fn as_much_is_let_through_as_there_is_however_many_ask_at_once() {
        let limits = limits(Some(("1/h", 100)), Some("150/d"));
        let taken: usize = std::thread::scope(|scope| {
            let ask = || (0..100).filter(|_| limits.take(1).is_ok()).count();
            let asking: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
            asking.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(taken, 100);
    }

    #[test]
    fn a_key_without_limits_has_none() {
        let limits = limits(None, None);
        assert_eq!(limits.take(u32::MAX), Ok(()));
        assert_eq!((limits.headers(), limits.most()), (None, None));
    }
}
