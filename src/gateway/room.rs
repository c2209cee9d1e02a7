//! How much of requests is held in memory at once, over all of them.
//!
//! A limit for one body bounds nothing while thousands are under way. So everything that is held of bodies, and of
//! long answers that nobody has taken yet, is counted in one place; where there is no room left, a request is answered
//! `overloaded` and its connection closed, before memory grows. Only what has come in is counted, never what a header
//! claims.
//!
//! Some senders show only with what they send that they may: by a signature, or by a key in the body. Until then they have
//! a small part of the room together, so that nobody fills all of it who may send nothing. And JSON takes many times its
//! length while it is read: who reads it waits until there is room for that too.

use axum::{
    body::Body,
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use http::{HeaderValue, header::CONTENT_TYPE};
use serde::Serialize;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::problem::Problem;
use crate::telemetry::SHED;

/// How many bytes are held in all.
const ALL: usize = 64 << 20;
/// How many of them are of strangers.
const OF_STRANGERS: usize = 16 << 20;
/// How many bytes JSON takes at once while it is read, beside its text.
const WHILE_READ: u32 = 64 << 20;
/// JSON that takes no more is read without asking: a thread reads one at a time.
const LITTLE: usize = 256 << 10;

static ROOM: Semaphore = Semaphore::const_new(ALL);
static STRANGERS: Semaphore = Semaphore::const_new(OF_STRANGERS);
static READING: Semaphore = Semaphore::const_new(WHILE_READ as usize);

/// The room that one request takes. Given back when it is dropped.
#[derive(Debug, Default)]
pub(super) struct Room {
    permit: Option<SemaphorePermit<'static>>,
}

impl Room {
    /// Takes room for so many bytes in all, more or less than before.
    pub(super) fn hold(&mut self, wanted: usize) -> Result<(), Problem> {
        resize(&ROOM, &mut self.permit, wanted, "memory")
    }

    /// Bytes that give this room back when the last of them is dropped.
    pub(super) fn around(self, bytes: impl AsRef<[u8]> + Send + 'static) -> Bytes {
        Bytes::from_owner(Held { bytes, _room: self })
    }
}

/// What a sender takes of the part for strangers, beside his room. To be dropped when he has shown that he may send.
#[derive(Debug, Default)]
pub(super) struct Stranger {
    permit: Option<SemaphorePermit<'static>>,
}

impl Stranger {
    /// Takes so many bytes in all.
    pub(super) fn hold(&mut self, wanted: usize) -> Result<(), Problem> {
        resize(&STRANGERS, &mut self.permit, wanted, "strangers")
    }
}

fn resize(
    all: &'static Semaphore,
    permit: &mut Option<SemaphorePermit<'static>>,
    wanted: usize,
    reason: &'static str,
) -> Result<(), Problem> {
    let held = permit.as_ref().map_or(0, SemaphorePermit::num_permits);
    if wanted < held {
        drop(permit.as_mut().and_then(|permit| permit.split(held - wanted)));
        return Ok(());
    }
    if wanted > held {
        let more = u32::try_from(wanted - held).ok().and_then(|more| all.try_acquire_many(more).ok());
        let more = more.ok_or_else(|| {
            metrics::counter!(SHED, "reason" => reason).increment(1);
            Problem::overloaded().closing()
        })?;
        match permit {
            Some(permit) => permit.merge(more),
            none => *none = Some(more),
        }
    }
    Ok(())
}

/// An answer that may be long, for which there is room until it is taken.
pub(super) fn json(value: &impl Serialize) -> Result<Response, Problem> {
    // Text, numbers and lists of them: it cannot fail.
    let text = serde_json::to_vec(value).unwrap_or_default();
    let mut room = Room::default();
    room.hold(text.len())?;
    let media = HeaderValue::from_static("application/json");
    Ok(([(CONTENT_TYPE, media)], Body::from(room.around(text))).into_response())
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

/// Room for what JSON becomes while it is read, as long as it is held. What was read is to be dropped before it is, and
/// nothing is to be waited for in between: others wait for this.
#[derive(Debug)]
pub(super) struct Reading {
    _permit: Option<SemaphorePermit<'static>>,
}

impl Reading {
    /// Waits until there is room to read this text.
    pub(super) async fn of(text: &[u8]) -> Self {
        let weight = weight(text);
        if weight <= LITTLE {
            return Self { _permit: None };
        }
        let weight = u32::try_from(weight).unwrap_or(u32::MAX).min(WHILE_READ);
        Self { _permit: READING.acquire_many(weight).await.ok() }
    }
}

/// How much memory JSON takes once it is read, twice over: whoever makes one body of another has both. A value takes 32
/// bytes, and a map, however small, a node for eleven of them with their names. What stands within texts is counted as if
/// it stood outside; that makes nobody wait long.
fn weight(text: &[u8]) -> usize {
    const VALUE: usize = 2 * 32;
    const MAP: usize = 2 * 640;
    let of = |byte| match byte {
        b',' | b'[' => VALUE,
        b'{' => MAP,
        _ => 2,
    };
    text.iter().map(|byte| of(*byte)).sum()
}
