//! The modes: what is started, sent and looked at.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use reqwest::Client;
use serde_json::Value;

use super::{
    Load, Mode,
    cpu::{Server, cpu_us},
    drain,
    generator::{self, Answer, Plan, Send, Sent},
    installation::{Installation, Process},
    summary::{Percentiles, Report},
};
use crate::{cli::Failure, job::Micros};

/// How often it is looked at.
pub(super) const LOOK: Duration = Duration::from_millis(10);
/// How long it is waited for what was taken to end.
pub(super) const END: Duration = Duration::from_mins(2);
/// How many jobs are looked at one by one.
const LOOKED_AT: usize = 10_000;
/// Between two jobs on an idle installation.
const IDLE_RATE: f64 = 50.0;

const PROBE: &str = "/v1/jobs/warren.probe";
/// About as much as a small event holds. Delivered never, also where workers run: `.invalid` resolves nowhere (RFC 6761).
const WEBHOOK: &str = r#"{"url":"https://bench.invalid/hook","event_type":"order.paid","event_id":"evt_1","body":{"to":"someone@example.com","subject":"hello hello hello hello hello hello hello hello hello hello hello hello","data":[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23]}}"#;

pub(super) async fn measure(installation: &Installation, mode: &Mode) -> Result<Report, Failure> {
    match mode {
        Mode::Accept(load) => accept(installation, load).await,
        Mode::Drain(what) => drain::measure(installation, what).await,
        Mode::Latency(load) => latency(installation, load).await,
        Mode::Mixed(load) => mixed(installation, load).await,
    }
}

