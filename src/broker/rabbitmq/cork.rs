//! A connection's socket, whose writes can be held back for a moment.
//!
//! lapin writes from a thread of its own, which it wakes with every message that is queued. Woken by the first of a burst,
//! that thread would be at the socket before the second is queued: a wake-up, a system call and a packet for each. While
//! the cork is in, it waits at its first step, and then finds the whole burst.

use std::{
    future::Future,
    io::{self, IoSlice, IoSliceMut, Read, Write},
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use async_rs::{Runtime, Tokio, traits::Reactor, util::RuntimeParts};
use futures_io::{AsyncRead, AsyncWrite};
use futures_util::Stream;

/// Holds the writes of one connection back.
#[derive(Debug, Clone, Default)]
pub(super) struct Cork(Arc<Mutex<()>>);

impl Cork {
    /// Holds them back until what is answered is dropped: never across anything that waits.
    pub(super) fn hold(&self) -> MutexGuard<'_, ()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A runtime for lapin whose connections have this cork. Must be called within a tokio runtime.
    pub(super) fn runtime(&self) -> Runtime<RuntimeParts<Tokio, Corked>> {
        let corked = Corked { reactor: Tokio::current(), cork: self.clone() };
        Runtime::new(RuntimeParts::new(Tokio::current(), corked))
    }
}

/// Tokio's reactor with a cork in what it connects.
#[derive(Debug, Clone)]
pub(super) struct Corked {
    reactor: Tokio,
    cork: Cork,
}

impl Reactor for Corked {
    type TcpStream = CorkedStream<<Tokio as Reactor>::TcpStream>;
    type Sleep = <Tokio as Reactor>::Sleep;

    /// lapin brings no sockets of its own.
    fn register<H: Read + Write + Send + 'static>(
        &self,
        _: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        Err::<Self::TcpStream, _>(io::ErrorKind::Unsupported.into())
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.reactor.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.reactor.interval(duration)
    }

    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        let (connecting, cork) = (self.reactor.tcp_connect_addr(address), self.cork.clone());
        async move { Ok(CorkedStream { stream: connecting.await?, cork }) }
    }
}

/// A socket with a cork in it.
#[derive(Debug)]
pub(super) struct CorkedStream<S> {
    stream: S,
    cork: Cork,
}

impl<S: AsyncRead + Unpin> AsyncRead for CorkedStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }

    fn poll_read_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_read_vectored(context, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for CorkedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, from)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, from)
    }

    /// lapin flushes before it takes up what is queued: here its thread waits.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        drop(self.cork.hold());
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(context)
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use futures_util::task::noop_waker;

    use super::*;

    struct Anything;

    impl AsyncWrite for Anything {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(from.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn who_flushes_waits_for_the_cork_and_then_goes_on() {
        let cork = Cork::default();
        let mut stream = CorkedStream { stream: Anything, cork: cork.clone() };
        let (flushed, told) = mpsc::channel();
        let held = cork.hold();
        let flushing = thread::spawn(move || {
            let flush = Pin::new(&mut stream).poll_flush(&mut Context::from_waker(&noop_waker()));
            flushed.send(flush.is_ready()).expect("someone waits");
        });
        assert_eq!(told.recv_timeout(Duration::from_millis(100)), Err(mpsc::RecvTimeoutError::Timeout));
        drop(held);
        assert_eq!(told.recv_timeout(Duration::from_secs(10)), Ok(true));
        flushing.join().expect("no panic");
    }
}
