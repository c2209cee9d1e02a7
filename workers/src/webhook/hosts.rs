//! So that one slow receiver never delays the others: a cap on the requests under way to one host.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// The requests under way, by host.
#[derive(Debug)]
pub(super) struct Hosts {
    cap: usize,
    hosts: Mutex<HashMap<String, Host>>,
}

#[derive(Debug)]
struct Host {
    running: usize,
    /// How long a request to this host takes, as a moving mean.
    mean: Duration,
    /// When the next request that was sent away may come back.
    next: Instant,
}

/// A place at one host, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    hosts: Arc<Hosts>,
    name: String,
    since: Instant,
}

/// The shortest and the longest time for which a request is sent away.
const SOONEST: Duration = Duration::from_millis(500);
const LATEST: Duration = Duration::from_mins(1);
/// What is remembered of hosts with nothing under way, at the most.
const IDLE_HOSTS: usize = 10_000;

impl Hosts {
    pub(super) fn new(cap: usize) -> Arc<Self> {
        Arc::new(Self { cap, hosts: Mutex::default() })
    }

    /// A place, or how long to stay away. Whoever is sent away is given a time of its own, as far apart as this host
    /// has places to give: five hundred that come back at once would be sent away at once again.
    pub(super) fn enter(self: &Arc<Self>, name: &str, now: Instant) -> Result<Place, Duration> {
        let mut hosts = self.lock();
        if !hosts.contains_key(name) && hosts.len() >= IDLE_HOSTS {
            hosts.retain(|_, host| host.running > 0 || host.next > now);
        }
        let host = hosts.entry(name.to_owned()).or_insert_with(|| Host {
            running: 0,
            mean: Duration::from_secs(1),
            next: now,
        });
        if host.running < self.cap {
            host.running += 1;
            return Ok(Place { hosts: self.clone(), name: name.to_owned(), since: now });
        }
        let every = host.mean / u32::try_from(self.cap).unwrap_or(u32::MAX);
        // Beyond the longest stay the line is not counted on: who comes late in it asks again.
        host.next = (host.next.max(now) + every).min(now + LATEST);
        Err(host.next.saturating_duration_since(now).clamp(SOONEST, LATEST))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Host>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let took = self.since.elapsed();
        if let Some(host) = self.hosts.lock().get_mut(&self.name) {
            host.running -= 1;
            host.mean = (host.mean * 7 + took) / 8;
        }
    }
}
