//! How far a dispatcher has claimed what is due.
//!
//! Rows that were claimed and published leave dead entries at the left end of the index over due times, until a vacuum takes
//! them: by the hundred thousand in a storm of retries. Each claim would pass over all of them. So while there is more to
//! claim than one statement takes, the next begins where the last has ended. Every [`LOOK_BEHIND`] one begins at the very
//! left again, for what has come up there since: other kinds, leases that lapsed, instants of the past.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::time::Timestamptz;
use crate::job::Micros;

/// How often a claim begins at the very left.
const LOOK_BEHIND: Duration = Duration::from_millis(250);
/// How far before the end of the last claim the next begins, in due times: what was written at the same time is committed in
/// any order.
const OVERLAP: Micros = 100_000;

/// Where the next claim begins.
#[derive(Debug, Default)]
pub(super) struct Front(Mutex<Option<Seen>>);

#[derive(Debug)]
struct Seen {
    /// When a claim last began at the very left.
    looked: Instant,
    /// The kinds that had anything due, and up to which due time it was claimed.
    kinds: HashMap<String, Micros>,
}

/// What a claim took of one kind.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Taken {
    /// Whether it was all that it might take.
    pub(super) full: bool,
    /// The latest due time.
    pub(super) up_to: Micros,
}

impl Front {
    /// The kinds to claim of, and from which due time on; `None` for all, from the very left.
    pub(super) fn known(&self) -> Option<(Vec<String>, Vec<Timestamptz>)> {
        let seen = self.lock();
        let seen = seen.as_ref().filter(|seen| seen.looked.elapsed() < LOOK_BEHIND)?;
        Some(seen.kinds.iter().map(|(kind, up_to)| (kind.clone(), Timestamptz(up_to - OVERLAP))).unzip())
    }

    /// What a claim took, which began as `known` had said or, if it was not `narrow`, at the very left.
    pub(super) fn note(&self, narrow: bool, taken: HashMap<String, Taken>) {
        let mut seen = self.lock();
        if !taken.values().any(|taken| taken.full) {
            *seen = None;
            return;
        }
        let taken = taken.into_iter().map(|(kind, taken)| (kind, taken.up_to));
        match &mut *seen {
            Some(seen) if narrow => seen.kinds.extend(taken),
            // It was forgotten meanwhile, and this claim has not looked at what for.
            None if narrow => {}
            seen => *seen = Some(Seen { looked: Instant::now(), kinds: taken.collect() }),
        }
    }

    /// Something lies before it that is to be claimed at once.
    pub(super) fn forget(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Seen>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(full: bool, up_to: Micros) -> HashMap<String, Taken> {
        HashMap::from([("a".to_owned(), Taken { full, up_to })])
    }

    fn from(up_to: Micros) -> (Vec<String>, Vec<Timestamptz>) {
        (vec!["a".to_owned()], vec![Timestamptz(up_to - OVERLAP)])
    }

    #[test]
    fn it_moves_on_while_there_is_more_and_is_forgotten_when_there_is_not() {
        let front = Front::default();
        assert_eq!(front.known(), None, "at first from the very left");
        front.note(false, taken(true, 1_000_000));
        assert_eq!(front.known(), Some(from(1_000_000)));
        front.note(true, taken(true, 2_000_000));
        assert_eq!(front.known(), Some(from(2_000_000)));
        front.note(true, taken(false, 3_000_000));
        assert_eq!(front.known(), None, "that was all");
        front.note(false, taken(true, 1_000_000));
        front.forget();
        assert_eq!(front.known(), None);
        front.note(true, taken(true, 2_000_000));
        assert_eq!(front.known(), None, "a claim that had begun before has not looked there");
    }

    #[test]
    fn narrow_claims_do_not_put_off_the_next_look_at_the_very_left() {
        let front = Front::default();
        let long_ago = Instant::now().checked_sub(LOOK_BEHIND).expect("the machine runs for longer");
        *front.lock() = Some(Seen { looked: long_ago, kinds: HashMap::new() });
        front.note(true, taken(true, 1_000_000));
        assert_eq!(front.known(), None);
    }
}
