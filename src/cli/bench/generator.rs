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
use tokio::{net::TcpStream, task::JoinSet, time::sleep_until};

use crate::{cli::Failure, clock, job::Micros};

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

/// What became of them.
#[derive(Debug, Default)]
pub(super) struct Sent {
    /// From the time that each was due to its answer, of those that were taken.
    pub(super) latencies: Vec<Duration>,
    /// The answers of those that were taken, if they were asked for, and when each request was due by the wall clock.
    pub(super) answers: Vec<(Micros, Bytes)>,
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
    let (next, begin) = (Arc::new(AtomicU64::new(0)), Instant::now());
    let mut tasks = JoinSet::new();
    for connection in connections {
        tasks.spawn(one(plan.clone(), connection, next.clone(), begin, keep_answers));
    }
    let mut all = Sent::default();
    while let Some(done) = tasks.join_next().await {
        let sent = done.map_err(|error| Failure::Failed(error.to_string()))??;
        all.latencies.extend(sent.latencies);
        all.answers.extend(sent.answers);
        all.refused += sent.refused;
    }
    all.took = begin.elapsed();
    Ok(all)
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
    plan: Arc<Plan>,
    mut connection: SendRequest<Full<Bytes>>,
    next: Arc<AtomicU64>,
    begin: Instant,
    keep_answers: bool,
) -> Result<Sent, Failure> {
    let end = begin + Duration::from_secs(plan.seconds);
    let mut sent = Sent::default();
    loop {
        let number = next.fetch_add(1, Relaxed);
        #[expect(clippy::cast_precision_loss, reason = "a time")]
        let due = plan.rate.map_or_else(Instant::now, |rate| begin + Duration::from_secs_f64(number as f64 / rate));
        if due >= end {
            return Ok(sent);
        }
        if plan.rate.is_some() {
            sleep_until(due.into()).await;
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
        let response = connection.send_request(request).await.map_err(|error| failed(&error))?;
        let taken = response.status().is_success();
        let answer = response.into_body().collect().await.map_err(|error| failed(&error))?.to_bytes();
        if taken {
            sent.latencies.push(due.elapsed());
            if keep_answers {
                let ago = Micros::try_from(due.elapsed().as_micros()).unwrap_or(0);
                sent.answers.push((clock::now() - ago, answer));
            }
        } else {
            sent.refused += 1;
        }
    }
}
