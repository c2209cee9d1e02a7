//! Sends requests when they are due, whether or not earlier ones were answered: a server that stalls is seen to.
//!
//! A generator that waits for one answer before it sends the next measures a stall once, however many requests would
//! have met it. Here every request has its time, and its latency counts from that.
//!
//! It shares the machine with what it measures, so it is made to take little of it: few threads that hand nothing to each
//! other, and one task a connection.

use std::{
    num::NonZero,
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::Poll,
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{
    FutureExt as _,
    future::{Fuse, FusedFuture, poll_fn, try_join_all},
};
use http::{Request, Response, header::CONTENT_TYPE};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    runtime,
    sync::{Barrier, Semaphore, mpsc},
    task::JoinSet,
};

use crate::{cli::Failure, clock, job::Micros};

/// How often requests are let go where more than one would be due in that time.
const GROUP: Duration = Duration::from_millis(2);

/// What is sent, and how fast.
pub(super) struct Plan {
    pub(super) gateway: String,
    pub(super) connections: usize,
    pub(super) seconds: u64,
    /// Requests a second; as many as are answered, if there is none.
    pub(super) rate: Option<f64>,
    /// The request with this number.
    pub(super) request: Arc<dyn Fn(u64) -> Send + std::marker::Send + Sync>,
}

/// One request.
pub(super) struct Send {
    pub(super) path: &'static str,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Bytes,
}

/// What was answered to a request that was taken.
#[derive(Debug)]
pub(super) struct Answer {
    /// When the request was due, by the wall clock.
    pub(super) due: Micros,
    /// When it was sent.
    pub(super) sent: Micros,
    pub(super) body: Bytes,
}

/// What became of them.
#[derive(Debug, Default)]
pub(super) struct Sent {
    /// From the time that each was due to its answer, of those that were taken.
    pub(super) latencies: Vec<Duration>,
    /// How late each of them was sent: by that, the machine was too busy to measure on.
    pub(super) lags: Vec<Duration>,
    /// The answers of those that were taken, if they were asked for.
    pub(super) answers: Vec<Answer>,
    pub(super) refused: u64,
    pub(super) took: Duration,
}

/// Sends until the time is over.
pub(super) async fn send(plan: Plan, keep_answers: bool) -> Result<Sent, Failure> {
    let (connections, paced) = (plan.connections, plan.rate);
    // As many threads as there are cores for half of the work, which is about its part.
    let threads = (thread::available_parallelism().map_or(1, NonZero::get) / 2).clamp(1, connections.max(1));
    let shared = Arc::new(Shared {
        plan,
        connected: Barrier::new(threads + 1),
        begin: OnceLock::new(),
        next: AtomicU64::new(0),
        due: Semaphore::new(0),
    });
    let (pacer, paces) = mpsc::unbounded_channel();
    let mut paces = Some(paces);
    let part = |thread: usize| {
        let (shared, connections) = (shared.clone(), (thread..connections).step_by(threads).count());
        let paces = paces.take();
        tokio::task::spawn_blocking(move || {
            match runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime.block_on(part(shared, connections, paces, keep_answers)),
                Err(error) => {
                    // The others wait for it.
                    runtime::Handle::current().block_on(shared.connected.wait());
                    Err(Failure::Failed(error.to_string()))
                }
            }
        })
    };
    let parts: Vec<_> = (0..threads).map(part).collect();
    shared.connected.wait().await;
    if let Some(rate) = paced {
        let shared = shared.clone();
        thread::spawn(move || shared.pace(rate, &pacer));
    }
    let mut all = Sent::default();
    for part in try_join_all(parts).await.map_err(|error| Failure::Failed(error.to_string()))? {
        all.add(part?);
    }
    all.took = shared.begin().elapsed();
    Ok(all)
}

/// What one thread sends. One of them lets requests go at the pace that it is told: whoever is woken within a thread costs it
/// hardly anything, from without a system call each.
async fn part(
    shared: Arc<Shared>,
    connections: usize,
    paces: Option<mpsc::UnboundedReceiver<usize>>,
    keep_answers: bool,
) -> Result<Sent, Failure> {
    let connections = try_join_all((0..connections).map(|_| Connection::to(&shared.plan.gateway))).await;
    if let Some(told) = paces {
        tokio::spawn(Paces { shared: shared.clone(), told }.follow());
    }
    shared.connected.wait().await;
    let mut tasks = JoinSet::new();
    for connection in connections? {
        tasks.spawn(one(shared.clone(), connection, keep_answers));
    }
    let mut all = Sent::default();
    while let Some(done) = tasks.join_next().await {
        all.add(done.map_err(|error| Failure::Failed(error.to_string()))??);
    }
    Ok(all)
}

impl Sent {
    fn add(&mut self, other: Self) {
        self.latencies.extend(other.latencies);
        self.lags.extend(other.lags);
        self.answers.extend(other.answers);
        self.refused += other.refused;
    }
}

/// What all connections share.
struct Shared {
    plan: Plan,
    /// Where all wait for each other before the time begins.
    connected: Barrier,
    begin: OnceLock<Instant>,
    /// The number of the next request.
    next: AtomicU64,
    /// A permit for every request that is due.
    due: Semaphore,
}

impl Shared {
    fn begin(&self) -> Instant {
        *self.begin.get_or_init(Instant::now)
    }

    /// When a request is due: many a second come in groups, as those of upstream systems do.
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a time")]
    fn due(&self, number: u64, rate: f64) -> Instant {
        let evenly = number as f64 / rate;
        if rate * GROUP.as_secs_f64() <= 1.0 {
            return self.begin() + Duration::from_secs_f64(evenly);
        }
        self.begin() + GROUP * (evenly / GROUP.as_secs_f64()) as u32
    }

