//! How much of requests is held in memory at once, over all of them.
//!
//! A limit for one body bounds nothing while thousands are under way. So everything that is held of bodies, and of
//! answers that nobody has taken yet, is counted in one place; where there is no room left, a request is answered
//! `overloaded` and its connection closed, before memory grows. Only what has come in is counted, never what a header
//! claims.

use bytes::Bytes;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::problem::Problem;

/// How many bytes are held in all.
const ALL: usize = 64 << 20;

static ROOM: Semaphore = Semaphore::const_new(ALL);

/// The room that one request takes. Given back when it is dropped.
#[derive(Debug, Default)]
pub(super) struct Room {
    permit: Option<SemaphorePermit<'static>>,
}

impl Room {
    /// Takes room for so many bytes in all, more or less than before.
    pub(super) fn hold(&mut self, wanted: usize) -> Result<(), Problem> {
        let held = self.permit.as_ref().map_or(0, SemaphorePermit::num_permits);
        if wanted < held {
            drop(self.permit.as_mut().and_then(|permit| permit.split(held - wanted)));
            return Ok(());
        }
        if wanted > held {
            let more = u32::try_from(wanted - held).ok().and_then(|more| ROOM.try_acquire_many(more).ok());
            let more = more.ok_or_else(Problem::overloaded)?;
            match &mut self.permit {
                Some(permit) => permit.merge(more),
                none => *none = Some(more),
            }
        }
        Ok(())
    }

    /// Bytes that give this room back when the last of them is dropped.
    pub(super) fn around(self, bytes: impl AsRef<[u8]> + Send + 'static) -> Bytes {
        Bytes::from_owner(Held { bytes, _room: self })
    }
}

struct Held<B> {
    bytes: B,
    _room: Room,
}

impl<B: AsRef<[u8]>> AsRef<[u8]> for Held<B> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}
