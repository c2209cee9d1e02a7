//! The copies of jobs that this process holds.
//!
//! A broker may give a job out again while it still runs here: its connection was lost, or a client published it twice
//! under one key. Such a copy is attached to the one in work, and both are settled when that one is recorded.

use std::collections::{HashMap, hash_map::Entry};

use uuid::Uuid;

use crate::{broker::Receipt, job::Key};

/// Names one run of one job.
pub(super) type RunKey = (Uuid, u32);

/// A delivery, and the line of its kind that gave it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Copy {
    pub(super) line: usize,
    pub(super) receipt: Receipt,
}

/// The copies of one kind's jobs, from their delivery until they are settled.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    jobs: HashMap<RunKey, Held>,
}

#[derive(Debug)]
struct Held {
    first: Copy,
    /// Hardly ever any.
    more: Vec<Copy>,
    key: Key,
    /// A copy under the same key promised another body.
    conflict: bool,
}

/// What is to be settled of one job.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Released {
    pub(super) copies: Vec<Copy>,
    pub(super) conflict: bool,
}

impl InFlight {
    /// Takes a delivery in. False if it was attached to a copy that is in work.
    pub(super) fn enter(&mut self, key: RunKey, job_key: Key, copy: Copy) -> bool {
        match self.jobs.entry(key) {
            Entry::Vacant(place) => {
                place.insert(Held { first: copy, more: Vec::new(), key: job_key, conflict: false });
                true
            }
            Entry::Occupied(mut held) => {
                let held = held.get_mut();
                held.more.push(copy);
                held.conflict |= held.key != job_key && job_key.digest().is_some();
                false
            }
        }
    }

    /// Lets a job go, with everything that is to be settled with it.
    pub(super) fn leave(&mut self, key: RunKey) -> Option<Released> {
        let Held { first, mut more, conflict, .. } = self.jobs.remove(&key)?;
        more.push(first);
        Some(Released { copies: more, conflict })
    }

    /// How many jobs are held.
    pub(super) fn len(&self) -> usize {
        self.jobs.len()
    }
}
