//! Behaviour tracking: what the routes of SDKs take, what they refuse and how, over real sockets.

mod verdicts;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    time::Instant,
};

use flate2::{Compression, write::GzEncoder};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::harness::{
    http::{Http, parts},
    process::{Installation, Up},
    proxy::Proxy,
    wait::{until, until_equal},
};

struct Tracked {
    installation: Installation,
    up: Up,
    http: Http,
}

impl Tracked {
    fn open() -> Self {
        let installation = Installation::embedded("");
        let up = installation.up(&[]);
        let http = Http::to(up.gateway());
        Self { installation, up, http }
    }

    /// What a request is answered.
    async fn send(&self, path: &str, body: &Value) -> (u16, Value) {
        parts(self.http.post(path).json(body).send().await.unwrap()).await
    }

    /// So many events, once they are stored, by their message ids.
    async fn stored(&self, count: usize) -> BTreeMap<String, Value> {
        until_equal("events that are stored", count, async || ids(&self.installation).len()).await;
        let mut events = BTreeMap::new();
        for id in ids(&self.installation) {
            let event = self.http.job(&id).await["output"].clone();
            events.insert(event["message_id"].as_str().expect("an id").to_owned(), event);
        }
        events
    }
}

/// The ids of all jobs that there are, each of them an event's that is stored.
fn ids(installation: &Installation) -> Vec<String> {
    let mut ids = Vec::new();
    for state in ["succeeded", "dead", "scheduled", "retrying", "queued"] {
        let listed = installation.run(&["job", "list", "--state", state, "--limit", "10000", "-o", "json"]).json();
        for job in listed.as_array().unwrap() {
            assert_eq!((job["kind"].as_str(), job["state"].as_str()), (Some("analytics.event"), Some("succeeded")));
            ids.push(job["id"].as_str().unwrap().to_owned());
        }
    }
    ids
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn at(value: &Value) -> Timestamp {
    value.as_str().unwrap_or_else(|| panic!("{value} is an instant")).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_of_segment_is_stored_with_everything_that_it_says() {
    let tracked = Tracked::open();
    // As Segment's SDKs send them: with nulls for what is not known, and much that is for Segment's own servers.
    let batch = json!({
        "batch": [
            { "type": "track", "messageId": "m-track", "userId": "u1", "anonymousId": null, "event": "Order Completed",
              "properties": { "revenue": -25.5, "big": 18_446_744_073_709_551_615_u64, "name": "canary-in-an-event", "items": [{ "sku": "45" }], "ü": null },
              "timestamp": "2026-03-01T10:00:00.000Z", "context": { "ip": "8.8.8.8" }, "integrations": { "All": true },
              "_metadata": { "nodeVersion": "v24" } },
            { "type": "identify", "messageId": "m-identify", "userId": 97_980, "anonymousId": "a1", "traits": { "plan": "free" },
              "context": { "traits": { "plan": "old" } } },
            { "type": "identify", "messageId": "m-rudder", "userId": "u1", "originalTimestamp": "2026-03-01T10:00:00Z",
              "context": { "traits": { "plan": "paid" } }, "channel": "server" },
            { "type": "page", "messageId": "m-page", "anonymousId": "a1", "name": "Index", "category": "Docs",
              "properties": { "url": "https://x" } },
            { "type": "page", "messageId": "m-nameless", "anonymousId": "a1", "name": null, "category": "" },
            { "type": "screen", "messageId": "m-screen", "anonymousId": "a1", "name": "Start", "properties": null },
            { "type": "group", "messageId": "m-group", "userId": "u1", "groupId": "g1", "traits": { "seats": 3 } },
            { "type": "alias", "messageId": "m-alias", "userId": "u1", "previousId": "a1" },
        ],
        "sentAt": "2026-03-01T10:00:00.000Z",
        "writeKey": "k",
        "context": {},
    });
    assert_eq!(tracked.send("/v1/batch", &batch).await, (200, json!({ "success": true })));
    let events = tracked.stored(8).await;
    let has = |id: &str, expected: Value| {
        let event = &events[id];
        for (field, value) in expected.as_object().unwrap() {
            assert_eq!(event[field], *value, "{field} of {event}");
        }
    };
    has(
        "m-track",
        json!({
            "call": "track", "event": "Order Completed", "user_id": "u1", "anonymous_id": null,
            "props": batch["batch"][0]["properties"], "ctx": { "ip": "8.8.8.8" }, "orig_ts": "2026-03-01T10:00:00Z",
            "sent_at": "2026-03-01T10:00:00Z",
        }),
    );
    has(
        "m-identify",
        json!({ "call": "identify", "event": "identify", "user_id": "97980", "anonymous_id": "a1",
        "props": { "plan": "free" }, "orig_ts": null }),
    );
    has("m-rudder", json!({ "props": { "plan": "paid" }, "orig_ts": "2026-03-01T10:00:00Z" }));
    has("m-page", json!({ "call": "page", "event": "Index", "category": "Docs", "props": { "url": "https://x" } }));
    has("m-nameless", json!({ "call": "page", "event": "page", "category": null }));
    has("m-screen", json!({ "call": "screen", "event": "Start", "props": null }));
    has("m-group", json!({ "call": "group", "event": "group", "group_id": "g1", "props": { "seats": 3 } }));
    has("m-alias", json!({ "call": "alias", "event": "alias", "user_id": "u1", "previous_id": "a1" }));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_event_alone_goes_to_the_page_of_its_call_whatever_it_says_of_its_type() {
    let tracked = Tracked::open();
    let mut ids = BTreeSet::new();
    for call in ["track", "identify", "page", "screen", "group", "alias"] {
        for (slash, content_type) in [
            ("", "application/json"),
            ("/", "text/plain"),
            ("", "application/x-www-form-urlencoded"),
            ("/", "nothing at all"),
        ] {
            let id = format!("{call}-{}", ids.len());
            let body = json!({ "type": "other", "userId": "u1", "event": "e", "messageId": id });
            // With a byte order mark, as some platforms write it.
            let body = format!("\u{feff}{body}");
            let request = tracked.http.post(&format!("/v1/{call}{slash}")).header("content-type", content_type);
            let response = request.body(body).send().await.unwrap();
            assert_eq!(response.headers()["content-type"], "application/json");
            assert_eq!(parts(response).await, (200, json!({ "success": true })), "{call}{slash} {content_type}");
            ids.insert(id);
        }
    }
    // Without a content type, chunked, and without an id: each time another event.
    for _ in 0..2 {
        let chunks = ["{\"userId\":\"u1\",", "\"event\":\"e\"}"].map(Ok::<_, std::io::Error>);
        let body = reqwest::Body::wrap_stream(futures_util::stream::iter(chunks));
        let response = tracked.http.post("/v1/track").body(body).send().await.unwrap();
        assert_eq!(parts(response).await, (200, json!({ "success": true })));
    }
    let events = tracked.stored(26).await;
    for id in ids {
        assert_eq!(events[&id]["call"], id.split('-').next().unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gzipped_batch_is_read_whatever_its_content_type_says() {
    let tracked = Tracked::open();
    // RudderStack's SDK for Node sends it as a form.
    for (n, content_type) in ["application/x-www-form-urlencoded", "application/json", "text/plain"].iter().enumerate()
    {
        let event = json!({ "type": "track", "event": "e", "userId": "u1", "messageId": n.to_string(),
            "originalTimestamp": "2026-03-01T10:00:00.000Z" });
        let batch = json!({ "batch": [event], "sentAt": "2026-03-01T10:00:01.000Z" }).to_string();
        let request = tracked.http.post("/v1/batch").header("content-type", *content_type);
        let response = request.header("content-encoding", "gzip").body(gzip(&batch)).send().await.unwrap();
        assert_eq!(parts(response).await, (200, json!({ "success": true })), "{content_type}");
    }
    let events = tracked.stored(3).await;
    assert!(events.values().all(|event| event["orig_ts"] == "2026-03-01T10:00:00Z"));
    // What is cut off, or is more than is taken once it is unpacked.
    let packed = gzip("{\"batch\":[]}");
    for (body, status, code) in [
        (packed[..packed.len() - 9].to_vec(), 400, "bad_gzip"),
        (gzip(&format!("{{\"batch\":[],\"x\":\"{}\"}}", "x".repeat(10 << 20))), 413, "too_large_decompressed"),
    ] {
        let request = tracked.http.post("/v1/batch").header("content-encoding", "gzip");
        let (got, problem) = parts(request.body(body).send().await.unwrap()).await;
        assert_eq!((got, problem["code"].as_str()), (status, Some(code)), "{problem}");
        assert_eq!(problem["message"], problem["detail"]);
    }
    assert_eq!(ids(&tracked.installation).len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn posthog_gets_its_own_answer_and_its_events_their_place() {
    let tracked = Tracked::open();
    let uuid = |n: u32| format!("0190aaaa-bbbb-4ccc-8ddd-0000000000{n:02}");
    let batch = json!({
        "api_key": "phc_key",
        "historical_migration": false,
        "sent_at": "2026-03-01T10:00:10Z",
        "batch": [
            { "event": "paid", "distinct_id": "u1", "uuid": uuid(0), "timestamp": "2026-03-01T10:00:00Z",
              "properties": { "$lib": "posthog-python", "$process_person_profile": true } },
            { "event": "seen", "distinct_id": "made-up", "uuid": uuid(1),
              "properties": { "$process_person_profile": false } },
            { "event": "$set", "distinct_id": 7, "uuid": uuid(2), "$set": { "plan": "paid" }, "properties": {} },
            { "event": "$identify", "distinct_id": "u1", "uuid": uuid(3), "$set_once": { "first": 1 },
              "properties": { "$anon_distinct_id": "a1", "$set_once": { "first": 0 } } },
            { "event": "$groupidentify", "distinct_id": "u1", "uuid": uuid(4), "properties": { "$group_key": "g1" } },
            { "event": "$pageview", "distinct_id": "u1", "uuid": uuid(5) },
            { "event": "imported", "distinct_id": "u1", "uuid": uuid(6), "timestamp": "2026-02-01T00:00:00Z",
              "properties": { "$ignore_sent_at": true } },
        ],
    });
    for path in ["/batch/", "/batch"] {
        assert_eq!(tracked.send(path, &batch).await, (200, json!({ "status": "Ok" })), "{path}");
    }
    let events = tracked.stored(7).await;
    let event = |n: u32| &events[&uuid(n)];
    assert_eq!(
        (&event(0)["call"], &event(0)["event"], &event(0)["user_id"]),
        (&json!("track"), &json!("paid"), &json!("u1"))
    );
    let waited = at(&event(0)["received_at"]).duration_since(at(&event(0)["ts"]));
    assert_eq!(waited, SignedDuration::from_secs(10), "it was sent ten seconds after it happened");
    assert_eq!((&event(1)["user_id"], &event(1)["anonymous_id"]), (&Value::Null, &json!("made-up")));
    assert_eq!((&event(2)["call"], &event(2)["props"]["$set"]["plan"]), (&json!("identify"), &json!("paid")));
    assert_eq!(event(2)["user_id"], "7");
    assert_eq!((&event(3)["anonymous_id"], &event(3)["props"]["$set_once"]["first"]), (&json!("a1"), &json!(0)));
    assert_eq!((&event(4)["call"], &event(4)["group_id"]), (&json!("group"), &json!("g1")));
    assert_eq!(event(5)["call"], "page");
    assert_eq!(event(6)["ts"], "2026-02-01T00:00:00Z", "its sender's clock is right");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_of_an_event_is_corrected_and_what_was_said_is_kept() {
    let tracked = Tracked::open();
    // Each: what the event says, what the batch says, and by how much `ts` lies before `received_at`.
    let cases = [
        // An hour fast, 30 s in the SDK's queue.
        (json!({ "timestamp": "2031-05-05T11:00:00Z" }), json!("2031-05-05T11:00:30Z"), Some(30_000)),
        // Years slow, and its offset says the same instant otherwise.
        (json!({ "timestamp": "2001-05-05T13:00:00.5+02:00" }), json!("2001-05-05T11:00:30Z"), Some(29_500)),
        // What the event says itself counts more than what its batch says.
        (
            json!({ "timestamp": "2001-05-05T11:00:00Z", "sentAt": "2001-05-05T11:00:01Z" }),
            json!("2021-01-01T00:00:00Z"),
            Some(1000),
        ),
        // RudderStack's name for it.
        (
            json!({ "originalTimestamp": "2001-05-05T11:00:00Z", "timestamp": "2021-05-05T11:00:00Z" }),
            json!("2001-05-05T11:00:07Z"),
            Some(7000),
        ),
        // No further ahead than five minutes.
        (json!({ "timestamp": "2001-05-05T11:10:00Z" }), json!("2001-05-05T11:00:00Z"), Some(-300_000)),
        (json!({ "timestamp": "2001-05-05T11:03:00Z" }), json!("2001-05-05T11:00:00Z"), Some(-180_000)),
        (json!({ "timestamp": "9999-01-01T00:00:00Z" }), Value::Null, Some(-300_000)),
        // Nothing was said of when it happened.
        (json!({}), json!("2001-05-05T11:00:00Z"), Some(0)),
        (json!({ "timestamp": null }), Value::Null, Some(0)),
        // Nothing was said of when it was sent, or nothing that can be read.
        (json!({ "timestamp": "2001-05-05T11:00:00Z" }), Value::Null, None),
        (json!({ "timestamp": "2001-05-05T11:00:00Z" }), json!("now"), None),
        (json!({ "timestamp": "2001-05-05T11:00:00Z" }), json!({ "at": [1] }), None),
    ];
    let began = Timestamp::now();
    for (n, (event, sent_at, _)) in cases.iter().enumerate() {
        let mut event = event.clone();
        event["type"] = json!("track");
        event["event"] = json!("e");
        event["userId"] = json!("u1");
        event["messageId"] = json!(n.to_string());
        let batch = json!({ "batch": [event], "sentAt": sent_at });
        assert_eq!(tracked.send("/v1/batch", &batch).await, (200, json!({ "success": true })));
    }
    let events = tracked.stored(cases.len()).await;
    for (n, (said, sent_at, before)) in cases.iter().enumerate() {
        let event = &events[&n.to_string()];
        let received = at(&event["received_at"]);
        assert!(received >= began - SignedDuration::from_secs(1) && received <= Timestamp::now(), "{event}");
        let original = said.get("originalTimestamp").or_else(|| said.get("timestamp")).filter(|at| !at.is_null());
        assert_eq!(original.map(at), event.get("orig_ts").map(at), "{event}");
        let sent = said.get("sentAt").unwrap_or(sent_at).as_str().and_then(|at| at.parse::<Timestamp>().ok());
        assert_eq!(sent, event.get("sent_at").map(at), "{event}");
        match before {
            Some(millis) => {
                let before = received.duration_since(at(&event["ts"]));
                assert_eq!(before, SignedDuration::from_millis(*millis), "{said} {sent_at} {event}");
            }
            None => assert_eq!(event["ts"], event["orig_ts"]),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_request_of_an_sdk_is_refused_whole_and_nothing_is_taken() {
    let tracked = Tracked::open();
    let event = "{\"type\":\"track\",\"event\":\"e\",\"userId\":\"u1\"}";
    let cases: Vec<(&str, Vec<u8>, u16, &str)> = vec![
        ("/v1/batch", b"".to_vec(), 400, "empty_body"),
        ("/v1/batch", b"\xef\xbb\xbf \n".to_vec(), 400, "empty_body"),
        ("/v1/batch", format!("{{\"batch\":[{event}").into_bytes(), 400, "invalid_json"),
        ("/v1/batch", format!("{{\"batch\":[{event}]}}}}").into_bytes(), 400, "invalid_json"),
        (
            "/v1/batch",
            format!("{{\"batch\":[{event},{{\"a\":\"").into_bytes().into_iter().chain(*b"\xff\"}]}").collect(),
            400,
            "invalid_json",
        ),
        ("/v1/batch", b"\x1f\x8b\x08\x00".to_vec(), 400, "invalid_json"),
        ("/v1/batch", b"<html>".to_vec(), 400, "invalid_json"),
        ("/v1/batch", b"batch=1".to_vec(), 400, "invalid_json"),
        ("/v1/batch", format!("[{event}]").into_bytes(), 400, "bad_batch"),
        ("/v1/batch", event.as_bytes().to_vec(), 400, "bad_batch"),
        ("/v1/batch", b"{\"batch\":{}}".to_vec(), 400, "bad_batch"),
        ("/v1/batch", b"{\"batch\":null}".to_vec(), 400, "bad_batch"),
        ("/v1/batch", format!("{{\"batch\":[{event}],\"batch\":[{event}]}}").into_bytes(), 400, "bad_batch"),
        ("/v1/batch/", b"7".to_vec(), 400, "bad_batch"),
        ("/v1/track", b"{\"event\":\"e\"".to_vec(), 400, "invalid_json"),
        ("/v1/track/", b"".to_vec(), 400, "empty_body"),
        ("/batch/", b"{\"api_key\":\"k\"}".to_vec(), 400, "bad_batch"),
        ("/batch", b"nothing".to_vec(), 400, "invalid_json"),
        ("/v1/batch", format!("{{\"batch\":[{}{event}]}}", "{},".repeat(5000)).into_bytes(), 413, "too_many_events"),
    ];
    for (path, body, status, code) in cases {
        let shown = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
        let response =
            tracked.http.post(path).header("content-type", "application/json").body(body).send().await.unwrap();
        assert_eq!(response.headers()["content-type"], "application/problem+json", "{path} {shown}");
        let (got, problem) = parts(response).await;
        assert_eq!((got, problem["code"].as_str()), (status, Some(code)), "{path} {shown} {problem}");
        // RudderStack's SDK repeats what is refused without one.
        assert_eq!(problem["message"], problem["detail"], "{path} {shown}");
    }
    // Longer than is taken, which is known before it is sent.
    let address = tracked.up.gateway().trim_start_matches("http://").to_owned();
    let mut stream = TcpStream::connect(&address).await.unwrap();
    let head = format!("POST /v1/batch HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", (10 << 20) + 1);
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("10485760"), "{answer}");
    assert!(answer.contains("\"message\":\"the body is longer"), "{answer}");
    let get = tracked.http.get("/v1/batch").send().await.unwrap();
    assert_eq!((get.status().as_u16(), get.headers()["allow"].to_str().unwrap()), (405, "POST"));
    assert_eq!(tracked.send("/v1/batches", &json!({})).await.0, 404);
    assert_eq!(ids(&tracked.installation), Vec::<String>::new());
    // Nothing to do is no mistake.
    assert_eq!(tracked.send("/v1/batch", &json!({ "batch": [] })).await, (200, json!({ "success": true })));
}

#[tokio::test(flavor = "multi_thread")]
async fn as_much_as_any_sdk_sends_is_taken_at_once() {
    let tracked = Tracked::open();
    // 5,000 events, the most that there may be, of almost 2 KiB each: about 9.5 MiB.
    let filler = "x".repeat(1950);
    let events: Vec<_> = (0..5000)
        .map(|n| json!({ "type": "track", "event": "e", "userId": "u1", "messageId": format!("m{n}"), "properties": { "f": filler } }))
        .collect();
    let batch = json!({ "batch": events, "sentAt": "2026-03-01T10:00:00Z" });
    assert!((9 << 20..10 << 20).contains(&batch.to_string().len()), "{}", batch.to_string().len());
    // Plain, and as gzip, to about a two-hundredth: the repeat is the same events.
    let packed = gzip(&batch.to_string());
    assert!(packed.len() < 100 << 10, "{}", packed.len());
    let send = async |is_packed: bool| {
        let request = tracked.http.post("/v1/batch");
        let request = match is_packed {
            true => request.header("content-encoding", "gzip").body(packed.clone()),
            false => request.json(&batch),
        };
        parts(request.send().await.unwrap()).await
    };
    for is_packed in [true, false] {
        let began = Instant::now();
        let (status, answer) = send(is_packed).await;
        assert!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
        if status == 503 {
            // On a machine that is too slow for it.
            assert_eq!(answer["code"], "outcome_unknown", "{answer}");
            until("all are taken", async || (send(is_packed).await.0 == 200).then_some(())).await;
        } else {
            assert_eq!((status, answer), (200, json!({ "success": true })));
        }
    }
    until_equal("events that are stored", 5000, async || ids(&tracked.installation).len()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_with_another_time_and_another_order_is_the_same_events() {
    let tracked = Tracked::open();
    let event = |n: u32| json!({ "type": "track", "event": "e", "userId": "u1", "messageId": format!("m{n}") });
    let (first, second) = (vec![event(1), event(2), event(3)], vec![event(3), event(4), event(1)]);
    for (sent_at, batch) in
        [("2026-03-01T10:00:00Z", &first), ("2026-03-01T10:00:05Z", &first), ("2026-03-01T10:00:09Z", &second)]
    {
        let batch = json!({ "batch": batch, "sentAt": sent_at });
        assert_eq!(tracked.send("/v1/batch", &batch).await, (200, json!({ "success": true })));
    }
    // The same id from elsewhere is another event.
    let posthog = json!({ "api_key": "k", "batch": [{ "event": "e", "distinct_id": "u1", "uuid": "m1" }] });
    assert_eq!(tracked.send("/batch/", &posthog).await.0, 200);
    assert_eq!(tracked.send("/v1/track", &event(1)).await.0, 200);
    tracked.send("/v1/track", &event(5)).await;
    until_equal("events that are stored", 6, async || ids(&tracked.installation).len()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_broker_fails_an_sdk_is_told_when_to_send_again_and_nothing_is_doubled() {
    let Some(installation) = Installation::on_servers("").await else { return };
    let (rabbit, database) = installation.servers().unwrap();
    let proxy = Proxy::before(rabbit.address()).await;
    let keys = installation.run(&["config", "keys"]).stdout;
    let settings = |broker: &str| {
        format!(
            "{keys}\n[broker]\nurl = \"{broker}\"\nprefix = \"{}\"\n[database]\nurl = \"{}\"\n",
            rabbit.prefix, database.url
        )
    };
    std::fs::write(installation.file(), settings(&rabbit.url)).unwrap();
    let _rest = installation.up(&["worker", "dispatcher", "keeper"]);
    std::fs::write(installation.file(), settings(&rabbit.through(proxy.port))).unwrap();
    let gateway = installation.up(&["gateway"]);
    let http = Http::to(gateway.gateway());
    let batch = |from: usize, to: usize| {
        let events: Vec<_> = (from..to)
            .map(|n| json!({ "type": "track", "event": "e", "userId": "u1", "messageId": format!("event-{n:05}-") }))
            .collect();
        json!({ "batch": events, "sentAt": "2026-03-01T10:00:00Z" })
    };
    let send = async |batch: &Value| {
        let began = Instant::now();
        let response = http.post("/v1/batch").json(batch).send().await.unwrap();
        assert!(began.elapsed().as_secs() < 10, "it took {:?}", began.elapsed());
        let pause = response.headers().get("retry-after").map(|pause| pause.to_str().unwrap().parse::<u32>().unwrap());
        let (status, answer) = parts(response).await;
        (status, pause, answer)
    };
    until("the broker is reached", async || (send(&batch(0, 10)).await.0 == 200).then_some(())).await;
    // Away: nothing is taken, and it says so.
    proxy.refuse(true);
    let (status, pause, answer) =
        until("it is missed", async || Some(send(&batch(10, 20)).await).filter(|said| said.0 == 503)).await;
    assert!(status == 503 && pause.is_some_and(|pause| pause > 0), "{answer}");
    until("nothing is said to be unknown", async || {
        let (_, pause, answer) = send(&batch(10, 20)).await;
        (answer["code"] == "broker_unavailable" && pause.is_some()).then_some(())
    })
    .await;
    proxy.refuse(false);
    until("it is back", async || (send(&batch(10, 20)).await.0 == 200).then_some(())).await;
    // Gone in the midst of a batch: what came before is confirmed, of the rest nobody knows.
    proxy.swallow_answer_to(b"event-01700-");
    let (status, pause, answer) = send(&batch(20, 2000)).await;
    assert!(proxy.has_swallowed());
    assert_eq!((status, answer["code"].as_str()), (503, Some("outcome_unknown")), "{answer}");
    assert!(pause.is_some_and(|pause| pause > 0), "{answer}");
    until("it is back", async || (send(&batch(20, 2000)).await.0 == 200).then_some(())).await;
    // It confirms nothing any more.
    proxy.mute_server(true);
    let (status, pause, answer) = send(&batch(2000, 2010)).await;
    assert_eq!((status, answer["code"].as_str()), (503, Some("outcome_unknown")), "{answer}");
    assert!(pause.is_some_and(|pause| pause > 0), "{answer}");
    proxy.mute_server(false);
    proxy.cut();
    until("it is back", async || (send(&batch(2000, 2010)).await.0 == 200).then_some(())).await;
    until_equal("events that are stored", 2010, async || ids(&installation).len()).await;
    until_equal("events that wait", Some(0), async || {
        let queues = installation.run(&["queue", "list", "-o", "json"]).json();
        queues.as_array().unwrap().iter().map(|queue| queue["waiting"].as_u64()).sum::<Option<u64>>()
    })
    .await;
    assert_eq!(ids(&installation).len(), 2010, "each once");
}
