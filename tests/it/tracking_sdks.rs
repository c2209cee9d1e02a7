//! The SDKs that track behaviour, as they come from PyPI and npm, against a gateway behind a network that fails.

use std::{collections::BTreeSet, process::Command};

use serde_json::{Value, json};

use crate::{
    harness::{
        front::{Deed, Front},
        http::Http,
        process::{Installation, Up},
        programs::{node_script, python_script},
        wait::until_equal,
    },
    keys::made,
};

/// Everything that can go wrong between an SDK and a gateway, each twice where an SDK may count, and success between
/// them, so that every batch is tried again and none is given up.
const TROUBLE: [Deed; 11] = [
    Deed::Pass,
    Deed::Answer(503),
    Deed::Answer(503),
    Deed::Pass,
    Deed::Answer(429),
    Deed::Pass,
    Deed::Drop,
    Deed::TakeAndDrop,
    Deed::Pass,
    Deed::TakeAndDrop,
    Deed::Pass,
];

const COUNT: usize = 200;

fn python(sdk: &str) -> Option<Command> {
    let mut command = python_script("tracking.py")?;
    command.arg(sdk);
    Some(command)
}

fn node() -> Option<Command> {
    node_script("tracking.mjs")
}

/// Lets an SDK send its burst through the trouble; answers every event that was stored, as it was stored.
async fn stored(sdk: Option<Command>, installation: Installation) -> Option<(Installation, Up, Vec<Value>)> {
    let mut command = sdk?;
    let up = installation.up(&[]);
    let front = Front::before(up.gateway(), &TROUBLE).await;
    command.args([&front.url, &COUNT.to_string()]);
    let done = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let seen = front.seen();
    assert!(done.status.success(), "{done:?} {seen:?}");
    let said: Value =
        serde_json::from_slice(done.stdout.trim_ascii()).unwrap_or_else(|error| panic!("{error}: {done:?}"));
    assert_eq!(said["errors"], json!([]), "{seen:?}");
    assert_eq!(front.left(), 0, "all of the trouble was met: {seen:?}");
    for (deed, answer) in &seen {
        let expected = matches!(deed, Deed::Pass | Deed::TakeAndDrop).then_some(200);
        assert_eq!(answer.as_ref().map(|(status, _)| *status), expected, "{deed:?}: {answer:?}");
        assert!(answer.as_ref().is_none_or(|(_, body)| !body.contains("refused")), "{answer:?}");
    }
    let ids: BTreeSet<_> = said["ids"].as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()).collect();
    assert_eq!(ids.len(), COUNT, "the SDK tells its events apart");
    let list = || {
        let arguments =
            ["job", "list", "--kind", "analytics.event", "--state", "succeeded", "--limit", "10000", "-o", "json"];
        installation.run(&arguments).json().as_array().unwrap().clone()
    };
    until_equal("events that are stored", COUNT, async || list().len()).await;
    // What was taken twice has a copy that may be under way yet.
    until_equal("events that wait", Some(0), async || {
        let queues = installation.run(&["queue", "list", "-o", "json"]).json();
        queues.as_array().unwrap().iter().map(|queue| queue["waiting"].as_u64()).sum::<Option<u64>>()
    })
    .await;
    let jobs = list();
    assert_eq!(jobs.len(), COUNT, "each once");
    let http = Http::to(up.gateway());
    let mut events = Vec::new();
    for job in jobs {
        let job = http.job(job["id"].as_str().unwrap()).await;
        events.push(job["output"].clone());
    }
    let stored: BTreeSet<_> =
        events.iter().map(|event| event["message_id"].as_str().expect("an id").to_owned()).collect();
    assert_eq!(stored, ids, "those that were sent, and no others");
    Some((installation, up, events))
}

