//! The body of a request as it comes in: unpacked, within its limits, and not too slowly.
//!
//! Whoever sends must keep a pace, so that nobody holds a connection, and memory with it, for the price of a byte now and
//! then. Only the time that is spent waiting for the sender counts.

use std::{fmt::Display, task::Poll, time::Duration};

use axum::body::Body as AnyBody;
use bytes::{Bytes, BytesMut};
use futures_util::poll;
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH},
};
use http_body_util::BodyExt as _;
use hyper::body::Body;
use tokio::time::{Instant, timeout};

use super::{
    gunzip::{ANY_RATIO, Gunzip, GunzipError, RATIO},
    problem::Problem,
    room::{Room, Stranger},
};

/// How long a whole body may keep its reader waiting.
const WHOLE: Duration = Duration::from_secs(30);
/// How long one that is worked off while it comes in may.
const STREAMED: Duration = Duration::from_mins(10);
/// How long the next piece may take.
const PIECE: Duration = Duration::from_secs(30);
/// How many bytes must come in each second, on the average.
const RATE: u64 = 1024;
/// For how long nothing need come in at all.
const GRACE: Duration = Duration::from_secs(5);
/// After so much was unpacked, others get their turn.
const TURN: usize = 256 << 10;

/// A body that is read piece by piece.
#[derive(Debug)]
pub(super) struct Incoming<B = AnyBody> {
    body: B,
    at_most: usize,
    /// As it came in: packed, if it is.
    received: usize,
    waited: Duration,
    patience: Duration,
    gunzip: Option<Gunzip>,
    /// What has come in and is not unpacked yet.
    packed: Bytes,
    since_turn: usize,
}

impl<B: Body<Data = Bytes, Error: Display> + Unpin> Incoming<B> {
    /// A body of at most so many bytes, packed and unpacked, that is to come in as a whole.
    pub(super) fn whole(headers: &HeaderMap, body: B, at_most: usize) -> Result<Self, Problem> {
        Self::new(headers, body, at_most, WHOLE)
    }

    /// The same for one that is worked off while it comes in, which may take its time.
    pub(super) fn streamed(headers: &HeaderMap, body: B, at_most: usize) -> Result<Self, Problem> {
        Self::new(headers, body, at_most, STREAMED)
    }

    /// The same, however often what is packed repeats itself: only its size counts.
    pub(super) fn of_any_ratio(self) -> Self {
        Self { gunzip: self.gunzip.map(Gunzip::of_any_ratio), ..self }
    }

    fn new(headers: &HeaderMap, body: B, at_most: usize, patience: Duration) -> Result<Self, Problem> {
        let gunzip = is_packed(headers)?.then(|| Gunzip::new(at_most));
        let claimed = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if claimed.is_some_and(|claimed| claimed > at_most as u64) {
            return Err(too_large(at_most));
        }
        let (received, waited, packed, since_turn) = (0, Duration::ZERO, Bytes::new(), 0);
        Ok(Self { body, at_most, received, waited, patience, gunzip, packed, since_turn })
    }

