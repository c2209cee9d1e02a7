//! Serves HTTP, with or without TLS, to anyone who comes.
//!
//! Owns connections: how many there are, how long each may take for what it does, and how large the head of a request may
//! be. It promises that who sends slowly, or much, or nothing, costs a bounded amount of memory and costs nobody else his
//! answer. What a request is about, it must not know. axum's own server has none of this, so this one drives hyper itself.

mod answer;
mod crowd;
mod head;
mod phase;
#[cfg(test)]
mod tests;
mod tls;
mod wire;

use std::{convert::Infallible, future::poll_fn, io, net::SocketAddr, pin::pin, sync::Arc, task::Poll, time::Duration};

use axum::{body::Body, extract::Request, response::Response};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{Instant, sleep_until},
};
use tokio_util::{either::Either, sync::CancellationToken, task::TaskTracker};
use tower::{Service, ServiceExt as _};
use tracing::{debug, warn};

use self::{
    answer::Answers,
    crowd::{Crowd, Place},
    phase::{BLOCKED, Overdue, Phase},
    wire::Wire,
};
pub use self::{answer::Watched, tls::Tls};
use super::problem::Problem;
use crate::telemetry::{CONNECTIONS, SHED};

/// How many fields a header may have.
const MAX_FIELDS: usize = 64;
/// How large the head of a request may be.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// How long a URL may be.
const MAX_URL_BYTES: usize = 8 * 1024;
/// How many requests may be under way on one connection of HTTP/2.
const MAX_STREAMS: u32 = 100;
/// How many of them may have been called off again before they were looked at.
const MAX_RESETS: usize = 20;
/// How many a client may make us call off.
const MAX_OWN_RESETS: usize = 100;
/// How much a connection of HTTP/2 may send ahead of what is read.
const WINDOW: u32 = 512 * 1024;
/// The same for one of its requests.
const STREAM_WINDOW: u32 = 256 * 1024;
/// How long requests under way have when the process ends.
const GRACE: Duration = Duration::from_secs(10);
/// How many connections too many are told so at once; others are only closed.
const TOLD: usize = 64;

/// The other end of the connection that a request came on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer(pub SocketAddr);

/// What answers requests.
pub trait Pages: Clone + Send + Sync + 'static {
    /// Answers one.
    fn answer(&self, peer: Peer, request: http::Request<Watched>) -> impl Future<Output = Response> + Send;
}

/// Any service that takes what axum's do, with the peer as an extension of every request.
impl<S> Pages for S
where
    S: Service<Request, Response = Response, Error = Infallible, Future: Send> + Clone + Send + Sync + 'static,
{
    async fn answer(&self, peer: Peer, request: http::Request<Watched>) -> Response {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer);
        let Ok(response) = self.clone().oneshot(request).await;
        response
    }
}

/// What a listener allows.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What it is called where its connections are counted.
    pub name: &'static str,
    /// How many connections, over all.
    pub connections: usize,
    /// How many from one address.
    pub per_address: usize,
    /// How many requests may be under way.
    pub requests: usize,
    /// With TLS, and what is needed for it.
    pub tls: Option<Arc<Tls>>,
}

impl Default for Settings {
    /// For those who only look.
    fn default() -> Self {
        Self { name: "admin", connections: 256, per_address: 256, requests: 256, tls: None }
    }
}

