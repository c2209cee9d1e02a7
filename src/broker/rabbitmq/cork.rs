//! A connection's socket, whose writes can be held back for a moment, and which tells when what it read was handed out.
//!
//! lapin writes from a thread of its own, which it wakes with every message that is queued. Woken by the first of a burst,
//! that thread would be at the socket before the second is queued: a wake-up, a system call and a packet for each. While
//! the cork is in, it waits at its first step, and then finds the whole burst.
//!
//! That thread goes round: it flushes, writes, reads until there is no more, hands out what it has read, and sleeps. Before
//! it may sleep this socket sends it round once more, so that it comes by here when it has handed out. On its way it frees what
//! it had allocated for deliveries that are read (see [`super::spent`]).

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
use lapin::message::Delivery;

use super::{spent::Spent, wakes::Wakes};

/// Holds the writes of one connection back, and the wake-ups from what it reads.
#[derive(Debug, Clone, Default)]
pub(super) struct Cork {
    held: Arc<Mutex<()>>,
    wakes: Wakes,
    spent: Spent<Delivery>,
}

impl Cork {
    /// Holds them back until what is answered is dropped: never across anything that waits.
    pub(super) fn hold(&self) -> MutexGuard<'_, ()> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The wake-ups from what is read.
    pub(super) fn wakes(&self) -> &Wakes {
        &self.wakes
    }

    /// What is left of deliveries.
    pub(super) fn spent(&self) -> &Spent<Delivery> {
        &self.spent
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
        async move { Ok(CorkedStream::new(connecting.await?, cork)) }
    }
}

/// A socket with a cork in it.
#[derive(Debug)]
pub(super) struct CorkedStream<S> {
    stream: S,
    cork: Cork,
    /// Something was read since there was last nothing to read.
    has_read: bool,
}

impl<S> CorkedStream<S> {
    fn new(stream: S, cork: Cork) -> Self {
        cork.spent.begin();
        Self { stream, cork, has_read: false }
    }

    /// What it means for those who wait.
    fn after_reading(&mut self, read: &Poll<io::Result<usize>>, context: &Context<'_>) {
        match read {
            Poll::Ready(Ok(1..)) => {
                self.has_read = true;
                self.cork.wakes.put_off();
            }
            Poll::Pending => {
                if std::mem::take(&mut self.has_read) {
                    context.waker().wake_by_ref();
                } else {
                    self.cork.wakes.let_go();
                }
            }
            // The end: nobody may come by any more.
            Poll::Ready(_) => self.cork.wakes.end(),
        }
    }

    /// lapin tells of each message that it is written, and then flushes.
    fn after_writing(&self, written: &Poll<io::Result<usize>>) {
        if matches!(written, Poll::Ready(Ok(1..))) {
            self.cork.wakes.tell_what_was_written();
        }
    }
}

impl<S> Drop for CorkedStream<S> {
    fn drop(&mut self) {
        self.cork.wakes.end();
        self.cork.spent.end();
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for CorkedStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        let read = Pin::new(&mut self.stream).poll_read(context, into);
        self.after_reading(&read, context);
        read
    }