/// How many events there are of each call, in the order of their names.
fn calls(events: &[Value]) -> Vec<(String, usize)> {
    let mut calls = std::collections::BTreeMap::new();
    for event in events {
        *calls.entry(event["call"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    calls.into_iter().collect()
}

/// What Segment's SDKs and those that speak as they do send, whatever the language.
fn are_the_segment_burst(events: &[Value]) {
    let expected = [("alias", 20), ("group", 20), ("identify", 20), ("page", 20), ("screen", 20), ("track", 100)];
    assert_eq!(calls(events), expected.map(|(call, count)| (call.to_owned(), count)));
    for event in events {
        match event["call"].as_str().unwrap() {
            "identify" => assert_eq!((&event["props"]["plan"], &event["user_id"]), (&json!("free"), &json!("u1"))),
            "page" => assert_eq!((&event["event"], &event["category"]), (&json!("Index"), &json!("Docs"))),
            "screen" => assert_eq!((&event["event"], &event["anonymous_id"]), (&json!("Start"), &json!("a1"))),
            "group" => assert_eq!((&event["group_id"], &event["event"]), (&json!("g1"), &json!("group"))),
            "alias" => assert_eq!((&event["previous_id"], &event["user_id"]), (&json!("a1"), &json!("u1"))),
            _ if event["anonymous_id"] == "a1" => assert_eq!(event["event"], "Shown – Ω"),
            _ => assert_eq!((&event["props"]["total"], &event["props"]["note"]), (&json!(12.5), &Value::Null)),
        }
        assert!(event["ctx"]["library"]["version"].is_string(), "{event}");
    }
    let numbers: BTreeSet<_> = events.iter().filter_map(|event| event["props"]["n"].as_u64()).collect();
    assert_eq!(numbers.len(), COUNT - COUNT / 10, "each but the aliases has its own number");
}

#[tokio::test(flavor = "multi_thread")]
async fn segment_for_python_loses_and_doubles_nothing() {
    let Some(installation) = Installation::on_servers("").await else { return };
    let Some((_, _, events)) = stored(python("segment"), installation).await else { return };
    are_the_segment_burst(&events);
}

#[tokio::test(flavor = "multi_thread")]
async fn segment_for_node_loses_and_doubles_nothing() {
    let Some((_, _, events)) = stored(node(), Installation::embedded("")).await else { return };
    are_the_segment_burst(&events);
}

#[tokio::test(flavor = "multi_thread")]
async fn rudderstack_for_python_loses_and_doubles_nothing() {
    let Some((_, _, events)) = stored(python("rudderstack"), Installation::embedded("")).await else { return };
    are_the_segment_burst(&events);
}

#[tokio::test(flavor = "multi_thread")]
async fn posthog_for_python_loses_and_doubles_nothing() {
    let Some((_, _, events)) = stored(python("posthog"), Installation::embedded("")).await else { return };
    let expected = [("alias", 40), ("group", 40), ("identify", 40), ("track", 80)];
    assert_eq!(calls(&events), expected.map(|(call, count)| (call.to_owned(), count)));
    for event in &events {
        match event["event"].as_str().unwrap() {
            "$set" => assert!(event["props"]["$set"]["n"].is_u64() && event["user_id"] == "u1", "{event}"),
            "$groupidentify" => assert_eq!(event["group_id"], "g1"),
            "shown" => assert!(event["user_id"].is_null() && event["anonymous_id"].is_string(), "{event}"),
            "order completed" => assert_eq!(event["user_id"], "u1"),
            other => assert_eq!(other, "$create_alias"),
        }
        assert_eq!(event["props"]["$lib"], "posthog-python");
    }
}

/// Lets an SDK send its burst, in batches of 20, with a key that never holds more than half of one.
async fn waits_for_its_key(sdk: Option<Command>) {
    const COUNT: usize = 100;
    let Some(mut command) = sdk else { return };
    let installation = Installation::embedded("");
    let limits = ["--scope", "events:write", "--rate", "10/s", "--burst", "10"];
    let (key, section) = made(&installation, "app", &limits);
    installation.configure(&section);
    let up = installation.up(&[]);
    let front = Front::before(up.gateway(), &[]).await;
    command.args([&front.url, &COUNT.to_string(), &key]);
    let done = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let seen = front.seen();
    assert!(done.status.success(), "{seen:?}");
    let said: Value = serde_json::from_slice(done.stdout.trim_ascii()).unwrap();
    assert_eq!((&said["errors"], said["ids"].as_array().unwrap().len()), (&json!([]), COUNT), "{seen:?}");
    let statuses: BTreeSet<_> =
        seen.iter().filter_map(|(_, answer)| answer.as_ref().map(|(status, _)| *status)).collect();
    assert_eq!(statuses, BTreeSet::from([200, 429]), "it was told to wait, and nothing else");
    until_equal("events that are stored", COUNT, async || {
        let list = ["job", "list", "--state", "succeeded", "--limit", "10000", "-o", "json"];
        installation.run(&list).json().as_array().unwrap().len()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn segment_waits_for_a_key_that_holds_less_than_its_batch_and_loses_nothing() {
    waits_for_its_key(python("segment")).await;
    waits_for_its_key(node()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rudderstack_waits_for_a_key_that_holds_less_than_its_batch_and_loses_nothing() {
    waits_for_its_key(python("rudderstack")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn posthog_waits_for_a_key_that_holds_less_than_its_batch_and_loses_nothing() {
    waits_for_its_key(python("posthog")).await;
}
