//! Where a connection stands, and how long it may stand there.
//!
//! hyper has one limit for the head of a request and for the pause before it alike. Here they are apart: who has sent
//! nothing yet, who is sending a head, who rests between two requests, and who does not take what he is sent. The limits
//! of heads are those of HTTP/1; one of HTTP/2 that does not come to its end is a connection that rests. There, in turn,
//! a socket that takes everything says nothing: each answer has a window of its own, which its reader may keep closed, and
//! so each has a time of its own.

use std::{
    cmp::Ordering,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::Version;
use tokio::time::Instant;

use super::head::Heads;

/// How long a new connection may send nothing.
pub(super) const FIRST_BYTE: Duration = Duration::from_secs(10);
/// How long a head may take from its first byte.
const HEAD: Duration = Duration::from_secs(5);
/// How long a connection may rest between requests.
const IDLE: Duration = Duration::from_mins(1);
/// How long nothing may move while there is something to be sent.
pub(super) const BLOCKED: Duration = Duration::from_mins(1);
/// Less than this of an answer of HTTP/2 that has more is not enough to have moved.
const MOVED: usize = 4096;
/// How long a connection that is ending may take for it.
const ENDING: Duration = Duration::from_secs(2);

/// Where a connection stands.
#[derive(Debug)]
pub(super) struct Phase {
    /// How long nothing may move while there is something to be sent.
    patience: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    at: At,
    since: Instant,
    heads: Heads,
    /// How many requests of HTTP/1 have begun.
    begun: u64,
    http2: bool,
    /// The requests of HTTP/2 that are under way.
    streams: Vec<Option<Stream>>,
    /// Since when nothing has moved although there is something to be sent.
    blocked: Option<Instant>,
    /// Something has come in, or is coming in, that nobody will read.
    unread: bool,
}

/// A request of HTTP/2, as far as its answer is with h2.
#[derive(Debug, Clone, Copy)]
struct Stream {
    /// How many pieces of its answer are there and not sent in full.
    pieces: usize,
    /// When the last of them was taken, or as much of one as counts.
    since: Instant,
    /// How much was taken since then.
    taken: usize,
}

/// A request that has begun.
#[derive(Debug, Clone, Copy)]
pub(super) struct Begun {
    /// Its head gives the length of its body twice.
    pub(super) contradicts: bool,
    /// Its place among those of HTTP/2.
    pub(super) stream: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    New,
    Head,
    /// Its head took too long, and that is being said.
    Late,
    /// So many requests are under way.
    Busy(usize),
    Idle,
    Ending,
}

/// What is to be done with a connection whose time is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Overdue {
    /// Let it finish in good order.
    Finish,
    /// Let it say so: it is to be polled once more.
    Say,
    /// Drop it.
    Drop,
}

