//! Jobs that panic, hang, keep their thread or end their process, among innocent ones.

use std::os::unix::process::ExitStatusExt as _;

use serde_json::{Value, json};

use crate::harness::{
    process::{Installation, Supervised},
    wait::until,
};

const KIND: &str =
    "[kind.'warren.probe']\nconcurrency = 20\ntimeout = '1s'\nbackoff_base = '100ms'\nbackoff_cap = '200ms'\n";
const INNOCENTS: usize = 200;
/// SIGABRT, what an abort ends a process with.
const ABORTED: i32 = 6;

fn embedded() -> (Installation, Vec<Supervised>) {
    let installation = Installation::embedded(KIND);
    let all = installation.supervise(&[]);
    (installation, vec![all])
}

async fn on_servers() -> Option<(Installation, Vec<Supervised>)> {
    let installation = Installation::on_servers(KIND).await?;
    let others = installation.supervise(&["gateway", "dispatcher", "keeper"]);
    let worker = installation.supervise(&["worker"]);
    Some((installation, vec![worker, others]))
}

fn listed(installation: &Installation, state: &str) -> Vec<Value> {
    let said = installation.run(&["job", "list", "--state", state, "--limit", "10000", "-o", "json"]);
    if said.code == 0 { said.json().as_array().cloned().unwrap_or_default() } else { Vec::new() }
}

/// Where the gateway of a supervised process listens.
async fn gateway(supervised: &Supervised) -> String {
    until("the gateway listens", async || supervised.gateway()).await
}

async fn exactly_the_guilty_are_convicted((installation, supervised): (Installation, Vec<Supervised>)) {
    // One request, which is whole before the first of the guilty is due.
    let mut batch: Vec<_> =
        (0..INNOCENTS).map(|_| json!({ "kind": "warren.probe", "body": { "work_ms": 50 } })).collect();
    let fates = [("panic", "panicked"), ("hang", "timed_out"), ("block", "timed_out"), ("abort", "crash_loop")];
    for (fate, _) in fates {
        for number in 0..3 {
            let mut item =
                json!({ "kind": "warren.probe", "body": { "fate": fate, "work_ms": number }, "delay": "300ms" });
            if number == 0 {
                item["key"] = json!(format!("{fate}-key"));
            }
            batch.insert(batch.len() / 2, item);
        }
    }
    let url = gateway(supervised.last().unwrap()).await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer: Value = client.post(format!("{url}/v1/jobs")).json(&batch).send().await.unwrap().json().await.unwrap();
    assert_eq!(answer["accepted"], INNOCENTS + 12, "{answer}");
    let results = answer["results"].as_array().unwrap();
    let guilty: Vec<_> = results
        .iter()
        .zip(&batch)
        .filter_map(|(result, item)| Some((result["id"].as_str()?.to_owned(), item["body"]["fate"].as_str()?)))
        .collect();
    until("all have ended", async || {
        let ended = listed(&installation, "succeeded").len() + listed(&installation, "dead").len();
        (ended == INNOCENTS + 12).then_some(())
    })
    .await;
    let dead = listed(&installation, "dead");
    assert_eq!(dead.len(), 12);
    for (id, fate) in guilty {
        let letter = dead.iter().find(|letter| letter["id"] == id).unwrap_or_else(|| panic!("{fate} {id} is not dead"));
        let reason = fates.iter().find(|(name, _)| *name == fate).unwrap().1;
        assert_eq!(letter["reason"], reason, "{letter}");
    }
    for innocent in listed(&installation, "succeeded") {
        assert_eq!((innocent["run"].as_u64(), innocent["failed_attempts"].as_u64()), (Some(1), Some(0)), "{innocent}");
    }
    let aborted = supervised[0].ends().iter().filter(|status| status.signal() == Some(ABORTED)).count();
    assert!(aborted <= 6, "each of three cost more than two processes their lives: {:?}", supervised[0].ends());
}

#[tokio::test(flavor = "multi_thread")]
async fn embedded_exactly_the_guilty_are_convicted() {
    exactly_the_guilty_are_convicted(embedded()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_servers_exactly_the_guilty_are_convicted() {
    if let Some(installation) = on_servers().await {
        exactly_the_guilty_are_convicted(installation).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspect_is_run_alone_and_a_child_that_cannot_begin_convicts_nobody() {
    let Some(installation) = Installation::on_servers("").await else { return };
    let _up = installation.up(&[]);
    let good = std::fs::read_to_string(installation.file()).unwrap();
    let (rabbit, _) = installation.servers().unwrap();
    let (_connection, channel) = rabbit.channel().await;
    let suspect = async |id: &str| {
        let mut headers = lapin::types::FieldTable::default();
        headers.insert("x-warren-suspect".into(), lapin::types::AMQPValue::ShortInt(2));
        let properties = lapin::BasicProperties::default().with_message_id(id.into()).with_headers(headers);
        let options = lapin::options::BasicPublishOptions::default();
        let exchange = rabbit.names().jobs();
        // {"payload_bytes": 3} as MessagePack.
        let body = b"\x81\xadpayload_bytes\x03";
        channel
            .basic_publish(exchange.as_str().into(), "warren.probe".into(), options, body, properties)
            .await
            .unwrap();
    };
    let shown = |id: &str| {
        let said = installation.run(&["job", "show", id, "-o", "json"]);
        (said.code == 0).then(|| said.json())
    };
    let (first, second) = ("0190aaaa-bbbb-7ccc-8ddd-000000000001", "0190aaaa-bbbb-7ccc-8ddd-000000000002");
    suspect(first).await;
    let done = until("it has run alone", async || shown(first).filter(|job| job["state"] == "succeeded")).await;
    assert_eq!(done["output"]["payload"], "AAAA", "what it returned came back through the pipe: {done}");
    // A child reads the configuration anew.
    std::fs::write(installation.file(), format!("{good}\nnonsense")).unwrap();
    suspect(second).await;
    let logged = |text: &str| installation.logs().contains(text);
    until("children fail to begin", async || logged("is not TOML").then_some(())).await;
    std::fs::write(installation.file(), &good).unwrap();
    let put_off = until("it is put off", async || shown(second)).await;
    assert_eq!(put_off["failed_attempts"], 0, "it is no failure of the job: {put_off}");
    assert_eq!(installation.run(&["job", "requeue", second]).code, 0);
    let done = until("it has run", async || shown(second).filter(|job| job["state"] == "succeeded")).await;
    assert_eq!(done["failed_attempts"], 0, "{done}");
}
