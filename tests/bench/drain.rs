//! The quick loop of development: preloads a queue and drains it through a trivial worker, results stored.

#![expect(clippy::cast_precision_loss, reason = "rates for people")]

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use warren::{
    broker::{Outgoing, Publish, Subscribe, embedded::Embedded, rabbitmq},
    clock,
    id::{Minter, Secret},
    job::{Envelope, Kind, Tenant},
    runtime::{Runtime, Settings, registry::Registry},
    sqlite::{Database, Use},
    store::{Store, postgres::Postgres, sqlite::Sqlite},
};
use warren_messages::{Message, codec};
use warren_workers::{Context, Job, Policy, Worker};

#[derive(Serialize, Deserialize, JsonSchema)]
struct Mail {
    reference: String,
    attempt: u16,
    at_us: i64,
    to: String,
    subject: String,
    data: Vec<i64>,
}

impl Message for Mail {
    const KIND: &'static str = "bench.mail";
    const VERSION: u16 = 1;
}

struct Send(Arc<AtomicUsize>);

#[derive(Serialize)]
struct Sent {
    ok: bool,
    sum: i64,
    len: usize,
}

impl Worker for Send {
    type Message = Mail;
    type Output = Sent;
    type Error = Infallible;

    async fn perform(&self, job: Job<Mail>, _: &mut Context) -> Result<Sent, Infallible> {
        self.0.fetch_add(1, Relaxed);
        Ok(Sent { ok: true, sum: job.message.data.iter().sum(), len: job.message.subject.len() })
    }

    fn policy(&self) -> Policy {
        Policy::default()
    }
}

fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap_or(0.0) + fields[12].parse::<f64>().unwrap_or(0.0)) / 100.0
}

async fn preload(way_in: &dyn Publish, minter: &Minter, count: usize) -> anyhow::Result<()> {
    let kind = Kind::new(Mail::KIND)?;
    let began = Instant::now();
    for chunk in (0..count).collect::<Vec<_>>().chunks(1000) {
        let jobs = chunk.iter().map(|_| {
            let now = clock::now();
            let mail = Mail {
                reference: "0190-aaaa-bbbb".into(),
                attempt: 0,
                at_us: now,
                to: "someone@example.com".into(),
                subject: "hello ".repeat(20),
                data: (0..24).collect(),
            };
            let envelope = Envelope::new(minter.mint(&Tenant::DEFAULT, now), kind.clone(), 1, now);
            way_in.publish(Outgoing { envelope, body: codec::encode(&mail).expect("fits") })
        });
        join_all(jobs).await.into_iter().collect::<Result<Vec<_>, _>>()?;
    }
    println!("preload {:.0}/s", count as f64 / began.elapsed().as_secs_f64());
    Ok(())
}

async fn drain(
    way_out: &dyn Subscribe,
    store: Arc<dyn Store>,
    minter: Arc<Minter>,
    count: usize,
) -> anyhow::Result<()> {
    let done = Arc::new(AtomicUsize::new(0));
    let registry = Registry::default().register(Send(done.clone()))?;
    let (began, cpu_before) = (Instant::now(), cpu());
    let runtime = Runtime::start(&registry, way_out, store, minter, Arc::default(), Settings::default())?;
    while done.load(Relaxed) < count {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let drained = runtime.drain(Duration::from_secs(10)).await;
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "drain {:.0}/s, {:.1} us of our CPU a job, {drained:?}",
        count as f64 / seconds,
        (cpu() - cpu_before) * 1e6 / count as f64
    );
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let embedded = arguments.next().as_deref() == Some("embedded");
    let count: usize = arguments.next().map_or(Ok(100_000), |count| count.parse())?;
    let minter = Arc::new(Minter::new(&Secret::generate()?, &[Secret::generate()?])?);
    if embedded {
        let folder = std::env::temp_dir().join("warren-quick");
        _ = std::fs::remove_dir_all(&folder);
        let database = Arc::new(Database::open(&folder, Use::Owner).await?);
        let store: Arc<dyn Store> = Arc::new(Sqlite::new(database.clone()));
        store.migrate().await?;
        let broker = Embedded::open(database.clone()).await?;
        preload(&broker, &minter, count).await?;
        drain(&broker, store, minter, count).await?;
        broker.close().await?;
        database.close().await;
        return Ok(());
    }
    let settings = rabbitmq::Settings {
        url: std::env::var("AMQP_URL")?.parse()?,
        prefix: "quick".into(),
        client: "quick".into(),
        management: None,
    };
    let kinds = [Kind::new(Mail::KIND)?];
    rabbitmq::apply_topology(&settings, &kinds).await?;
    let store: Arc<dyn Store> = Arc::new(Postgres::new(std::env::var("PG_URL")?.parse()?));
    store.migrate().await?;
    preload(&rabbitmq::Producer::open(&settings, &kinds), &minter, count).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    drain(&rabbitmq::Consumer::open(&settings), store, minter, count).await
}
