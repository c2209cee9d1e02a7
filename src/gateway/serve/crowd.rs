//! How many connections there are, over all and from each address.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use metrics::Gauge;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Handles that a process needs beside its connections: for its store, its broker, its logs and its children.
const SPARE_HANDLES: u64 = 256;

/// The connections of a listener.
pub(super) struct Crowd {
    at_most: usize,
    per_address: usize,
    here: Mutex<Here>,
    counted: Gauge,
}

#[derive(Debug, Default)]
struct Here {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

impl Crowd {
    pub(super) fn new(at_most: usize, per_address: usize, counted: Gauge) -> Self {
        Self { at_most, per_address, here: Mutex::default(), counted }
    }

    /// A place for a connection from this address, if there is one.
    pub(super) fn enter(self: &Arc<Self>, peer: IpAddr) -> Option<Place> {
        let address = neighbourhood(peer);
        let mut here = self.lock();
        if here.all >= self.at_most || here.by_address.get(&address).is_some_and(|from| *from >= self.per_address) {
            return None;
        }
        here.all += 1;
        self.counted.increment(1.0);
        *here.by_address.entry(address).or_default() += 1;
        Some(Place { crowd: self.clone(), address })
    }

    fn lock(&self) -> MutexGuard<'_, Here> {
        self.here.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place that a connection takes. Given back when it is dropped.
pub(super) struct Place {
    crowd: Arc<Crowd>,
    address: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut here = self.crowd.lock();
        here.all -= 1;
        self.crowd.counted.decrement(1.0);
        if let Some(from) = here.by_address.get_mut(&self.address) {
            *from -= 1;
            if *from == 0 {
                here.by_address.remove(&self.address);
            }
        }
    }
}

/// Whoever has one address of IPv6 has a network of 2^64 of them.
fn neighbourhood(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
    }
}

/// Lets this process have as many handles as it may, and answers for how many connections they do.
pub(super) fn raise_handles() -> usize {
    let limit = getrlimit(Resource::Nofile);
    // If it is not allowed, it stays as it is.
    _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    let handles = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(handles.saturating_sub(SPARE_HANDLES)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_over_all_and_per_address_and_given_back() {
        let crowd = Arc::new(Crowd::new(3, 2, Gauge::noop()));
        let enter = |address: &str| crowd.enter(address.parse().expect("an address"));
        let first = enter("192.0.2.1");
        let _second = enter("192.0.2.1");
        assert!(first.is_some() && enter("192.0.2.1").is_none(), "two an address");
        let _third = enter("2001:db8::1");
        assert!(enter("192.0.2.2").is_none(), "three in all");
        drop(first);
        let network = enter("2001:db8::ffff");
        assert!(network.is_some() && enter("192.0.2.2").is_none());
        drop(network);
        assert!(enter("192.0.2.1").is_some());
        assert_eq!(crowd.lock().all, 2);
    }
}
