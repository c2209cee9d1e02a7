//! Keys and the SDKs that track behaviour: these give up at most refusals, and repeat what is to come later.

use std::{collections::BTreeMap, io::Write as _, sync::Arc, time::Duration};

use flate2::{Compression, write::GzEncoder};
use reqwest::Response;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use warren::{
    broker::embedded::Embedded,
    config::Events,
    gateway::{Gateway, Parts, auth::Door, serve},
    id::{Minter, Secret},
    keyring::Keyring,
    runtime::registry::Registry,
    store::sqlite::Sqlite,
};

use super::{code, with_keys};
use crate::{
    gateway::jobs,
    harness::{
        engines::LiteFile,
        http::{Http, parts},
        wait::{until, until_equal},
    },
};

const SCOPES: [&str; 2] = ["--scope", "events:write"];

fn event(id: &str) -> Value {
    json!({ "type": "track", "event": "e", "userId": "u1", "messageId": id })
}

fn batch(ids: impl IntoIterator<Item = String>) -> Value {
    json!({ "batch": ids.into_iter().map(|id| event(&id)).collect::<Vec<_>>(), "sentAt": "2026-03-01T10:00:00Z" })
}

fn posthog(key: &str, ids: impl IntoIterator<Item = String>) -> Value {
    let events: Vec<_> = ids.into_iter().map(|id| json!({ "event": "e", "distinct_id": "u1", "uuid": id })).collect();
    json!({ "api_key": key, "batch": events })
}