    /// Lets requests go when they are due. A thread: the runtime's timers count in milliseconds, and what they add would be
    /// taken for the gateway's.
    #[expect(clippy::disallowed_methods, reason = "the thread is its own")]
    fn pace(&self, rate: f64, pacer: &mpsc::UnboundedSender<usize>) {
        let end = self.begin() + Duration::from_secs(self.plan.seconds);
        let let_go = |together| {
            // A thread that has failed lets nothing go any more, and the others still go on.
            if pacer.send(together).is_err() {
                self.due.add_permits(together);
            }
        };
        let mut next = 0;
        loop {
            let due = self.due(next, rate);
            if due >= end {
                break;
            }
            let mut together = 0;
            while self.due(next, rate) == due {
                (next, together) = (next + 1, together + 1);
            }
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let_go(together);
        }
        // Each connection comes for one more, and sees that the time is over. Closed, those that are late would be left out.
        let_go(self.plan.connections);
    }
}

/// Lets requests go as it is told, for as long as its thread is there; what it was told and has not done by then, it does at the
/// end, for others wait for it.
struct Paces {
    shared: Arc<Shared>,
    told: mpsc::UnboundedReceiver<usize>,
}

impl Paces {
    async fn follow(mut self) {
        while let Some(together) = self.told.recv().await {
            self.shared.due.add_permits(together);
        }
    }
}

impl Drop for Paces {
    fn drop(&mut self) {
        self.told.close();
        while let Ok(together) = self.told.try_recv() {
            self.shared.due.add_permits(together);
        }
    }
}

/// A connection that whoever asks drives himself, with nobody to be woken in between.
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: Fuse<http1::Connection<TokioIo<TcpStream>, Full<Bytes>>>,
}

impl Connection {
    async fn to(address: &str) -> Result<Self, Failure> {
        let failed = |error: String| Failure::Unreachable(format!("the gateway at {address}: {error}"));
        let stream = TcpStream::connect(address).await.map_err(|error| failed(error.to_string()))?;
        _ = stream.set_nodelay(true);
        let (sender, driver) = handshake(TokioIo::new(stream)).await.map_err(|error| failed(error.to_string()))?;
        Ok(Self { sender, driver: driver.fuse() })
    }

    /// Whether it can be used once more.
    async fn is_open(&mut self) -> bool {
        let Self { sender, driver } = self;
        // Nobody has looked after it since the last answer.
        let ended =
            poll_fn(|context| Poll::Ready(driver.is_terminated() || driver.poll_unpin(context).is_ready())).await;
        !ended && driven(driver, sender.ready()).await.is_ok()
    }

    async fn send(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Response<Bytes>> {
        let Self { sender, driver } = self;
        let answered = async {
            let (head, body) = sender.send_request(request).await?.into_parts();
            Ok(Response::from_parts(head, body.collect().await?.to_bytes()))
        };
        driven(driver, answered).await
    }
}

/// Waits for something that a connection brings. How the connection ends, it tells whoever waits for it.
async fn driven<T>(driver: &mut (impl FusedFuture + Unpin), waiting: impl Future<Output = T>) -> T {
    let mut waiting = pin!(waiting);
    poll_fn(|context| {
        loop {
            if let Poll::Ready(value) = waiting.as_mut().poll(context) {
                return Poll::Ready(value);
            }
            if driver.is_terminated() || driver.poll_unpin(context).is_pending() {
                break;
            }
        }
        // What has come in now wakes whoever waits for it, which is this.
        Poll::Pending
    })
    .await
}

async fn one(shared: Arc<Shared>, mut connection: Connection, keep_answers: bool) -> Result<Sent, Failure> {
    let plan = &shared.plan;
    let end = shared.begin() + Duration::from_secs(plan.seconds);
    let mut sent = Sent::default();
    loop {
        if plan.rate.is_some() {
            // It is never closed.
            let Ok(permit) = shared.due.acquire().await else { return Ok(sent) };
            permit.forget();
        }
        let number = shared.next.fetch_add(1, Relaxed);
        let due = plan.rate.map_or_else(Instant::now, |rate| shared.due(number, rate));
        if due >= end {
            return Ok(sent);
        }
        let Send { path, headers, body } = (plan.request)(number);
        let mut request = Request::post(path).header("host", "localhost").header(CONTENT_TYPE, "application/json");
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let failed = |error: &dyn std::fmt::Display| Failure::Failed(format!("a request broke off: {error}"));
        let request = request.body(Full::new(body)).map_err(|error| failed(&error))?;
        // The answer before may have been read to its end before its connection is ready for the next; and one that was
        // closed after an answer is made anew.
        if !connection.is_open().await {
            connection = Connection::to(&plan.gateway).await?;
        }
        let begun = Instant::now();
        let response = connection.send(request).await.map_err(|error| failed(&error))?;
        let (taken, answer) = (response.status().is_success(), response.into_body());
        if taken {
            sent.latencies.push(due.elapsed());
            sent.lags.push(begun - due);
            if keep_answers {
                let now = clock::now();
                let wall = |at: Instant| now - Micros::try_from(at.elapsed().as_micros()).unwrap_or(0);
                // What was read with it is far larger.
                let body = Bytes::copy_from_slice(&answer);
                sent.answers.push(Answer { due: wall(due), sent: wall(begun), body });
            }
        } else {
            sent.refused += 1;
        }
    }
}