/// A listener that is bound, so that a port that is taken is known before anything starts.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Serves until it is told to stop, and then finishes what is under way.
pub async fn serve(listener: TcpListener, pages: impl Pages, settings: Settings, stop: CancellationToken) {
    let handles = crowd::raise_handles();
    if handles < settings.connections {
        let Settings { connections, .. } = settings;
        warn!(
            connections,
            handles, "this process may not open as many files as it may have connections; it takes fewer"
        );
    }
    let counted = metrics::gauge!(CONNECTIONS, "listener" => settings.name);
    let crowd = Arc::new(Crowd::new(settings.connections.min(handles), settings.per_address, counted));
    let listening = Arc::new(Listening {
        builder: builder(),
        pages,
        tls: settings.tls,
        requests: Arc::new(Semaphore::new(settings.requests)),
        told: Semaphore::new(TOLD),
        stop: stop.clone(),
    });
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let (stream, peer) = match accepted {
            Ok((stream, peer)) => (stream, SocketAddr::new(peer.ip().to_canonical(), peer.port())),
            Err(error) => {
                // Out of file handles, as a rule; those that are open will end.
                warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        match crowd.enter(peer.ip()) {
            Some(place) => connections.spawn(listening.clone().converse(stream, peer, place)),
            None => {
                metrics::counter!(SHED, "reason" => "connections").increment(1);
                connections.spawn(listening.clone().turn_away(stream))
            }
        };
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(GRACE, connections.wait()).await.is_err() {
        warn!("some requests were still under way at the end");
    }
}

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // Ours are finer: see `phase`.
        .header_read_timeout(None)
        // Without it hyper reads ahead while a request is worked on, to see whether its sender is gone: a system call and a
        // buffer for each request. What is taken here is done to its end anyway, and one who waits does so for a bounded time.
        .half_close(true)
        .max_headers(MAX_FIELDS)
        .max_buf_size(MAX_HEAD_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_pending_accept_reset_streams(MAX_RESETS)
        .max_local_error_reset_streams(MAX_OWN_RESETS)
        .initial_connection_window_size(WINDOW)
        .initial_stream_window_size(STREAM_WINDOW)
        .max_send_buf_size(64 * 1024)
        .max_header_list_size(u32::try_from(MAX_HEAD_BYTES).unwrap_or(u32::MAX))
        .keep_alive_interval(Some(Duration::from_secs(20)));
    builder
}

/// What all connections of a listener have in common.
struct Listening<P> {
    builder: Builder<TokioExecutor>,
    pages: P,
    tls: Option<Arc<Tls>>,
    requests: Arc<Semaphore>,
    told: Semaphore,
    stop: CancellationToken,
}

/// What ends a pause of a connection.
enum Next<T> {
    Ended(T),
    Stop,
    Overdue,
}

impl<P: Pages> Listening<P> {
    /// One connection, from its first byte to its end.
    async fn converse(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, _place: Place) {
        _ = stream.set_nodelay(true);
        let stream = match &self.tls {
            None => Either::Left(stream),
            Some(tls) => match tls.accept(stream).await {
                Some(stream) => Either::Right(stream),
                None => return,
            },
        };
        let phase = Arc::new(Phase::new(BLOCKED));
        self.requests(Wire::new(stream, phase.clone()), peer, &phase).await;
    }

    /// The requests of one connection.
    async fn requests<S>(&self, wire: Wire<S>, peer: SocketAddr, phase: &Arc<Phase>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let answers = Answers {
            pages: self.pages.clone(),
            peer: Peer(peer),
            phase: phase.clone(),
            requests: self.requests.clone(),
        };
        let answers = Arc::new(answers);
        let service = service_fn(move |request| answers.clone().answer(request));
        let mut connection = Box::pin(self.builder.serve_connection(TokioIo::new(wire), service));
        // In a set by itself, where it is asked only when it was woken: all connections wait for it under one lock.
        let mut stop = FuturesUnordered::from_iter([self.stop.cancelled()]);
        let mut stopping = false;
        let mut alarm = pin!(sleep_until(Instant::now()));
        loop {
            let next = poll_fn(|context| {
                if let Poll::Ready(ended) = connection.as_mut().poll(context) {
                    return Poll::Ready(Next::Ended(ended));
                }
                if !stopping && stop.poll_next_unpin(context).is_ready() {
                    return Poll::Ready(Next::Stop);
                }
                let Some(due) = phase.due() else { return Poll::Pending };
                // Set anew only where it would ring too late, and where it has rung too early: what is due changes with
                // every request, and a timer costs more than all else here.
                if alarm.deadline() > due {
                    alarm.as_mut().reset(due);
                }
                while alarm.as_mut().poll(context).is_ready() {
                    if alarm.deadline() >= due {
                        return Poll::Ready(Next::Overdue);
                    }
                    alarm.as_mut().reset(due);
                }
                Poll::Pending
            });
            match next.await {
                Next::Ended(ended) => {
                    if let Err(error) = ended {
                        debug!(error, "a connection ended");
                    }
                    return;
                }
                Next::Stop => {
                    stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
                Next::Overdue => match phase.overdue() {
                    Overdue::Finish => connection.as_mut().graceful_shutdown(),
                    Overdue::Say => {}
                    Overdue::Drop => return,
                },
            }
        }
    }

    /// A connection too many: it is told so, as far as that costs little, and closed.
    async fn turn_away(self: Arc<Self>, stream: TcpStream) {
        if self.tls.is_none()
            && let Ok(_permit) = self.told.try_acquire()
        {
            say_and_close(stream, &Problem::overloaded()).await;
        }
    }
}

/// Says something in plain HTTP/1.1, whatever was asked, and closes the connection.
async fn say_and_close(stream: TcpStream, problem: &Problem) {
    use tokio::io::AsyncWriteExt as _;

    let phase = Arc::new(Phase::new(BLOCKED));
    phase.give_up_rest();
    let mut wire = Wire::new(stream, phase);
    let said = async {
        wire.write_all(&problem.to_http1()).await?;
        wire.shutdown().await
    };
    // Whoever does not listen has been told.
    _ = tokio::time::timeout(Duration::from_secs(2), said).await;
}
