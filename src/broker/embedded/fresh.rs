//! The messages of one kind that were just written and are about to be given out, so that they need not be read.
//!
//! They follow on what was last given out, without a gap. Once one is not kept, all behind it are read until the kind has
//! caught up. If one that was taken is not given out, all are read.

use std::{collections::VecDeque, mem};

use super::rows::{Row, Stored};
use crate::broker::Outgoing;

/// How many bytes of bodies are kept: a burst of small ones.
pub(super) const MOST_BYTES: usize = 256 << 10;

/// What need not be read.
#[derive(Default)]
pub(super) struct Fresh {
    messages: VecDeque<Stored>,
    bytes: usize,
    /// The newest that was kept.
    newest: i64,
}

impl Fresh {
    /// A message was written, of which `last` is the one before. It is kept if there is room for it, and if every message before it
    /// has been given out (`all_given`) or was kept.
    pub(super) fn note(&mut self, row: Row, last: i64, all_given: bool, room: usize) {
        let Row { seq, job: Outgoing { envelope, body }, .. } = row;
        let follows = all_given || self.newest == last;
        if follows && self.messages.len() < room && self.bytes + body.len() <= MOST_BYTES {
            self.bytes += body.len();
            self.newest = seq;
            self.messages.push_back(Stored { seq, given: 0, envelope: envelope.into(), body });
        }
    }

    /// The next to be given out.
    pub(super) fn take(&mut self, at_most: usize) -> Option<Vec<Stored>> {
        let taken: Vec<_> = if at_most < self.messages.len() {
            self.messages.drain(..at_most).collect()
        } else {
            // With the room that they took: a burst comes seldom.
            mem::take(&mut self.messages).into()
        };
        self.bytes -= taken.iter().map(|message| message.body.len()).sum::<usize>();
        (!taken.is_empty()).then_some(taken)
    }

    /// One that was taken is not given out: it must be read, and so must all behind it.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }
}
