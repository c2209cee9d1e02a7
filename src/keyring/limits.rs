//! How much one key may ask of this process, and how that is told in headers.
//!
//! Each process counts for itself and forgets at its end: a limit shared by all would put the database on the hot path. The
//! headers are those of the IETF's draft on rate limit fields, 11th version: `RateLimit-Policy: "default";q=100;w=1` and
//! `RateLimit: "default";r=42;t=1`.

use std::{
    fmt::Write as _,
    num::NonZeroU32,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use governor::{
    Quota, RateLimiter,
    clock::{Clock as _, DefaultClock},
    middleware::StateInformationMiddleware,
    state::{InMemoryState, NotKeyed},
};

use crate::keys::{Burst, Grants};

/// The limits of one key.
#[derive(Debug)]
pub struct Limits {
    rules: Vec<Rule>,
}

/// Why something was not let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    limiter: RateLimiter<NotKeyed, InMemoryState, DefaultClock, StateInformationMiddleware>,
    /// What was left when it was last asked.
    left: AtomicU32,
}

impl Rule {
    fn new(name: &'static str, limit: Burst) -> Option<Self> {
        let quota = Quota::with_period(limit.rate.interval())?.allow_burst(limit.burst);
        let limiter = RateLimiter::direct(quota).with_middleware();
        Some(Self { name, limit, limiter, left: limit.burst.get().into() })
    }

    fn take(&self, count: NonZeroU32) -> Result<(), Denied> {
        match self.limiter.check_n(count) {
            Ok(Ok(after)) => {
                self.left.store(after.remaining_burst_capacity(), Relaxed);
                Ok(())
            }
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
        Self { rules: rules.into_iter().filter_map(|(name, limit)| Rule::new(name, limit?)).collect() }
    }

    /// Takes so many, or none of them.
    pub fn take(&self, count: u32) -> Result<(), Denied> {
        let Some(count) = NonZeroU32::new(count) else { return Ok(()) };
        // The rate first: what it refuses, as it often does, costs nothing of the quota.
        self.rules.iter().try_for_each(|rule| rule.take(count))
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
    fn a_key_without_limits_has_none() {
        let limits = limits(None, None);
        assert_eq!(limits.take(u32::MAX), Ok(()));
        assert_eq!(limits.headers(), None);
    }
}
