//! What operators see: waiting lines, processes, findings, and jobs as they end.

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
};

use serde_json::{Value, json};

use crate::harness::{
    http::Http,
    process::Installation,
    wait::{until, until_equal},
};

async fn operators_see_what_waits_and_what_runs(installation: Installation, engine_roles: usize) {
    let up = installation.up(&[]);
    let http = Http::to(up.gateway());
    let slow = http.submit("warren.probe", &json!({ "work_ms": 20_000 })).await;
    for _ in 0..5 {
        http.submit("warren.probe", &json!({ "work_ms": 20_000 })).await;
    }
    let workers = until("the process tells what it runs", async || {
        let workers = installation.run(&["worker", "list", "-o", "json"]).json();
        let runs = workers[0]["work"].as_array().is_some_and(|work| work.iter().any(|work| work["id"] == slow));
        runs.then_some(workers)
    })
    .await;
    assert_eq!(workers.as_array().unwrap().len(), 1);
    assert_eq!(workers[0]["pid"], up.pid());
    assert_eq!(workers[0]["roles"].as_array().unwrap().len(), engine_roles);
    assert_eq!(workers[0]["version"], env!("CARGO_PKG_VERSION"));
    let doctor = installation.run(&["doctor", "-o", "json"]);
    assert_eq!(doctor.code, 0, "{doctor:?}");
    assert!(doctor.json().as_array().unwrap().iter().all(|finding| finding["grade"] != "problem"), "{doctor:?}");
    let table = installation.run(&["worker", "list"]);
    assert!(table.stdout.contains("gateway worker dispatcher keeper") && table.stdout.contains(&slow), "{table:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn embedded_operators_see_what_waits_and_what_runs() {
    operators_see_what_waits_and_what_runs(Installation::embedded(""), 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_servers_operators_see_what_waits_and_what_runs() {
    if let Some(installation) = Installation::on_servers("").await {
        operators_see_what_waits_and_what_runs(installation, 4).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_wait_are_counted_and_the_age_of_the_oldest_is_told() {
    let Some(installation) = Installation::on_servers("").await else { return };
    let gateway = installation.up(&["gateway"]);
    let http = Http::to(gateway.gateway());
    for _ in 0..3 {
        http.submit("warren.probe", &json!({})).await;
    }
    let probe = async || -> Value {
        let queues = installation.run(&["queue", "list", "-o", "json"]).json();
        queues.as_array().unwrap().iter().find(|queue| queue["name"] == "warren.probe").unwrap().clone()
    };
    until("the oldest is known", async || probe().await["oldest_s"].as_u64().filter(|age| *age < 60)).await;
    let line = probe().await;
    assert_eq!((line["waiting"].as_u64(), line["consumers"].as_u64()), (Some(3), Some(0)), "{line}");
    let findings = installation.run(&["doctor"]);
    assert_eq!(findings.code, 0, "{findings:?}");
    for text in
        ["3 jobs wait in warren.probe and nobody takes them", "no worker has given a sign of life", "warren up worker"]
    {
        assert!(findings.stdout.contains(text), "{text}: {findings:?}");
    }
    let _worker = installation.up(&["worker"]);
    until_equal("they are taken", Some(0), async || probe().await["waiting"].as_u64()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_names_what_is_missing_and_what_mends_it() {
    let Some(installation) = Installation::on_servers("").await else { return };
    let ill = installation.run(&["doctor"]);
    assert_eq!(ill.code, 1, "{ill:?}");
    for text in ["warren migrate", "warren topology apply", "PROBLEM"] {
        assert!(ill.stdout.contains(text), "{text}: {ill:?}");
    }
    assert_eq!(installation.run(&["migrate"]).code, 0);
    assert_eq!(installation.run(&["topology", "apply"]).code, 0);
    let mended = installation.run(&["doctor"]);
    assert!(mended.code == 0 && !mended.stdout.contains("PROBLEM"), "{mended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_shown_as_they_end() {
    let installation = Installation::embedded("");
    let up = installation.up(&[]);
    let http = Http::to(up.gateway());
    let mut tail = installation.spawn(&["job", "tail", "-o", "json"], Stdio::piped());
    let mut lines = BufReader::new(tail.stdout.take().unwrap()).lines();
    let done = http.submit("warren.probe", &json!({ "work_ms": 700 })).await;
    let dead = http.submit("warren.probe", &json!({ "work_ms": 900, "fate": "dead" })).await;
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        seen.push((line["id"].as_str().unwrap().to_owned(), line["state"].as_str().unwrap().to_owned()));
    }
    tail.kill().unwrap();
    tail.wait().unwrap();
    assert_eq!(seen, [(done, "succeeded".to_owned()), (dead, "dead".to_owned())]);
}
