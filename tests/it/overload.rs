//! More work than a part of the system can do: the others hold no more of it than they have room for, and what was taken
//! is done.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::harness::{
    http::Http,
    process::{Installation, Up},
    proxy::Proxy,
    scale::sized,
    wait::SOON,
    wire::peak_megabytes,
};

/// How much a process may take at most that runs all roles, whatever is slow.
const MEGABYTES: u64 = 200;
/// How late a slow server answers.
const LATE: Duration = Duration::from_millis(100);
/// How many send at once, and how many jobs in one request.
const SENDERS: usize = 8;
const TOGETHER: usize = 500;

/// An installation behind proxies.
struct Behind {
    installation: Installation,
    broker: Proxy,
    database: Proxy,
}

impl Behind {
    async fn proxies(configuration: &str) -> Option<Self> {
        let installation = Installation::on_servers("").await?;
        let (rabbit, postgres) = installation.servers().unwrap();
        let (broker, database) = (Proxy::before(rabbit.address()).await, Proxy::before(postgres.address()).await);
        let keys = installation.run(&["config", "keys"]).stdout;
        let text = format!(
            "{keys}\n{configuration}\n[gateway]\nassume_no_keys = true\n[broker]\nurl = \"{}\"\nprefix = \"{}\"\n\
             [database]\nurl = \"{}\"\n",
            rabbit.through(broker.port),
            rabbit.prefix,
            postgres.through(database.port)
        );
        std::fs::write(installation.file(), text).unwrap();
        Some(Self { installation, broker, database })
    }
}

/// Sends as much as is taken, for a while. Answers how many jobs were.
async fn flood(up: &Up, body: &Value) -> u64 {
    let end = Instant::now() + sized(Duration::from_secs(3), Duration::from_secs(30));
    let item = json!({ "kind": "warren.probe", "body": body });
    let items = vec![&item; TOGETHER];
    let senders = (0..SENDERS).map(|_| async {
        let (http, mut accepted) = (Http::to(up.gateway()), 0);
        while Instant::now() < end {
            let answer = http.post("/v1/jobs").json(&items).send().await.unwrap();
            let answer: Value = answer.json().await.unwrap();
            accepted += answer["accepted"].as_u64().unwrap_or(0);
        }
        accepted
    });
    join_all(senders).await.into_iter().sum()
}

async fn ended(up: &Up) -> u64 {
    let text = Http::to(&up.admin).get("/metrics").send().await.unwrap().text().await.unwrap();
    let name = "warren_jobs_finished_total{kind=\"warren.probe\",outcome=\"ok\"} ";
    text.lines().find_map(|line| line.strip_prefix(name)?.parse().ok()).unwrap_or(0)
}

fn stays_small(up: &Up, taken: u64, what: &str) {
    let peak = peak_megabytes(up.pid());
    println!("{what}: {taken} jobs taken, {peak} MB at most");
    assert!(peak <= MEGABYTES, "{what}: {peak} MB");
}

/// Waits until so many have ended, for as long as there is progress.
async fn have_ended(up: &Up, wanted: u64) {
    let (mut most, mut moved) = (0, Instant::now());
    while most < wanted {
        let count = ended(up).await;
        if count > most {
            (most, moved) = (count, Instant::now());
        }
        assert!(moved.elapsed() < SOON, "{most} of {wanted} have ended, and no other for {SOON:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the servers for itself: tests/run runs it last"]
async fn a_slow_database_is_not_made_up_for_with_memory() {
    let Some(behind) = Behind::proxies("").await else { return };
    let up = behind.installation.up(&[]);
    behind.database.delay_server(LATE);
    let taken = flood(&up, &json!({ "payload_bytes": 2000 })).await;
    assert!(taken > sized(1000, 50_000), "the gateway needs no database: {taken}");
    behind.database.delay_server(Duration::ZERO);
    have_ended(&up, taken).await;
    stays_small(&up, taken, "a slow database");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the servers for itself: tests/run runs it last"]
async fn a_slow_broker_is_not_made_up_for_with_memory() {
    let Some(behind) = Behind::proxies("").await else { return };
    let up = behind.installation.up(&[]);
    behind.broker.delay_server(LATE);
    let taken = flood(&up, &json!({ "payload_bytes": 2000 })).await;
    assert!(taken > sized(500, 5000), "{taken}");
    behind.broker.delay_server(Duration::ZERO);
    have_ended(&up, taken).await;
    stays_small(&up, taken, "a slow broker");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the servers for itself: tests/run runs it last"]
async fn slow_workers_are_not_made_up_for_with_memory() {
    let slow = "[kind.'warren.probe']\nconcurrency = 2\n";
    let Some(behind) = Behind::proxies(slow).await else { return };
    let up = behind.installation.up(&[]);
    let taken = flood(&up, &json!({ "work_ms": 20, "payload_bytes": 2000 })).await;
    assert!(taken > sized(1000, 50_000), "{taken}");
    // They would be at the rest for long.
    let already = ended(&up).await;
    have_ended(&up, already + 20).await;
    stays_small(&up, taken, "slow workers");
}