impl Phase {
    /// A new connection on which for so long nothing may move while there is something to be sent.
    pub(super) fn new(patience: Duration) -> Self {
        let state = State {
            at: At::New,
            since: Instant::now(),
            heads: Heads::default(),
            begun: 0,
            http2: false,
            streams: Vec::new(),
            blocked: None,
            unread: false,
        };
        Self { patience, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something came in.
    pub(super) fn received(&self, bytes: &[u8]) {
        let mut state = self.lock();
        state.blocked = state.blocked.map(|_| Instant::now());
        if state.http2 {
            return;
        }
        state.heads.read(bytes);
        if state.heads.is_http2() {
            state.http2 = true;
            state.go(At::Idle);
        } else if matches!(state.at, At::New | At::Idle) && state.is_sending_a_head() {
            state.go(At::Head);
        }
    }

    /// What was to be sent was not taken, or it was.
    pub(super) fn sent(&self, taken: bool) {
        let mut state = self.lock();
        state.blocked = if taken { None } else { state.blocked.or_else(|| Some(Instant::now())) };
    }

    /// A request begins.
    pub(super) fn begin(&self, version: Version) -> Begun {
        let mut state = self.lock();
        let under_way = if let At::Busy(under_way) = state.at { under_way } else { 0 };
        state.go(At::Busy(under_way + 1));
        state.http2 |= version == Version::HTTP_2;
        if state.http2 {
            let stream = Some(Stream { pieces: 0, since: state.since, taken: 0 });
            let free = state.streams.iter().position(Option::is_none);
            let place = free.unwrap_or(state.streams.len());
            match free {
                Some(place) => state.streams[place] = stream,
                None => state.streams.push(stream),
            }
            return Begun { contradicts: false, stream: Some(place) };
        }
        state.begun += 1;
        // Behind one that contradicts itself nothing is read, so it is the last. None begins that was not seen.
        let contradicts = match state.begun.cmp(&state.heads.whole()) {
            Ordering::Less => false,
            Ordering::Equal => state.heads.contradicts(),
            Ordering::Greater => true,
        };
        Begun { contradicts, stream: None }
    }

    /// A request was answered, and what it sent was read or given up.
    pub(super) fn end(&self, stream: Option<usize>) {
        let mut state = self.lock();
        if let Some(place) = stream.and_then(|place| state.streams.get_mut(place)) {
            *place = None;
        }
        match state.at {
            At::Busy(under_way) if under_way > 1 => state.at = At::Busy(under_way - 1),
            At::Busy(_) if !state.http2 && state.is_sending_a_head() => state.go(At::Head),
            At::Busy(_) => state.go(At::Idle),
            _ => {}
        }
    }

    /// h2 has another piece of an answer.
    pub(super) fn give(&self, stream: usize) {
        self.at_stream(stream, |stream| {
            stream.pieces += 1;
            stream.since = Instant::now();
            stream.taken = 0;
        });
    }

    /// So much of a piece was taken.
    pub(super) fn take(&self, stream: usize, bytes: usize) {
        self.at_stream(stream, |stream| {
            stream.taken += bytes;
            if stream.taken >= MOVED {
                stream.since = Instant::now();
                stream.taken = 0;
            }
        });
    }

    /// A piece was taken in full, or given up.
    pub(super) fn done(&self, stream: usize) {
        self.at_stream(stream, |stream| {
            stream.pieces -= 1;
            stream.since = Instant::now();
            stream.taken = 0;
        });
    }

    fn at_stream(&self, stream: usize, change: impl FnOnce(&mut Stream)) {
        if let Some(Some(stream)) = self.lock().streams.get_mut(stream) {
            change(stream);
        }
    }

    /// The rest of what a request sends will not be read.
    pub(super) fn give_up_rest(&self) {
        self.lock().unread = true;
    }

    /// It is being closed; answers whether something may still come in that nobody will read.
    pub(super) fn close(&self) -> bool {
        let mut state = self.lock();
        let unread = state.unread || matches!(state.at, At::Head | At::Late);
        if state.at != At::Ending {
            state.go(At::Ending);
            state.unread = unread;
        }
        unread
    }

    /// Whether a head took too long, and that is to be said.
    pub(super) fn is_late(&self) -> bool {
        self.lock().at == At::Late
    }

    /// If no request of HTTP/1 is under way: whether the first line of one has come in.
    pub(super) fn between_requests(&self) -> Option<bool> {
        let state = self.lock();
        // One that is whole and has not begun is being refused.
        let has_first_line = || state.heads.has_first_line() || state.heads.whole() > state.begun;
        (!state.http2 && !matches!(state.at, At::Busy(_))).then(has_first_line)
    }

    /// When its time is up, as things stand.
    pub(super) fn due(&self) -> Option<Instant> {
        let state = self.lock();
        let patience = match state.at {
            At::New => Some(FIRST_BYTE),
            At::Head => Some(HEAD),
            At::Busy(_) => None,
            At::Idle => Some(IDLE),
            At::Late | At::Ending => Some(ENDING),
        };
        let by_phase = patience.map(|patience| state.since + patience);
        by_phase.into_iter().chain(state.stuck().map(|since| since + self.patience)).min()
    }

    /// Its time is up.
    pub(super) fn overdue(&self) -> Overdue {
        let mut state = self.lock();
        if state.stuck().is_some_and(|since| since.elapsed() >= self.patience) {
            return Overdue::Drop;
        }
        match state.at {
            At::Head => {
                state.go(At::Late);
                Overdue::Say
            }
            At::Idle => {
                state.go(At::Ending);
                Overdue::Finish
            }
            At::New | At::Late | At::Ending => Overdue::Drop,
            At::Busy(_) => Overdue::Say,
        }
    }
}

impl State {
    /// Whether a head has begun, or is there for a request to begin with.
    fn is_sending_a_head(&self) -> bool {
        self.heads.has_begun() || self.heads.whole() > self.begun
    }

    /// Since when what is to be sent, or one answer of it, has not moved.
    fn stuck(&self) -> Option<Instant> {
        let streams = self.streams.iter().flatten().filter(|stream| stream.pieces > 0);
        streams.map(|stream| stream.since).chain(self.blocked).min()
    }

    fn go(&mut self, at: At) {
        self.at = at;
        self.since = Instant::now();
    }
}
