//! The webhooks that this gateway has taken lately.
//!
//! Only a shortcut, and one gateway's: a repeat that it does not know becomes the same jobs, which do not run again.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How many ids of one source are remembered.
const KEPT: usize = 100_000;

/// The ids of one source.
#[derive(Debug)]
pub(super) struct Seen {
    /// How long they are remembered.
    within: Duration,
    ids: Mutex<Ids>,
}

type Digest = [u8; 16];

#[derive(Debug, Default)]
struct Ids {
    known: HashSet<Digest>,
    order: VecDeque<(Instant, Digest)>,
}

impl Seen {
    /// A webhook from as far ahead as the tolerance allows can be sent again until it is as far behind.
    pub(super) fn new(tolerance: Duration) -> Self {
        Self { within: tolerance * 2, ids: Mutex::default() }
    }

    /// Whether this one was taken.
    pub(super) fn knows(&self, id: &str) -> bool {
        let mut ids = self.lock();
        self.forget(&mut ids);
        ids.known.contains(&digest(id))
    }

    /// This one was taken.
    pub(super) fn taken(&self, id: &str) {
        let (mut ids, digest) = (self.lock(), digest(id));
        if ids.known.insert(digest) {
            ids.order.push_back((Instant::now(), digest));
        }
        self.forget(&mut ids);
    }

    fn forget(&self, ids: &mut Ids) {
        while let Some((at, digest)) = ids.order.front().copied()
            && (at.elapsed() > self.within || ids.order.len() > KEPT)
        {
            ids.order.pop_front();
            ids.known.remove(&digest);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Ids> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An id may be long; this is not.
fn digest(id: &str) -> Digest {
    let mut digest = [0; 16];
    digest.copy_from_slice(&blake3::hash(id.as_bytes()).as_bytes()[..16]);
    digest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_known_for_twice_the_tolerance_and_no_longer() {
        let seen = Seen::new(Duration::from_millis(200));
        seen.taken("a");
        assert!(seen.knows("a"));
        assert!(!seen.knows("b"));
        let began = Instant::now();
        while seen.knows("a") {
            assert!(began.elapsed() < Duration::from_secs(10), "it is never forgotten");
            std::thread::yield_now();
        }
        assert!(began.elapsed() >= Duration::from_millis(350), "forgotten after {:?}", began.elapsed());
    }

    #[test]
    fn however_many_come_no_more_than_a_bound_is_held_and_the_oldest_goes_first() {
        let seen = Seen::new(Duration::from_hours(1));
        for number in 0..KEPT + 10 {
            seen.taken(&number.to_string());
        }
        assert_eq!(seen.lock().order.len(), KEPT);
        assert_eq!(seen.lock().known.len(), KEPT);
        assert!(!seen.knows("9") && seen.knows("10"));
    }
}
