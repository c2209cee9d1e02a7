//! How fast jobs that wait are worked off, results stored.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use serde_json::json;
use warren_messages::{Message as _, codec, probe::Probe};

use super::{
    Drain,
    installation::{Installation, Process},
    measure::{END, LOOK, Looked, client, gateway},
    summary::Report,
};
use crate::{
    app,
    broker::{Outgoing, Publish as _, rabbitmq::Producer},
    cli::Failure,
    clock,
    id::Minter,
    job::{Envelope, Kind, Tenant},
};

/// How many are published at once before a drain.
const PRELOAD: usize = 1024;
/// How many one request holds, on the embedded engine.
const FED: usize = 1000;
/// What is drained before this share is start-up.
const WARM: f64 = 0.02;
/// How many are drained at a time before those that are measured.
const BEFORE: usize = 200_000;
/// How seldom it is looked at while the end is far: to be asked costs a process about as much as a hundred jobs, and with fifty
/// kinds several times that.
const SELDOM: Duration = Duration::from_millis(500);

pub(super) async fn measure(installation: &Installation, what: &Drain) -> Result<Report, Failure> {
    if installation.servers.is_none() && what.workers > 1 {
        let detail = "the embedded engine is one process: for more workers set AMQP_URL and DATABASE_URL";
        return Err(Failure::Usage(detail.into()));
    }
    let mut rows = 0;
    while rows < what.rows {
        let some = BEFORE.min(what.rows - rows);
        once(installation, what, some).await?;
        rows += some;
        eprintln!("{rows} of {} rows are there before those that are measured", what.rows);
    }
    once(installation, what, what.jobs).await
}

/// Fills the queues and drains them.
async fn once(installation: &Installation, what: &Drain, jobs: usize) -> Result<Report, Failure> {
    let kinds = &installation.drained;
    if let Some(servers) = &installation.servers {
        let producer = Producer::open(&servers.broker, &installation.kinds);
        let message = Probe { payload_bytes: what.payload_bytes, ..Probe::default() };
        preload(&producer, kinds, &codec::encode(&message).unwrap_or_default(), jobs).await?;
    }
    let mut processes = Vec::new();
    for _ in 0..what.workers {
        processes.push(installation.start("worker")?);
    }
    let all: Vec<_> = processes.iter().collect();
    let mut looked = Looked::at(installation, &all);
    // On the embedded engine one process has it all, so its jobs begin as they come in: what is measured is both together.
    let feeding = installation.servers.is_none().then(|| {
        let body = json!({ "payload_bytes": what.payload_bytes });
        let item = |number: usize| json!({ "kind": kinds[number % kinds.len()].as_str(), "body": body }).to_string();
        let request = Bytes::from(format!("[{}]", (0..FED).map(item).collect::<Vec<_>>().join(",")));
        tokio::spawn(feed(gateway(&processes[0]), request, jobs.div_ceil(FED)))
    });
    let jobs = if feeding.is_some() { jobs.next_multiple_of(FED) } else { jobs };
    let begin = Instant::now();
    let (mut warm, mut last) = (None, (0, begin));
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share")]
    let warm_from = (jobs as f64 * WARM) as u64;
    let client = client()?;
    while last.0 < jobs as u64 {
        let (mut done, asked) = (0, Instant::now());
        for process in &processes {
            done += finished(&client, process, kinds).await?;
        }
        let now = Instant::now();
        if done > last.0 {
            last = (done, now);
            // Where the machine kept an answer waiting, more is done by now than was told.
            let is_fresh = (now - asked) * 10 < now - begin;
            if warm.is_none() && is_fresh && (warm_from..jobs as u64 / 2).contains(&done) {
                warm = Some(last);
                looked = Looked::at(installation, &all);
            }
        } else if now - last.1 > END {
            return Err(Failure::Failed(format!("only {done} of {jobs} jobs have ended")));
        }
        tokio::time::sleep(next_look(jobs as u64, last.0, begin.elapsed())).await;
    }
    if let Some(feeding) = feeding {
        feeding.await.map_err(|error| Failure::Failed(error.to_string()))??;
    }
    let (before, since) = warm.unwrap_or((0, begin));
    let mut report = looked.report(installation, "drain", last.0 - before, last.1 - since).await?;
    (report.jobs, report.seconds) = (jobs as u64, (last.1 - begin).as_secs_f64());
    // What is finished is recorded and settled before they end.
    processes.into_iter().for_each(Process::end);
    Ok(report)
}

/// How long to wait before the next look: half of the time that is left at the rate so far, and no more than of the time that it
/// has taken.
#[expect(clippy::cast_precision_loss, reason = "a guess")]
fn next_look(jobs: u64, done: u64, took: Duration) -> Duration {
    let left = jobs.saturating_sub(done) as f64 / done.max(1) as f64;
    (took.mul_f64(left.min(1.0)) / 2).clamp(LOOK, SELDOM)
}

async fn preload(producer: &Producer, kinds: &[Kind], body: &[u8], jobs: usize) -> Result<(), Failure> {
    let began = Instant::now();
    while let Err(why) = producer.health() {
        if began.elapsed() > END {
            return Err(Failure::Unreachable(why));
        }
        tokio::time::sleep(LOOK).await;
    }
    let ids = app::generate_ids()?;
    let minter = Minter::new(&ids.dedup_key, &ids.tag_keys).map_err(|error| Failure::Failed(error.to_string()))?;
    for begin in (0..jobs).step_by(PRELOAD) {
        let publishes = (begin..jobs.min(begin + PRELOAD)).map(|number| {
            let (now, kind) = (clock::now(), kinds[number % kinds.len()].clone());
            let envelope = Envelope::new(minter.mint(&Tenant::DEFAULT, now), kind, Probe::VERSION, now);
            producer.publish(Outgoing { envelope, body: body.to_vec() })
        });
        for published in join_all(publishes).await {
            published.map_err(|error| Failure::Unreachable(error.to_string()))?;
        }
    }
    Ok(())
}

async fn feed(gateway: String, request: Bytes, requests: usize) -> Result<(), Failure> {
    let client = client()?;
    for _ in 0..requests {
        let sent = client.post(format!("http://{gateway}/v1/jobs")).header("content-type", "application/json");
        let answer = sent.body(request.clone()).send().await.map_err(|error| Failure::Failed(error.to_string()))?;
        _ = answer.bytes().await;
    }
    Ok(())
}

/// How many jobs of these kinds a process has done.
async fn finished(client: &reqwest::Client, process: &Process, kinds: &[Kind]) -> Result<u64, Failure> {
    let failed = |error: reqwest::Error| Failure::Unreachable(format!("the metrics of a process: {error}"));
    let text =
        client.get(format!("{}/metrics", process.admin)).send().await.map_err(failed)?.text().await.map_err(failed)?;
    let done = text.lines().filter_map(|line| {
        let (kind, rest) = line.strip_prefix("warren_jobs_finished_total{kind=\"")?.split_once('"')?;
        let count =
            rest.strip_prefix(",outcome=\"ok\"} ").filter(|_| kinds.iter().any(|known| known.as_str() == kind))?;
        count.parse::<u64>().ok()
    });
    Ok(done.sum())
}
