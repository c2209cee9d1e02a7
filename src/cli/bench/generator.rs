//! Sends requests when they are due, whether or not earlier ones were answered: a server that stalls is seen to.
//!
//! A generator that waits for one answer before it sends the next measures a stall once, however many requests would
//! have met it. Here every request has its time, and its latency counts from that.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, header::CONTENT_TYPE};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, sync::Semaphore, task::JoinSet};

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
    let plan = Arc::new(plan);
    let mut connections = Vec::with_capacity(plan.connections);
    for _ in 0..plan.connections {
        connections.push(connect(&plan.gateway).await?);
    }
    let shared = Arc::new(Shared { begin: Instant::now(), next: AtomicU64::new(0), due: Semaphore::new(0), plan });
    if let Some(rate) = shared.plan.rate {
        let shared = shared.clone();
        std::thread::spawn(move || shared.pace(rate));
    }
    let mut tasks = JoinSet::new();
    for connection in connections {
        tasks.spawn(one(shared.clone(), connection, keep_answers));
    }
    let mut all = Sent::default();
    while let Some(done) = tasks.join_next().await {
        let sent = done.map_err(|error| Failure::Failed(error.to_string()))??;
        all.latencies.extend(sent.latencies);
        all.lags.extend(sent.lags);
        all.answers.extend(sent.answers);
        all.refused += sent.refused;
    }
    all.took = shared.begin.elapsed();
    Ok(all)
}

/// What all connections share.
struct Shared {
    plan: Arc<Plan>,
    begin: Instant,
    /// The number of the next request.
    next: AtomicU64,
    /// A permit for every request that is due.
    due: Semaphore,
}

impl Shared {
    /// When a request is due: many a second come in groups, as those of upstream systems do.
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a time")]
    fn due(&self, number: u64, rate: f64) -> Instant {
        let evenly = number as f64 / rate;
        if rate * GROUP.as_secs_f64() <= 1.0 {
            return self.begin + Duration::from_secs_f64(evenly);
        }
        self.begin + GROUP * (evenly / GROUP.as_secs_f64()) as u32
    }

    /// Lets requests go when they are due. A thread: the runtime's timers count in milliseconds, and what they add would be
    /// taken for the gateway's.
    #[expect(clippy::disallowed_methods, reason = "the thread is its own")]
    fn pace(&self, rate: f64) {
        let end = self.begin + Duration::from_secs(self.plan.seconds);
        for number in 0.. {
            let due = self.due(number, rate);
            if due >= end {
                break;
            }
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            self.due.add_permits(1);
        }
        // Each connection comes for one more, and sees that the time is over. Closed, those that are late would be left out.
        self.due.add_permits(self.plan.connections);
    }
}

async fn connect(address: &str) -> Result<SendRequest<Full<Bytes>>, Failure> {
    let failed = |error: String| Failure::Unreachable(format!("the gateway at {address}: {error}"));
    let stream = TcpStream::connect(address).await.map_err(|error| failed(error.to_string()))?;
    _ = stream.set_nodelay(true);
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| failed(error.to_string()))?;
    tokio::spawn(async move { _ = connection.await });
    Ok(sender)
}

async fn one(
    shared: Arc<Shared>,
    mut connection: SendRequest<Full<Bytes>>,
    keep_answers: bool,
) -> Result<Sent, Failure> {
    let plan = &shared.plan;
    let end = shared.begin + Duration::from_secs(plan.seconds);
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
        if connection.ready().await.is_err() {
            connection = connect(&plan.gateway).await?;
        }
        let begun = Instant::now();
        let response = connection.send_request(request).await.map_err(|error| failed(&error))?;
        let taken = response.status().is_success();
        let answer = response.into_body().collect().await.map_err(|error| failed(&error))?.to_bytes();
        if taken {
            sent.latencies.push(due.elapsed());
            sent.lags.push(begun - due);
            if keep_answers {
                let now = clock::now();
                let wall = |at: Instant| now - Micros::try_from(at.elapsed().as_micros()).unwrap_or(0);
                sent.answers.push(Answer { due: wall(due), sent: wall(begun), body: answer });
            }
        } else {
            sent.refused += 1;
        }
    }
}
