//! From a request to its answer: what every request is checked for, whatever it is about.
//!
//! A request is under way, and counts among those that may be, until the last byte of its answer is with the kernel. hyper
//! and h2 let go of the body of an answer earlier, so its pieces count too.

use std::{
    convert::Infallible,
    io::IoSlice,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use axum::{body::Body as AnyBody, response::IntoResponse as _};
use bytes::{Buf, Bytes};
use http::{Method, Request, Response, StatusCode, header::CONTENT_LENGTH};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    super::problem::Problem,
    MAX_FIELDS, MAX_URL_BYTES, Pages, Peer,
    phase::{Begun, Phase},
    wire::{large_head, long_url},
};
use crate::telemetry::SHED;

/// Answers the requests of one connection.
#[derive(Debug)]
pub(super) struct Answers<P> {
    pub(super) pages: P,
    pub(super) peer: Peer,
    pub(super) phase: Arc<Phase>,
    /// How many requests may still be under way, over all connections.
    pub(super) requests: Arc<Semaphore>,
}

impl<P: Pages> Answers<P> {
    pub(super) async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Answer>, Infallible> {
        let Begun { contradicts, stream } = self.phase.begin(request.version());
        let permit = self.requests.clone().try_acquire_owned().ok();
        let is_full = permit.is_none();
        let turn = Arc::new(Turn { phase: self.phase.clone(), stream, _permit: permit });
        let url = request.uri().path_and_query().map_or(0, |url| url.as_str().len());
        let problem = if contradicts {
            Some(two_lengths())
        } else if url > MAX_URL_BYTES {
            Some(long_url())
        } else if request.headers().len() > MAX_FIELDS {
            Some(large_head())
        } else if is_full {
            metrics::counter!(SHED, "reason" => "requests").increment(1);
            Some(Problem::overloaded())
        } else {
            None
        };
        let is_head = request.method() == Method::HEAD;
        let request = request.map(|body| {
            let unread = !body.is_end_stream();
            Watched { body, turn: turn.clone(), unread }
        });
        let response = if let Some(problem) = problem {
            drop(request);
            problem.into_response()
        } else {
            self.pages.answer(self.peer, request).await
        };
        let response = if is_head { without_body(response) } else { response };
        Ok(response.map(|body| Answer { body, turn }))
    }
}

/// What a `HEAD` is answered: what a `GET` would be, and no body. axum does so for its routes, and hyper for HTTP/1 alone.
fn without_body(response: Response<AnyBody>) -> Response<AnyBody> {
    let (mut head, body) = response.into_parts();
    if let Some(length @ 1..) = body.size_hint().exact() {
        head.headers.entry(CONTENT_LENGTH).or_insert(length.into());
    }
    Response::from_parts(head, AnyBody::empty())
}

fn two_lengths() -> Problem {
    let detail = "the request has both a Content-Length and a Transfer-Encoding: send one of them";
    Problem::new(StatusCode::BAD_REQUEST, "two_lengths", detail).closing()
}

/// A request that is under way, until both its body and its answer are done with.
#[derive(Debug)]
struct Turn {
    phase: Arc<Phase>,
    /// Its place among those of HTTP/2.
    stream: Option<usize>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.phase.end(self.stream);
    }
}

/// The body of a request, whose end is noted.
#[derive(Debug)]
pub struct Watched {
    body: Incoming,
    turn: Arc<Turn>,
    /// More of it is to be expected, and it matters.
    unread: bool,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if matches!(frame, Poll::Ready(None)) || self.body.is_end_stream() {
            self.unread = false;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if self.unread {
            self.turn.phase.give_up_rest();
        }
    }
}

/// The body of an answer, whose pieces are noted.
pub(super) struct Answer {
    body: AnyBody,
    turn: Arc<Turn>,
}

impl Body for Answer {
    type Data = Piece;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece>, Self::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(|bytes| Piece::new(bytes, self.turn.clone())))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A piece of an answer, until it is sent.
pub(super) struct Piece {
    bytes: Bytes,
    turn: Arc<Turn>,
}

impl Piece {
    fn new(bytes: Bytes, turn: Arc<Turn>) -> Self {
        if let Some(stream) = turn.stream {
            turn.phase.give(stream);
        }
        Self { bytes, turn }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        if let Some(stream) = self.turn.stream {
            self.turn.phase.done(stream);
        }
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        self.bytes.chunks_vectored(slices)
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        if let Some(stream) = self.turn.stream {
            self.turn.phase.take(stream, count);
        }
    }
}
