//! The idempotency keys that this gateway has accepted lately.
//!
//! Only a shortcut: it answers a repeat at once and tells a conflict before anything is published. What it has
//! forgotten, or another gateway has seen, is settled by the job's id and its row.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
};

use uuid::Uuid;

/// How many are remembered.
const KEPT: usize = 50_000;

/// The idempotency keys that this gateway has accepted lately.
#[derive(Debug, Default)]
pub(super) struct Recent {
    jobs: Mutex<Jobs>,
}

#[derive(Debug, Default)]
struct Jobs {
    digests: HashMap<Uuid, [u8; 32]>,
    order: VecDeque<Uuid>,
}

impl Recent {
    /// The digest of the body under which this job was accepted.
    pub(super) fn digest(&self, id: Uuid) -> Option<[u8; 32]> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).digests.get(&id).copied()
    }

    /// This job was accepted.
    pub(super) fn accepted(&self, id: Uuid, digest: [u8; 32]) {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if jobs.digests.insert(id, digest).is_none() {
            jobs.order.push_back(id);
            if jobs.order.len() > KEPT
                && let Some(oldest) = jobs.order.pop_front()
            {
                jobs.digests.remove(&oldest);
            }
        }
    }
}