/// The processes that are looked at, and what they had used before.
pub(super) struct Looked<'a> {
    processes: Vec<(&'a Process, u64)>,
    servers: Vec<(&'a Server, u64)>,
    generator: u64,
}

impl<'a> Looked<'a> {
    pub(super) fn at(installation: &'a Installation, processes: &[&'a Process]) -> Self {
        Self {
            // First: they work on while the others are looked at.
            processes: processes.iter().map(|process| (*process, process.cpu_us())).collect(),
            servers: installation.nearby.iter().map(|server| (server, server.cpu_us())).collect(),
            generator: cpu_us(std::process::id()),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    pub(super) async fn report(
        self,
        installation: &Installation,
        mode: &'static str,
        jobs: u64,
        took: Duration,
    ) -> Result<Report, Failure> {
        let a_job = |used: u64| used as f64 / jobs.max(1) as f64;
        let generator = a_job(cpu_us(std::process::id()) - self.generator);
        let mut cpu = BTreeMap::from([("(this generator)".to_owned(), generator)]);
        let mut memory = BTreeMap::<_, u64>::new();
        // Several with the same roles are one.
        for (process, before) in self.processes {
            *cpu.entry(process.roles.to_owned()).or_default() += a_job(process.cpu_us() - before);
            *memory.entry(process.roles.to_owned()).or_default() += process.peak_memory_mib();
        }
        for (server, before) in self.servers {
            cpu.insert(server.name.to_owned(), a_job(server.cpu_us().saturating_sub(before)));
        }
        Ok(Report {
            mode,
            durability: installation.durability().await?,
            jobs,
            seconds: took.as_secs_f64(),
            jobs_a_second: jobs as f64 / took.as_secs_f64(),
            refused: 0,
            latencies_ms: BTreeMap::new(),
            cpu_us_a_job: cpu,
            peak_memory_mib: memory,
        })
    }
}

pub(super) fn gateway(process: &Process) -> String {
    process.gateway.clone().unwrap_or_default()
}

fn plan(
    process: &Process,
    load: &Load,
    rate: Option<f64>,
    request: impl Fn(u64) -> Send + std::marker::Send + Sync + 'static,
) -> Plan {
    Plan {
        gateway: gateway(process),
        connections: load.connections.unwrap_or_else(|| if rate.is_some() { 64 } else { 256 }),
        seconds: load.seconds,
        rate,
        request: Arc::new(request),
    }
}

async fn accept(installation: &Installation, load: &Load) -> Result<Report, Failure> {
    let process = installation.start("gateway")?;
    ready(&process).await?;
    let batch = load.batch.max(1);
    let (path, body) = if batch == 1 {
        ("/v1/jobs/webhook.deliver", WEBHOOK.to_owned())
    } else {
        let item = format!(r#"{{"kind":"webhook.deliver","body":{WEBHOOK}}}"#);
        ("/v1/jobs", format!("[{}]", vec![item; batch].join(",")))
    };
    let body = Bytes::from(body);
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let rate = load.rate.map(|rate| f64::from(rate) / batch as f64);
    let looked = Looked::at(installation, &[&process]);
    let plan = plan(&process, load, rate, move |_| Send { path, headers: Vec::new(), body: body.clone() });
    let Sent { latencies, refused, took, .. } = generator::send(plan, false).await?;
    let jobs = (latencies.len() * batch) as u64;
    let mut report = looked.report(installation, "accept", jobs, took).await?;
    report.refused = refused;
    report.latencies_ms.extend(Percentiles::of(latencies).map(|spread| ("due to confirmed", spread)));
    Ok(report)
}

async fn latency(installation: &Installation, load: &Load) -> Result<Report, Failure> {
    let (first, second) = pair(installation)?;
    let all: Vec<_> = [Some(&first), second.as_ref()].into_iter().flatten().collect();
    for process in &all {
        ready(process).await?;
    }
    let looked = Looked::at(installation, &all);
    let rate = load.rate.map_or(IDLE_RATE, f64::from);
    let plan =
        plan(&first, load, Some(rate), |_| Send { path: PROBE, headers: Vec::new(), body: Bytes::from_static(b"{}") });
    let Sent { latencies, lags, answers, refused, took } = generator::send(plan, true).await?;
    let jobs = latencies.len() as u64;
    let mut report = looked.report(installation, "latency", jobs, took).await?;
    let ends = ends(&first, &answers).await?;
    report.refused = refused;
    let since = |from: fn(&End) -> Micros, to: fn(&End) -> Option<Micros>| {
        ends.iter().filter_map(|end| Some(between(from(end), to(end)?))).collect()
    };
    let spreads = [
        ("due to sent", lags),
        ("due to confirmed", latencies),
        ("due to started", since(|end| end.due, |end| end.started)),
        ("due to recorded", since(|end| end.due, |end| end.recorded)),
        ("accepted to started", since(|end| end.accepted, |end| end.started)),
        ("accepted to recorded", since(|end| end.accepted, |end| end.recorded)),
        ("sent to started", since(|end| end.sent, |end| end.started)),
        ("sent to recorded", since(|end| end.sent, |end| end.recorded)),
    ];
    for (what, all) in spreads {
        report.latencies_ms.extend(Percentiles::of(all).map(|spread| (what, spread)));
    }
    Ok(report)
}

async fn mixed(installation: &Installation, load: &Load) -> Result<Report, Failure> {
    let (first, second) = pair(installation)?;
    let all: Vec<_> = [Some(&first), second.as_ref()].into_iter().flatten().collect();
    for process in &all {
        ready(process).await?;
    }
    let looked = Looked::at(installation, &all);
    let request = |number: u64| {
        let (headers, body): (Vec<_>, &'static [u8]) = match number % 10 {
            0 => (vec![("warren-delay", "1s".into())], b"{}"),
            1 => (vec![("idempotency-key", format!("key-{}", number / 20))], b"{}"),
            2 => (Vec::new(), b"{\"fail_attempts\":1}"),
            3 => (Vec::new(), b"{\"follow_ups\":1}"),
            _ => (Vec::new(), b"{\"payload_bytes\":200}"),
        };
        Send { path: PROBE, headers, body: Bytes::from_static(body) }
    };
    let rate = f64::from(load.rate.unwrap_or(1000));
    let Sent { latencies, answers, refused, took, .. } =
        generator::send(plan(&first, load, Some(rate), request), true).await?;
    let jobs = latencies.len() as u64;
    let mut report = looked.report(installation, "mixed", jobs, took).await?;
    let ends = ends(&first, &answers).await?;
    report.refused = refused;
    let recorded = ends.iter().filter_map(|end| Some(between(end.due, end.recorded?))).collect();
    for (what, all) in [("due to confirmed", latencies), ("due to recorded", recorded)] {
        report.latencies_ms.extend(Percentiles::of(all).map(|spread| (what, spread)));
    }
    Ok(report)
}

/// A gateway, and a worker with the rest; on the embedded engine one process is both.
fn pair(installation: &Installation) -> Result<(Process, Option<Process>), Failure> {
    let first = installation.start("gateway")?;
    let second = match &installation.servers {
        Some(_) => Some(installation.start("worker dispatcher keeper")?),
        None => None,
    };
    Ok((first, second))
}

pub(super) fn client() -> Result<Client, Failure> {
    Client::builder().no_proxy().build().map_err(|error| Failure::Failed(format!("no HTTP client: {error}")))
}

async fn ready(process: &Process) -> Result<(), Failure> {
    let (client, began) = (client()?, Instant::now());
    loop {
        let answer = client.get(format!("{}/readyz", process.admin)).send().await;
        if answer.is_ok_and(|answer| answer.status().is_success()) {
            return Ok(());
        }
        if began.elapsed() > END {
            return Err(Failure::Failed(format!("the process with the roles {} is not ready", process.roles)));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What is known of a job: when its request was due and when it was sent, when the gateway took it, when it started, and
/// when the transaction that recorded it began.
struct End {
    due: Micros,
    sent: Micros,
    /// The millisecond in which the gateway made its id, from the beginning of it.
    accepted: Micros,
    started: Option<Micros>,
    recorded: Option<Micros>,
}

fn between(from: Micros, to: Micros) -> Duration {
    Duration::from_micros(u64::try_from(to - from).unwrap_or(0))
}

/// Looks at some of the jobs that were taken, spread over all of them, once they are over.
async fn ends(process: &Process, answers: &[Answer]) -> Result<Vec<End>, Failure> {
    let (client, gateway) = (client()?, gateway(process));
    let every = answers.len().div_ceil(LOOKED_AT).max(1);
    let mut ends = Vec::new();
    for Answer { due, sent, body } in answers.iter().step_by(every) {
        let answer: Value = serde_json::from_slice(body).unwrap_or_default();
        let id = answer["id"].as_str().unwrap_or_default();
        let url = format!("http://{gateway}/v1/jobs/{id}?wait=30");
        let failed = |error: reqwest::Error| Failure::Failed(error.to_string());
        let job: Value = client.get(url).send().await.map_err(failed)?.json().await.map_err(failed)?;
        if job["state"] != "succeeded" {
            return Err(Failure::Failed(format!("job {id} is {}", job["state"])));
        }
        let micros =
            |value: &Value| value.as_str()?.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_microsecond);
        let Some(accepted) = micros(&job["created_at"]) else {
            return Err(Failure::Failed(format!("nobody knows when job {id} was accepted")));
        };
        ends.push(End {
            due: *due,
            sent: *sent,
            accepted,
            started: job["output"]["started_us"].as_i64(),
            recorded: micros(&job["finished_at"]),
        });
    }
    Ok(ends)
}
