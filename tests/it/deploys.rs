//! Deploys under load: processes come and go, and nobody notices.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::json;

use crate::harness::{
    counted::until_a_probe_runs,
    http::Http,
    load::Load,
    process::{Installation, Up},
    scale::sized,
    wait::until,
};

const KIND: &str = "[kind.'warren.probe']\nbackoff_base = '100ms'\nbackoff_cap = '200ms'\n";

async fn replaced(mut old: Up) -> Duration {
    let began = Instant::now();
    old.terminate();
    let status = old.ended().await;
    assert_eq!(status.code(), Some(0), "it did not end as it should");
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn rolling_restarts_lose_nothing_and_convict_nobody() {
    let Some(installation) = Installation::on_servers(KIND).await else { return };
    let gateways = Arc::new(Mutex::new(Vec::new()));
    let start_gateway = || {
        let up = installation.up(&["gateway"]);
        gateways.lock().unwrap().push(up.gateway().to_owned());
        up
    };
    let mut all = vec![start_gateway(), start_gateway()];
    let mut workers = vec![installation.up(&["worker"]), installation.up(&["worker"])];
    let others = installation.up(&["dispatcher", "keeper"]);
    let load = Load::begin(gateways.clone(), 4);
    until("the load is under way", async || (load.accepted() > 50).then_some(())).await;
    for _ in 0..sized(2, 30) {
        // First the new one, then the old one: a client always finds somebody.
        let (new_gateway, new_worker) = (start_gateway(), installation.up(&["worker"]));
        let (old_gateway, old_worker) = (all.remove(0), workers.remove(0));
        gateways.lock().unwrap().remove(0);
        all.push(new_gateway);
        workers.push(new_worker);
        for took in [replaced(old_gateway).await, replaced(old_worker).await] {
            assert!(took <= Duration::from_secs(30), "it took {took:?} to drain");
        }
    }
    let http = Http::to(all[0].gateway());
    let answers = load.end().await;
    assert_eq!(answers.broken, 0, "every client got an answer");
    for refusal in &answers.refused {
        assert!(refusal.status == 503 && refusal.retry_after, "{refusal:?}");
    }
    assert_eq!(answers.accepted.iter().collect::<HashSet<_>>().len(), answers.accepted.len());
    for id in &answers.accepted {
        http.job_in(id, "succeeded").await;
    }
    assert_eq!(installation.run(&["dead", "list", "-o", "json"]).json(), json!([]));
    drop(others);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_workers_are_killed_twice_under_load_everything_is_done_soon_and_nobody_is_convicted() {
    let Some(installation) = Installation::on_servers("").await else { return };
    let others = installation.up(&["gateway", "dispatcher", "keeper"]);
    let http = Http::to(others.gateway());
    let count = sized(600, 3000);
    let lines = "{\"kind\":\"warren.probe\",\"body\":{\"work_ms\":400}}\n".repeat(count);
    let request = http.post("/v1/jobs").header("content-type", "application/x-ndjson").body(lines);
    let text = request.send().await.unwrap().text().await.unwrap();
    assert_eq!(text.lines().filter(|line| line.contains("\"status\":202")).count(), count);
    // What each of them has taken comes back once more, and is a suspect the second time.
    for _ in 0..2 {
        let worker = installation.up(&["worker"]);
        until_a_probe_runs(&worker).await;
        worker.kill();
    }
    let _worker = installation.up(&["worker"]);
    let began = Instant::now();
    let mut left = Vec::new();
    for line in text.lines() {
        let answer: serde_json::Value = serde_json::from_str(line).unwrap();
        left.push(answer["id"].as_str().unwrap().to_owned());
    }
    for id in &left {
        let job = http.job_in(id, "succeeded").await;
        assert_eq!(job["failed_attempts"], 0, "{job}");
    }
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert_eq!(installation.run(&["dead", "list", "-o", "json"]).json(), json!([]));
}