    /// The next piece; `None` at the end. Not to be called again after an error.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        loop {
            let piece = if !self.packed.is_empty()
                && let Some(gunzip) = &mut self.gunzip
            {
                let (used, piece) = gunzip.step(&self.packed).map_err(|error| self.refused(error))?;
                _ = self.packed.split_to(used);
                piece.into()
            } else {
                match (self.receive().await?, self.gunzip.is_some()) {
                    (Some(piece), false) => piece,
                    (Some(packed), true) => {
                        self.packed = packed;
                        continue;
                    }
                    (None, _) => match self.gunzip.take().map(Gunzip::finish) {
                        None => return Ok(None),
                        Some(Ok(last)) => last.into(),
                        Some(Err(error)) => return Err(self.refused(error)),
                    },
                }
            };
            if !piece.is_empty() {
                self.since_turn += piece.len();
                if self.since_turn >= TURN {
                    self.since_turn = 0;
                    tokio::task::yield_now().await;
                }
                return Ok(Some(piece));
            }
        }
    }

    /// Whether the next piece, or the end, is here, or its sender has said that more comes.
    pub(super) fn comes_soon(&self) -> bool {
        let is_announced = || self.body.size_hint().exact().is_some_and(|left| left > 0);
        !self.packed.is_empty() || self.body.is_end_stream() || is_announced()
    }

    /// What comes in next, as it is.
    async fn receive(&mut self) -> Result<Option<Bytes>, Problem> {
        loop {
            // Asking once more would wait for its sender to be dropped.
            if self.body.is_end_stream() {
                return Ok(None);
            }
            let mut frame = self.body.frame();
            // Most bodies come with their heads; a clock costs more than all else here.
            let frame = match poll!(&mut frame) {
                Poll::Ready(frame) => Ok(frame),
                Poll::Pending => {
                    let began = Instant::now();
                    let earned = GRACE + Duration::from_millis(self.received as u64 * 1000 / RATE);
                    let left = earned.min(self.patience).saturating_sub(self.waited).min(PIECE);
                    let frame = timeout(left, frame).await;
                    self.waited += began.elapsed();
                    frame
                }
            };
            match frame {
                Err(_) => return Err(self.slow()),
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => {
                    let detail = format!("the body broke off: {error}");
                    return Err(Problem::new(StatusCode::BAD_REQUEST, "broken_body", detail).closing());
                }
                // What is no data are fields behind the body, which say nothing here.
                Ok(Some(Ok(frame))) => {
                    let Ok(data) = frame.into_data() else { continue };
                    self.received = self.received.saturating_add(data.len());
                    if self.received > self.at_most {
                        return Err(too_large(self.at_most));
                    }
                    return Ok(Some(data));
                }
            }
        }
    }

    /// All of it. The room that it takes is given back with the last of its bytes.
    pub(super) async fn collect(self) -> Result<Bytes, Problem> {
        let (whole, room) = self.collect_apart().await?;
        Ok(room.around(whole))
    }

    /// The same, with the room apart from them: to be held as long as they are.
    pub(super) async fn collect_apart(self) -> Result<(Bytes, Room), Problem> {
        self.gather(|_| Ok(())).await
    }

    /// The same from someone who has yet to show that he may send.
    pub(super) async fn collect_from_stranger(self) -> Result<(Bytes, Stranger), Problem> {
        let mut stranger = Stranger::default();
        let (whole, room) = self.gather(|bytes| stranger.hold(bytes)).await?;
        Ok((room.around(whole), stranger))
    }

    async fn gather(mut self, mut hold: impl FnMut(usize) -> Result<(), Problem>) -> Result<(Bytes, Room), Problem> {
        let mut room = Room::default();
        let Some(first) = self.next().await? else { return Ok((Bytes::new(), room)) };
        hold(first.len())?;
        room.hold(first.len())?;
        let Some(second) = self.next().await? else { return Ok((first, room)) };
        let mut whole = BytesMut::from(first);
        let mut next = Some(second);
        while let Some(piece) = next {
            hold(whole.len() + piece.len())?;
            room.hold(whole.len() + piece.len())?;
            whole.extend_from_slice(&piece);
            next = self.next().await?;
        }
        Ok((whole.freeze(), room))
    }

    fn slow(&self) -> Problem {
        let detail = format!(
            "the body came in too slowly, {} bytes in {} s: it needs {RATE} bytes a second after the first {} s, and \
             no more than {} s in all",
            self.received,
            self.waited.as_secs(),
            GRACE.as_secs(),
            self.patience.as_secs()
        );
        Problem::new(StatusCode::REQUEST_TIMEOUT, "slow_body", detail).closing()
    }

    fn refused(&self, error: GunzipError) -> Problem {
        let at_most = self.at_most;
        let (status, code, detail) = match error {
            GunzipError::Damaged => (
                StatusCode::BAD_REQUEST,
                "bad_gzip",
                "the body is not what its Content-Encoding says: it is no gzip, is damaged or cut off, or something else \
                 follows it"
                    .to_owned(),
            ),
            GunzipError::TooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "too_large_decompressed",
                format!("the body is longer than {at_most} bytes once it is unpacked, the most that is taken"),
            ),
            GunzipError::Bomb => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "too_large_decompressed",
                format!(
                    "the body is more than {RATIO} times as long once it is unpacked, which is not taken beyond \
                     {ANY_RATIO} bytes: send it in smaller pieces, or plain"
                ),
            ),
        };
        Problem::new(status, code, detail).closing()
    }
}

fn too_large(at_most: usize) -> Problem {
    let detail = format!("the body is longer than {at_most} bytes, the most that is taken");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail).closing()
}

/// Whether a body is gzip. Any other encoding, or one within another, is refused.
fn is_packed(headers: &HeaderMap) -> Result<bool, Problem> {
    let named = headers.get_all(CONTENT_ENCODING).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let mut named = named.map(<[u8]>::trim_ascii).filter(|name| !name.is_empty());
    let is = |name: &[u8], one_of: &[&str]| one_of.iter().any(|known| name.eq_ignore_ascii_case(known.as_bytes()));
    match (named.next(), named.next()) {
        (None, _) => Ok(false),
        (Some(name), None) if is(name, &["identity"]) => Ok(false),
        (Some(name), None) if is(name, &["gzip", "x-gzip"]) => Ok(true),
        _ => {
            let detail = "a body is sent plain or as gzip, once (Content-Encoding: gzip), and in no other encoding";
            let problem = Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_encoding", detail);
            Err(problem.with(ACCEPT_ENCODING, HeaderValue::from_static("gzip, identity")).closing())
        }
    }
}
