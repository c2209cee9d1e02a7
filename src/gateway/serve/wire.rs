//! What lies between a socket and hyper: it watches what goes by, and says clearly what hyper says shortly.
//!
//! hyper answers a head that it cannot read with a bare status; here that becomes a problem with a code and a sentence.
//! A connection that is closed on someone who is still sending is read from a little longer. Otherwise the kernel takes
//! back the answer that he has not read yet, and he takes it for a broken network and sends the same again.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{super::problem::Problem, MAX_FIELDS, MAX_HEAD_BYTES, MAX_URL_BYTES, phase::Phase};

/// How much of what nobody will read is taken in at the end, so that an answer arrives.
const DRAINED: usize = 16 << 20;

/// A socket that is watched.
#[derive(Debug)]
pub(super) struct Wire<S> {
    socket: S,
    phase: Arc<Phase>,
    /// What is written in the place of hyper's words.
    said: Vec<u8>,
    shut: bool,
    drained: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub(super) fn new(socket: S, phase: Arc<Phase>) -> Self {
        Self { socket, phase, said: Vec::new(), shut: false, drained: 0 }
    }

    /// Puts a whole problem in the place of these bytes, if they are a bare status of hyper's.
    fn says_in_full(&mut self, bytes: &[u8]) -> bool {
        let Some(has_first_line) = self.phase.between_requests() else { return false };
        let Some(problem) = in_full(bytes, has_first_line) else { return false };
        self.said = problem.to_http1();
        true
    }

    fn poll_say(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.said.is_empty() {
            let written = Pin::new(&mut self.socket).poll_write(context, &self.said);
            self.phase.sent(written.is_ready());
            match ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => drop(self.said.drain(..written)),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Wire<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.phase.is_late() {
            if self.said.is_empty() {
                self.said = slow_head().to_http1();
            }
            ready!(self.poll_say(context))?;
            ready!(Pin::new(&mut self.socket).poll_flush(context))?;
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.socket).poll_read(context, buffer))?;
        self.phase.received(&buffer.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_say(context))?;
        if self.says_in_full(bytes) {
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = Pin::new(&mut self.socket).poll_write(context, bytes);
        self.phase.sent(written.is_ready());
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_say(context))?;
        if let Some(first) = slices.iter().find(|slice| !slice.is_empty())
            && self.says_in_full(first)
        {
            return Poll::Ready(Ok(first.len()));
        }
        let written = Pin::new(&mut self.socket).poll_write_vectored(context, slices);
        self.phase.sent(written.is_ready());
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_say(context))?;
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_say(context))?;
        let unread = self.phase.close();
        if !self.shut {
            ready!(Pin::new(&mut self.socket).poll_shutdown(context))?;
            self.shut = true;
        }
        if !unread {
            return Poll::Ready(Ok(()));
        }
        let mut scratch = [0; 4096];
        while self.drained < DRAINED {
            let mut buffer = ReadBuf::new(&mut scratch);
            let read = ready!(Pin::new(&mut self.socket).poll_read(context, &mut buffer));
            if read.is_err() || buffer.filled().is_empty() {
                break;
            }
            self.drained += buffer.filled().len();
        }
        Poll::Ready(Ok(()))
    }
}

fn slow_head() -> Problem {
    let detail = "the head of the request did not come in within 5 s";
    Problem::new(StatusCode::REQUEST_TIMEOUT, "slow_head", detail)
}

/// What hyper means by a bare status, if these bytes are one.
fn in_full(bytes: &[u8], has_first_line: bool) -> Option<Problem> {
    // Most of what comes by here is an answer that went well.
    let text = bytes.strip_prefix(b"HTTP/1.1 4").and_then(|_| std::str::from_utf8(bytes).ok());
    let text = text.filter(|text| text.ends_with("\r\n\r\n"))?;
    let (head, fields) = text.split_once("\r\n")?;
    if fields.contains("content-type") || !fields.contains("content-length: 0\r\n") {
        return None;
    }
    match head.strip_prefix("HTTP/1.1 ")?.split(' ').next()? {
        "400" => {
            let detail = "this is no request of HTTP/1.1: its first line, its header fields or the length that it gives \
                          cannot be read";
            Some(Problem::new(StatusCode::BAD_REQUEST, "bad_request", detail))
        }
        "431" if has_first_line => Some(large_head()),
        "414" | "431" => Some(long_url()),
        _ => None,
    }
}

/// A head that is too large.
pub(super) fn large_head() -> Problem {
    let detail =
        format!("the header has more than {MAX_FIELDS} fields or {MAX_HEAD_BYTES} bytes, the most that is taken");
    Problem::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "headers_too_large", detail)
}

/// A URL that is too long.
pub(super) fn long_url() -> Problem {
    let detail = format!("the URL is longer than {MAX_URL_BYTES} bytes, the most that is taken");
    Problem::new(StatusCode::URI_TOO_LONG, "url_too_long", detail)
}
