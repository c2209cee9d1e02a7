//! More work than a part of the system can do: the others hold no more of it than they have room for, and what was taken
//! is done.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::harness::{
    counted::{ENDED, counted, until_counted},
    http::Http,
    process::{Installation, Up},
    proxy::Proxy,
    scale::sized,
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
        installation.configure_behind(configuration, Some(&broker), Some(&database));
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

fn stays_small(up: &Up, taken: u64, what: &str) {
    let peak = peak_megabytes(up.pid());
    println!("{what}: {taken} jobs taken, {peak} MB at most");
    assert!(peak <= MEGABYTES, "{what}: {peak} MB");
}

/// What is taken while one of the servers is slow ends when it no longer is.
async fn all_ends_within_memory(what: &str, least: u64, slow: impl Fn(&Behind) -> &Proxy) {
    let Some(behind) = Behind::proxies("").await else { return };
    let up = behind.installation.up(&[]);
    slow(&behind).delay_server(LATE);
    let taken = flood(&up, &json!({ "payload_bytes": 2000 })).await;
    assert!(taken > least, "{taken}");
    slow(&behind).delay_server(Duration::ZERO);
    until_counted(&up, ENDED, taken, async |_| {}).await;
    stays_small(&up, taken, what);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the servers for itself: tests/run runs it last"]
async fn a_slow_database_is_not_made_up_for_with_memory() {
    // The gateway needs none.
    all_ends_within_memory("a slow database", sized(1000, 50_000), |behind| &behind.database).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the servers for itself: tests/run runs it last"]
async fn a_slow_broker_is_not_made_up_for_with_memory() {
    all_ends_within_memory("a slow broker", sized(500, 5000), |behind| &behind.broker).await;
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
    let already = counted(&up, ENDED).await;
    until_counted(&up, ENDED, already + 20, async |_| {}).await;
    stays_small(&up, taken, "slow workers");
}
