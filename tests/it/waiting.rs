//! Many who wait for their jobs at once. Counts what the database is asked, so it needs the servers for itself.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection, Row as _};

use crate::harness::{
    http::{Http, parts},
    process::Installation,
    scale::sized,
    wait::until_equal,
};

/// Transactions of this database so far.
async fn transactions(connection: &mut PgConnection) -> i64 {
    let count = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()";
    sqlx::query(count).fetch_one(connection).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the servers for itself: tests/run runs it last"]
async fn two_thousand_who_wait_cost_the_database_fewer_than_a_hundred_queries_a_second() {
    let installation = Installation::on_servers("").await.expect("servers");
    let up = installation.up(&[]);
    let http = Http::to(up.gateway());
    let lines = "{\"kind\":\"warren.probe\",\"delay\":\"15s\"}\n".repeat(2000);
    let request = http.post("/v1/jobs").header("content-type", "application/x-ndjson").body(lines);
    let text = request.send().await.unwrap().text().await.unwrap();
    let ids: Vec<_> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].as_str().unwrap().to_owned())
        .collect();
    let mut waits = tokio::task::JoinSet::new();
    for id in ids {
        let request = http.get(&format!("/v1/jobs/{id}?wait=60"));
        waits.spawn(async move { parts(request.timeout(Duration::from_mins(1)).send().await.unwrap()).await });
    }
    let (_, database) = installation.servers().unwrap();
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    // Until all of them wait: each asks once before.
    let admin = Http::to(&up.admin);
    until_equal("it is ready", 200, async || parts(admin.get("/readyz").send().await.unwrap()).await.0).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let before = transactions(&mut connection).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let a_second = (transactions(&mut connection).await - before) / 5;
    assert!(a_second < 100, "{a_second} transactions a second");
    while let Some(ended) = waits.join_next().await {
        let (status, job) = ended.unwrap();
        assert_eq!((status, job["state"].as_str()), (200, Some("succeeded")), "{job}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the servers for itself: tests/run runs it last"]
async fn a_result_reaches_who_waits_for_it_soon_after_its_commit() {
    let installation = Installation::on_servers("").await.expect("servers");
    let up = installation.up(&[]);
    let http = Http::to(up.gateway());
    let mut late = Vec::new();
    for _ in 0..sized(50, 500) {
        let request = http.post("/v1/jobs/warren.probe").header("prefer", "wait=10").json(&json!({ "work_ms": 3 }));
        let (status, job) = parts(request.send().await.unwrap()).await;
        let now = Timestamp::now();
        assert_eq!(status, 200, "{job}");
        let finished: Timestamp = job["finished_at"].as_str().unwrap().parse().unwrap();
        late.push(now.duration_since(finished).as_millis());
    }
    late.sort_unstable();
    let p99 = late[late.len() * 99 / 100 - 1];
    println!("p50 {} ms, p99 {p99} ms after the commit", late[late.len() / 2]);
    assert!(p99 <= sized(250, 50), "p99 is {p99} ms");
}
