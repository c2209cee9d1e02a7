//! The copies of jobs that this process holds.
//!
//! A broker may give a job out again while it still runs here: its connection was lost, or a client published it twice
//! under one key. Such a copy is attached to the one in work, and both are settled when that one is recorded.

use std::collections::{HashMap, hash_map::Entry};

use bytes::Bytes;
use uuid::Uuid;
use warren_messages::codec;

use super::executor::Ready;
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
#[derive(Default)]
pub(super) struct InFlight {
    jobs: HashMap<RunKey, Held, foldhash::fast::RandomState>,
}

struct Held {
    first: Copy,
    body: Bytes,
    key: Key,
    /// Hardly ever anything: what it takes up counts, for thousands are held.
    rest: Option<Box<Rest>>,
}

/// What else came under the same id and run.
#[derive(Default)]
struct Rest {
    more: Vec<Copy>,
    /// A copy under the same key promised another body.
    conflict: bool,
    /// Jobs behind bytes that are none: whoever sent those only claimed the id.
    behind: Vec<(Ready, Copy)>,
}

/// What became of a delivery.
pub(super) enum Entered {
    /// It is the only one.
    First,
    /// It was attached to one in work, or waits behind it.
    Attached,
    /// It claims the id of one in work, and is no body of any job.
    NoBody,
}

/// What is to be settled of one job.
pub(super) struct Released {
    pub(super) first: Copy,
    /// Hardly ever any.
    pub(super) more: Vec<Copy>,
    pub(super) conflict: bool,
    /// What now comes first.
    pub(super) behind: Vec<(Ready, Copy)>,
}

impl InFlight {
    /// Takes a delivery in.
    pub(super) fn enter(&mut self, ready: &Ready, copy: Copy) -> Entered {
        let job_key = ready.envelope.key;
        match self.jobs.entry(ready.key()) {
            Entry::Vacant(place) => {
                place.insert(Held::new(ready.body.clone(), job_key, copy));
                Entered::First
            }
            Entry::Occupied(mut held) => {
                let held = held.get_mut();
                if held.body != ready.body {
                    if codec::check(&ready.body).is_err() {
                        return Entered::NoBody;
                    }
                    if codec::check(&held.body).is_err() {
                        held.rest().behind.push((ready.clone(), copy));
                        return Entered::Attached;
                    }
                }
                let conflict = held.key != job_key && job_key.digest().is_some();
                let rest = held.rest();
                rest.more.push(copy);
                rest.conflict |= conflict;
                Entered::Attached
            }
        }
    }

    /// Takes in what is no job. False if the same is in work already.
    pub(super) fn enter_refused(&mut self, key: RunKey, copy: Copy) -> bool {
        match self.jobs.entry(key) {
            Entry::Vacant(place) => {
                place.insert(Held::new(Bytes::new(), Key::None, copy));
                true
            }
            Entry::Occupied(mut held) => {
                held.get_mut().rest().more.push(copy);
                false
            }
        }
    }

    /// Lets a job go, with everything that is to be settled with it.
    pub(super) fn leave(&mut self, key: RunKey) -> Option<Released> {
        let Held { first, rest, .. } = self.jobs.remove(&key)?;
        let Rest { more, conflict, behind } = rest.map_or_else(Rest::default, |rest| *rest);
        Some(Released { first, more, conflict, behind })
    }

    /// How many jobs are held.
    pub(super) fn len(&self) -> usize {
        self.jobs.len()
    }
}

impl Held {
    fn new(body: Bytes, key: Key, first: Copy) -> Self {
        Self { first, body, key, rest: None }
    }

    fn rest(&mut self) -> &mut Rest {
        self.rest.get_or_insert_default()
    }
}
