//! Where a connection stands, and how long it may stand there.
//!
//! hyper has one limit for the head of a request and for the pause before it alike. Here they are apart: who has sent
//! nothing yet, who is sending a head, who rests between two requests, and who does not take what he is sent.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::Version;
use tokio::time::Instant;

use super::head::{Head, Seen};

/// How long a new connection may send nothing.
pub(super) const FIRST_BYTE: Duration = Duration::from_secs(10);
/// How long a head may take from its first byte.
const HEAD: Duration = Duration::from_secs(5);
/// How long a connection may rest between requests.
const IDLE: Duration = Duration::from_mins(1);
/// How long nothing may move while there is something to be sent.
const BLOCKED: Duration = Duration::from_mins(1);
/// How long a connection that is ending may take for it.
const ENDING: Duration = Duration::from_secs(2);

/// Where a connection stands.
#[derive(Debug)]
pub(super) struct Phase(Mutex<State>);

#[derive(Debug)]
struct State {
    at: At,
    since: Instant,
    head: Head,
    http2: bool,
    contradicts: bool,
    /// Since when nothing has moved although there is something to be sent.
    blocked: Option<Instant>,
    /// Something has come in, or is coming in, that nobody will read.
    unread: bool,
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
    pub(super) fn new() -> Self {
        Self(Mutex::new(State {
            at: At::New,
            since: Instant::now(),
            head: Head::default(),
            http2: false,
            contradicts: false,
            blocked: None,
            unread: false,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something came in.
    pub(super) fn received(&self, bytes: &[u8]) {
        let mut state = self.lock();
        state.blocked = state.blocked.map(|_| Instant::now());
        if state.http2 || matches!(state.at, At::Busy(_) | At::Late | At::Ending) {
            return;
        }
        match state.head.read(bytes) {
            Seen::Nothing => {}
            Seen::Http2 => {
                state.http2 = true;
                state.go(At::Idle);
            }
            seen => {
                if state.at != At::Head {
                    state.go(At::Head);
                }
                state.contradicts = seen == Seen::Whole { contradicts: true };
            }
        }
    }

    /// What was to be sent was not taken, or it was.
    pub(super) fn sent(&self, taken: bool) {
        let mut state = self.lock();
        state.blocked = if taken { None } else { state.blocked.or_else(|| Some(Instant::now())) };
    }

    /// A request begins; answers whether its head contradicts itself.
    pub(super) fn begin(&self, version: Version) -> bool {
        let mut state = self.lock();
        let under_way = if let At::Busy(under_way) = state.at { under_way } else { 0 };
        state.go(At::Busy(under_way + 1));
        state.http2 |= version == Version::HTTP_2;
        state.head = Head::default();
        std::mem::take(&mut state.contradicts)
    }

    /// A request was answered, and what it sent was read or given up.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        match state.at {
            At::Busy(under_way) if under_way > 1 => state.at = At::Busy(under_way - 1),
            At::Busy(_) => state.go(At::Idle),
            _ => {}
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
        (!state.http2 && !matches!(state.at, At::Busy(_))).then(|| state.head.has_first_line())
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
        by_phase.into_iter().chain(state.blocked.map(|since| since + BLOCKED)).min()
    }

    /// Its time is up.
    pub(super) fn overdue(&self) -> Overdue {
        let mut state = self.lock();
        if state.blocked.is_some_and(|since| since.elapsed() >= BLOCKED) {
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
    fn go(&mut self, at: At) {
        self.at = at;
        self.since = Instant::now();
    }
}