    fn poll_read_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let read = Pin::new(&mut self.stream).poll_read_vectored(context, into);
        self.after_reading(&read, context);
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for CorkedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, from);
        self.after_writing(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, from);
        self.after_writing(&written);
        written
    }

    /// lapin flushes before it takes up what is queued, and when it has handed out: here its thread waits.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.cork.wakes.let_go();
        self.cork.spent.free();
        drop(self.cork.hold());
        Pin::new(&mut self.stream).poll_flush(context)
    }

    /// That may take as long as the other side likes.
    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.cork.wakes.end();
        Pin::new(&mut self.stream).poll_close(context)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::VecDeque,
        sync::mpsc,
        task::{Wake, Waker},
        thread,
    };

    use futures_util::task::noop_waker;

    use super::*;
    use crate::broker::rabbitmq::wakes::tests::Sleeping;

    /// A socket that takes anything, reads as it is told, and whose other side never agrees to its end.
    #[derive(Default)]
    struct Anything(VecDeque<Poll<io::Result<usize>>>);

    impl AsyncRead for Anything {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut [u8]) -> Poll<io::Result<usize>> {
            self.0.pop_front().unwrap_or(Poll::Pending)
        }
    }

    /// lapin's thread, which goes round once more for each.
    struct Round(mpsc::Sender<()>);

    impl Wake for Round {
        fn wake(self: Arc<Self>) {
            self.0.send(()).expect("someone counts");
        }
    }

    impl AsyncWrite for Anything {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(from.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    #[test]
    fn who_flushes_waits_for_the_cork_and_then_goes_on() {
        let cork = Cork::default();
        let mut stream = CorkedStream::new(Anything::default(), cork.clone());
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

    #[test]
    fn what_is_left_of_deliveries_goes_with_the_thread_that_comes_by_or_with_its_socket() {
        let cork = Cork::default();
        let mut stream = CorkedStream::new(Anything::default(), cork.clone());
        let give = || cork.spent().give(vec![Delivery::mock(1, "".into(), "".into(), false, Vec::new())]);
        give();
        assert_eq!(cork.spent().waiting(), 1);
        assert!(Pin::new(&mut stream).poll_flush(&mut Context::from_waker(&noop_waker())).is_ready());
        assert_eq!(cork.spent().waiting(), 0);
        give();
        assert_eq!(cork.spent().waiting(), 1);
        drop(stream);
        assert_eq!(cork.spent().waiting(), 0);
        give();
        assert_eq!(cork.spent().waiting(), 0, "nobody would come by");
    }

    #[test]
    fn what_was_read_wakes_its_readers_when_it_was_handed_out_and_the_thread_comes_by_for_that() {
        let cork = Cork::default();
        let mut task = Sleeping::on(cork.wakes());
        let reads = [Poll::Ready(Ok(8)), Poll::Pending, Poll::Pending, Poll::Ready(Ok(8)), Poll::Ready(Ok(0))];
        let mut stream = CorkedStream::new(Anything(reads.into()), cork.clone());
        let (round, rounds) = mpsc::channel();
        let waker = Arc::new(Round(round)).into();
        let context = &mut Context::from_waker(&waker);
        let mut read = |stream: &mut CorkedStream<_>| Pin::new(stream).poll_read(context, &mut [0; 8]);
        assert!(read(&mut stream).is_ready());
        assert!(read(&mut stream).is_pending());
        assert_eq!(rounds.try_iter().count(), 1, "it does not sleep with something to hand out");
        task.wake();
        assert_eq!(task.woken(), 0);
        assert!(Pin::new(&mut stream).poll_flush(&mut Context::from_waker(&noop_waker())).is_ready());
        assert_eq!(task.woken(), 1);
        assert!(read(&mut stream).is_pending());
        assert_eq!(rounds.try_iter().count(), 0, "now it may sleep");
        assert!(read(&mut stream).is_ready());
        task.wake();
        assert!(read(&mut stream).is_ready());
        assert_eq!(task.woken(), 1, "the broker has closed the connection");
    }

    #[test]
    fn that_a_message_was_written_wakes_its_publisher_only_with_what_is_read_next() {
        let cork = Cork::default();
        let (told, tellings) = mpsc::channel();
        let publisher = cork.wakes().patient();
        publisher.register(&Arc::new(Round(told)).into());
        let tell: Waker = publisher.into();
        let mut stream = CorkedStream::new(Anything([Poll::Ready(Ok(8))].into()), cork);
        let waker = noop_waker();
        let context = &mut Context::from_waker(&waker);
        assert!(Pin::new(&mut stream).poll_write(context, &[0; 8]).is_ready());
        tell.wake_by_ref();
        assert!(Pin::new(&mut stream).poll_flush(context).is_ready());
        assert_eq!(tellings.try_iter().count(), 0);
        assert!(Pin::new(&mut stream).poll_read(context, &mut [0; 8]).is_ready());
        assert!(Pin::new(&mut stream).poll_flush(context).is_ready());
        assert_eq!(tellings.try_iter().count(), 1);
    }

    #[test]
    fn who_waits_for_a_socket_that_is_being_closed_is_woken() {
        let cork = Cork::default();
        let mut task = Sleeping::on(cork.wakes());
        let mut stream = CorkedStream::new(Anything([Poll::Ready(Ok(8))].into()), cork.clone());
        let waker = noop_waker();
        let context = &mut Context::from_waker(&waker);
        assert!(Pin::new(&mut stream).poll_read(context, &mut [0; 8]).is_ready());
        task.wake();
        assert_eq!(task.woken(), 0);
        assert!(Pin::new(&mut stream).poll_close(context).is_pending(), "the other side does not answer");
        assert_eq!(task.woken(), 1);
    }

    #[test]
    fn who_waits_for_a_socket_that_is_gone_is_woken() {
        let cork = Cork::default();
        let mut task = Sleeping::on(cork.wakes());
        let mut stream = CorkedStream::new(Anything([Poll::Ready(Ok(8))].into()), cork.clone());
        let read = Pin::new(&mut stream).poll_read(&mut Context::from_waker(&noop_waker()), &mut [0; 8]);
        assert!(read.is_ready());
        task.wake();
        assert_eq!(task.woken(), 0);
        drop(stream);
        assert_eq!(task.woken(), 1);
        task.wake();
        assert_eq!(task.woken(), 1, "at once from now on");
    }
}
