//! Processes that are killed at the worst moments: nothing that was answered `202` is lost, and nothing is done twice.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    os::unix::process::ExitStatusExt as _,
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::harness::{http::Http, process::Installation, scale::seed, wait::until};

const KIND: &str = "[kind.'warren.probe']\nbackoff_base = '100ms'\nbackoff_cap = '200ms'\n";
/// How long it may take after a restart until everything has ended.
const ALL_END: Duration = Duration::from_mins(1);
/// SIGKILL.
const KILLED: i32 = 9;

/// What is sent, in turn: a body, whether with a key, and after which delay.
fn load(number: usize) -> (Value, Option<String>, Option<&'static str>) {
    match number % 5 {
        0 => (json!({}), None, None),
        1 => (json!({ "work_ms": 20 }), Some(format!("key-{number}")), None),
        2 => (json!({}), None, Some("200ms")),
        3 => (json!({ "fail_attempts": 1 }), None, None),
        _ => (json!({ "follow_ups": 2 }), None, None),
    }
}

/// Sends jobs until the process is gone, and answers those that were taken, with the follow-ups that they ask for.
async fn send_until_it_dies(http: &Http) -> HashMap<String, u64> {
    let mut taken = HashMap::new();
    for number in 0.. {
        if number % 6 == 5 {
            taken.extend(send_many(http).await.unwrap_or_default());
            continue;
        }
        let (body, key, delay) = load(number);
        let follow_ups = body["follow_ups"].as_u64().unwrap_or(0);
        let mut request = http.post("/v1/jobs/warren.probe").json(&body);
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        if let Some(delay) = delay {
            request = request.header("warren-delay", delay);
        }
        let Ok(Ok(response)) = timeout(Duration::from_secs(8), request.send()).await else { break };
        if response.status() == 202
            && let Ok(answer) = response.json::<Value>().await
        {
            taken.insert(answer["id"].as_str().unwrap().to_owned(), follow_ups);
        }
        // Something of everything is to be under way, and not only what waits.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    taken
}

/// Sends jobs in one request, and answers those that were taken.
async fn send_many(http: &Http) -> Option<Vec<(String, u64)>> {
    let job = json!({ "kind": "warren.probe" });
    let request = http.post("/v1/jobs").json(&[&job, &job, &job]);
    let response = timeout(Duration::from_secs(8), request.send()).await.ok()?.ok()?;
    let answer: Value = response.json().await.ok()?;
    let taken = answer["results"].as_array().unwrap().iter().filter(|it| it["status"] == 202);
    Some(taken.map(|it| (it["id"].as_str().unwrap().to_owned(), 0)).collect())
}

fn listed(installation: &Installation, state: &str) -> Vec<Value> {
    installation
        .run(&["job", "list", "--state", state, "--limit", "10000", "-o", "json"])
        .json()
        .as_array()
        .unwrap()
        .clone()
}

async fn nothing_is_lost_or_doubled(installation: Installation, at: &str, after: u32) {
    let after = after + seed() % 10;
    let mut doomed = installation.up_to_crash(&[], at, after);
    let taken = send_until_it_dies(&Http::to(doomed.gateway())).await;
    let status = doomed.ended().await;
    assert_eq!(status.signal(), Some(KILLED), "{at}: it ended by itself: {status:?}");
    let up = installation.up(&[]);
    let http = Http::to(up.gateway());
    let began = Instant::now();
    for id in taken.keys() {
        let job = http.job_in(id, "succeeded").await;
        assert_eq!(job["id"], *id);
    }
    // What was taken and not answered ends too, and so does every follow-up.
    until("nothing is under way", async || {
        let open =
            ["scheduled", "queued", "running", "retrying"].iter().any(|state| !listed(&installation, state).is_empty());
        (!open).then_some(())
    })
    .await;
    assert!(began.elapsed() < ALL_END, "{at}: {:?}", began.elapsed());
    assert_eq!(listed(&installation, "dead"), Vec::<Value>::new(), "{at}");
    let succeeded = listed(&installation, "succeeded");
    let ids: HashSet<_> = succeeded.iter().map(|job| job["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), succeeded.len());
    let mut children: BTreeMap<&str, u64> = BTreeMap::new();
    for parent in succeeded.iter().filter_map(|job| job["parent"].as_str()) {
        *children.entry(parent).or_default() += 1;
    }
    for (id, follow_ups) in &taken {
        assert_eq!(children.get(id.as_str()).copied().unwrap_or(0), *follow_ups, "{at}: the follow-ups of {id}");
    }
}

/// Every crash point on every engine that has it.
macro_rules! crash {
    ($($name:ident: $at:literal after $after:literal),* $(,)?) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::nothing_is_lost_or_doubled(super::Installation::embedded(super::KIND), $at, $after).await;
            })*
        }
        mod on_servers {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                if let Some(installation) = super::Installation::on_servers(super::KIND).await {
                    super::nothing_is_lost_or_doubled(installation, $at, $after).await;
                }
            })*
        }
    };
}

crash!(
    before_a_publish: "gateway: not published" after 20,
    after_a_publish_before_its_confirm: "broker: published, not confirmed" after 25,
    after_a_confirm_before_its_answer: "gateway: confirmed, not answered" after 20,
    before_a_publish_of_many: "gateway: many not published" after 3,
    after_the_confirms_of_many_before_their_answer: "gateway: many confirmed, not answered" after 3,
    after_a_job_has_run_before_its_commit: "worker: run, not recorded" after 15,
    after_a_commit_before_its_ack: "worker: recorded, not settled" after 15,
    after_it_was_settled_before_its_ack: "worker: settled" after 15,
    after_an_ack: "broker: acknowledged" after 3,
    after_a_claim_before_its_publish: "dispatcher: claimed, not published" after 3,
    after_a_publish_before_it_is_noted: "dispatcher: published, not noted" after 3,
);