fn pause(response: &Response) -> Option<u64> {
    response.headers().get("retry-after").map(|pause| pause.to_str().unwrap().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_repeats_itself_is_taken_however_small_it_was_packed() {
    let (installation, up, keys) = with_keys(&[("app", &SCOPES)], "");
    let http = Http::to(up.gateway());
    // As an SDK sends it at its defaults: a hundred events that all say where they come from, in 12 KB.
    let context: Value = (0..400)
        .map(|n| (format!("setting-{n:04}"), json!("as on every page")))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let mut segment = batch((0..100).map(|n| format!("segment-{n}")));
    let mut hog = posthog(&keys["app"], (0..100).map(|n| format!("posthog-{n}")));
    for n in 0..100 {
        segment["batch"][n]["context"] = context.clone();
        hog["batch"][n]["properties"] = context.clone();
    }
    for (path, body, in_header) in [("/v1/batch", &segment, true), ("/batch/", &hog, false)] {
        let text = body.to_string();
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text.as_bytes()).unwrap();
        let packed = encoder.finish().unwrap();
        assert!(text.len() > 1 << 20 && text.len() > 40 * packed.len(), "{} of {}", packed.len(), text.len());
        let mut request = http.post(path).header("content-encoding", "gzip").body(packed);
        if in_header {
            request = request.basic_auth(&keys["app"], Some(""));
        }
        let (status, answer) = parts(request.send().await.unwrap()).await;
        assert_eq!((status, &answer["refused"]), (200, &Value::Null), "{path}: {answer}");
    }
    until_equal("all are stored", 200, async || jobs(&installation).len()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_below_the_batch_of_an_sdk_makes_it_wait_and_loses_nothing() {
    let slow = [&SCOPES[..], &["--rate", "10/s", "--burst", "5"]].concat();
    let once = [&SCOPES[..], &["--rate", "1/h", "--burst", "5"]].concat();
    let (installation, up, keys) = with_keys(&[("slow", &slow), ("once", &once), ("hog", &once), ("cloud", &once)], "");
    // More at once than the key ever holds. It counts as all that it holds.
    let http = Http::with_key(up.gateway(), &keys["once"]);
    let first = http.post("/v1/batch").json(&batch((0..20).map(|n| format!("once-{n}")))).send().await.unwrap();
    assert_eq!(first.headers()["ratelimit"], "\"default\";r=0;t=18000");
    assert_eq!(parts(first).await, (200, json!({ "success": true })));
    let second = http.post("/v1/batch").json(&batch(["once-again".into()])).send().await.unwrap();
    assert!(pause(&second).is_some_and(|pause| (3500..=3600).contains(&pause)), "{second:?}");
    assert_eq!(code(second).await, (429, "rate_limited".into()));
    // Where some of it is left, the pause is until the whole of it fits: one of the four that were left was counted
    // before the request was read, and all five are back in two hours.
    let hog = Http::to(up.gateway());
    let send = async |ids: std::ops::Range<u32>| {
        let body = posthog(&keys["hog"], ids.map(|n| format!("hog-{n}")));
        hog.post("/batch/").json(&body).send().await.unwrap()
    };
    assert_eq!(send(0..1).await.status(), 200);
    let later = send(1..20).await;
    assert!(pause(&later).is_some_and(|pause| (7100..=7200).contains(&pause)), "{later:?}");
    assert_eq!(code(later).await, (429, "rate_limited".into()));
    // Who waits gets through.
    let http = Http::with_key(up.gateway(), &keys["slow"]);
    for round in 0..3 {
        let body = batch((0..20).map(|n| format!("slow-{round}-{n}")));
        until("it is taken", async || {
            let response = http.post("/v1/batch").json(&body).send().await.unwrap();
            match response.status().as_u16() {
                429 => {
                    tokio::time::sleep(Duration::from_secs(pause(&response).unwrap())).await;
                    None
                }
                status => {
                    assert_eq!(status, 200);
                    Some(())
                }
            }
        })
        .await;
    }
    until_equal("all are stored", 20 + 1 + 60, async || jobs(&installation).len()).await;
    // A batch that can be cut is told so.
    let cloud: Vec<_> =
        (0..6).map(|n| json!({ "specversion": "1.0", "type": "t", "source": "/s", "id": n.to_string() })).collect();
    let http = Http::with_key(up.gateway(), &keys["cloud"]);
    let request = http.post("/v1/events").header("content-type", "application/cloudevents-batch+json");
    let response = request.body(Value::from(cloud).to_string()).send().await.unwrap();
    assert_eq!(code(response).await, (413, "batch_exceeds_limit".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_for_other_kinds_is_told_so_and_not_that_all_is_well() {
    let other = [&SCOPES[..], &["--kind", "webhook.deliver"]].concat();
    let (installation, up, keys) = with_keys(&[("other", &other)], "");
    let http = Http::with_key(up.gateway(), &keys["other"]);
    for (path, body) in [
        ("/v1/batch", batch(["m1".into()])),
        ("/v1/track", event("m2")),
        ("/batch/", posthog(&keys["other"], ["m3".into()])),
    ] {
        let (status, problem) = parts(http.post(path).json(&body).send().await.unwrap()).await;
        assert_eq!((status, problem["code"].as_str()), (403, Some("kind_not_allowed")), "{path}: {problem}");
        assert_eq!(problem["message"], problem["detail"], "as RudderStack's SDK needs it");
    }
    assert_eq!(jobs(&installation).len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_bad_costs_as_much_as_one_that_is_good() {
    let rate = [&SCOPES[..], &["--rate", "3/h"]].concat();
    let names = ["segment", "one", "hog", "mute", "cloud", "many"];
    let all: Vec<(&str, &[&str])> = names.iter().map(|name| (*name, &rate[..])).collect();
    let (installation, up, keys) = with_keys(&all, "");
    let http = Http::to(up.gateway());
    for (name, path, media, body, status) in [
        ("segment", "/v1/batch", "application/json", "{\"batch\": 1}".to_owned(), 400),
        ("one", "/v1/track", "application/json", "nothing".to_owned(), 400),
        ("mute", "/batch/", "application/json", "nothing".to_owned(), 400),
        (
            "hog",
            "/batch/",
            "application/json",
            posthog(&keys["hog"], (0..5001).map(|n| n.to_string())).to_string(),
            413,
        ),
        ("cloud", "/v1/events", "application/cloudevents+json", "{\"id\": 1}".to_owned(), 422),
        ("many", "/v1/events", "application/cloudevents-batch+json", "{}".to_owned(), 422),
    ] {
        let send = async || {
            let mut request = http.post(path).header("content-type", media).body(body.clone());
            if name != "hog" {
                request = request.bearer_auth(&keys[name]);
            }
            code(request.send().await.unwrap()).await
        };
        for _ in 0..3 {
            let answer = send().await;
            assert_eq!(answer.0, status, "{name}: {answer:?}");
        }
        assert_eq!(send().await, (429, "rate_limited".into()), "{name}");
    }
    assert_eq!(jobs(&installation).len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_quota_refuses_costs_nothing_of_the_rate() {
    let both = [&SCOPES[..], &["--rate", "10/h", "--quota", "3/d"]].concat();
    let (_installation, up, keys) = with_keys(&[("app", &both)], "");
    let http = Http::with_key(up.gateway(), &keys["app"]);
    assert_eq!(http.post("/v1/batch").json(&batch((0..3).map(|n| n.to_string()))).send().await.unwrap().status(), 200);
    for n in 0..5 {
        let response = http.post("/v1/track").json(&event(&n.to_string())).send().await.unwrap();
        let standing = response.headers()["ratelimit"].to_str().unwrap().to_owned();
        assert!(standing.starts_with("\"default\";r=7;") && standing.contains("\"quota\";r=0;"), "{standing}");
        assert_eq!(code(response).await, (429, "rate_limited".into()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installation_without_a_worker_for_events_asks_for_them_again() {
    let file = LiteFile::create();
    let database = file.open().await;
    let store = Arc::new(Sqlite::new(database.clone()));
    let keys = Arc::new(Keyring::new(&[], true, store.clone()));
    let listener = serve::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let gateway = Gateway::new(Parts {
        registry: Registry::default(),
        broker: Arc::new(Embedded::open(database).await.unwrap()),
        store,
        minter: Arc::new(Minter::new(&Secret::generate().unwrap(), &[Secret::generate().unwrap()]).unwrap()),
        sources: BTreeMap::new(),
        events: Events::default(),
        door: Door { keys, open: Some(address), trusted_proxies: Vec::new() },
        remembered: Duration::from_hours(1),
    });
    let stop = CancellationToken::new();
    let serving = tokio::spawn(serve::serve(listener, gateway.routes(), serve::Settings::default(), stop.clone()));
    let http = Http::to(&format!("http://{address}"));
    for (path, body) in
        [("/v1/batch", batch(["m1".into()])), ("/v1/track", event("m2")), ("/batch/", posthog("any", ["m3".into()]))]
    {
        let response = http.post(path).json(&body).send().await.unwrap();
        assert!(pause(&response).is_some_and(|pause| pause > 0), "{response:?}");
        assert_eq!(code(response).await, (503, "unknown_kind".into()), "{path}");
    }
    stop.cancel();
    serving.await.unwrap();
}
