//! What becomes of each event of many: which are refused, by what name, and which are taken however odd they are.

use std::collections::BTreeMap;

use jiff::SignedDuration;
use serde_json::{Value, json};

use super::{Tracked, at, ids};
use crate::harness::{counted::counted, http::parts, wait::until_equal};

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_event_is_refused_by_name_and_spoils_no_other() {
    let tracked = Tracked::open();
    let deep = format!("{}1{}", "[".repeat(70), "]".repeat(70));
    let deepest = format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000));
    let long = "x".repeat(32 * 1024);
    let track = |rest: &str| format!("{{\"type\":\"track\",\"event\":\"e\",\"userId\":\"u1\",{rest}}}");
    // Each with its code and the place that is named.
    let cases: Vec<(String, &str, &str)> = vec![
        ("1".into(), "bad_event", ""),
        ("\"track\"".into(), "bad_event", ""),
        ("null".into(), "bad_event", ""),
        ("[{}]".into(), "bad_event", ""),
        ("{}".into(), "missing_field", "/type"),
        ("{\"type\":\"trak\",\"userId\":\"u1\"}".into(), "unknown_value", "/type"),
        ("{\"type\":7,\"userId\":\"u1\"}".into(), "bad_event", "/type"),
        ("{\"type\":\"track\",\"userId\":\"u1\"}".into(), "missing_field", "/event"),
        ("{\"type\":\"track\",\"userId\":\"u1\",\"event\":\"\"}".into(), "invalid_body", "/event"),
        ("{\"type\":\"track\",\"event\":\"e\",\"userId\":null,\"anonymousId\":\"\"}".into(), "invalid_body", ""),
        (track("\"anonymousId\":0.5"), "bad_event", "/anonymousId"),
        (track("\"messageId\":[]"), "bad_event", "/messageId"),
        (track(&format!("\"messageId\":\"{}\"", "m".repeat(256))), "invalid_body", "/message_id"),
        (track(&format!("\"anonymousId\":\"{}\"", "m".repeat(1025))), "invalid_body", "/anonymous_id"),
        (track("\"timestamp\":\"yesterday\""), "bad_timestamp", "/timestamp"),
        (track("\"timestamp\":1772366400"), "bad_timestamp", "/timestamp"),
        (track("\"originalTimestamp\":{}"), "bad_timestamp", "/originalTimestamp"),
        (track("\"properties\":[1]"), "invalid_body", "/props"),
        (track("\"properties\":\"x\""), "invalid_body", "/props"),
        (track("\"context\":1"), "invalid_body", "/ctx"),
        (track("\"properties\":{\"a\":1,\"a\":2}"), "duplicate_key", "/props/a"),
        (track("\"properties\":{\"a\":{\"b\":1,\"b\":2}}"), "duplicate_key", "/props/a/b"),
        (track("\"properties\":{},\"properties\":{}"), "bad_event", ""),
        (track("\"properties\":{\"n\":18446744073709551616}"), "invalid_body", "/props/n"),
        (track("\"properties\":{\"n\":1e999}"), "invalid_body", "/props/n"),
        (track(&format!("\"properties\":{{\"a\":{deep}}}")), "too_deep", ""),
        (track(&format!("\"properties\":{{\"a\":{deepest}}}")), "too_deep", ""),
        (track(&format!("\"extra\":{deepest},\"event\":1")), "bad_event", ""),
        (track(&format!("\"properties\":{{\"a\":\"{long}\"}}")), "invalid_body", "/props"),
        (track(&format!("\"context\":{{\"a\":\"{long}\"}}")), "invalid_body", "/ctx"),
        (track(&format!("\"properties\":{{\"a\":\"{}\"}}", "x".repeat(1 << 20))), "too_large", ""),
        (track("\"messageId\":\"good-0\""), "duplicate_in_batch", ""),
    ];
    let good =
        |n: usize| format!("{{\"type\":\"track\",\"event\":\"e\",\"userId\":\"u1\",\"messageId\":\"good-{n}\"}}");
    let mut items = vec![good(0)];
    for (n, (bad, ..)) in cases.iter().enumerate() {
        items.extend([bad.clone(), good(n + 1)]);
    }
    // What SDKs write and JSON does not know.
    let odd = r#""messageId":"odd","properties":{"n":NaN,"i":[-Infinity],"s":"a\ud83d"}"#;
    items.push(track(odd));
    // As much as is taken, exactly: {"a":"…"} is 8 bytes around it.
    items.push(track(&format!("\"messageId\":\"most\",\"properties\":{{\"a\":\"{}\"}}", &long[8..])));
    let body = format!("{{\"batch\":[{}],\"sentAt\":\"2026-03-01T10:00:00Z\"}}", items.join(","));
    let (status, answer) = parts(tracked.http.post("/v1/batch").body(body).send().await.unwrap()).await;
    assert_eq!((status, &answer["success"]), (200, &json!(true)), "{answer}");
    let refused = answer["refused"].as_array().unwrap();
    for (n, (bad, code, pointer)) in cases.iter().enumerate() {
        let bad = &bad[..bad.len().min(100)];
        let verdict = refused.iter().find(|verdict| verdict["index"] == 2 * n + 1);
        let verdict = verdict.unwrap_or_else(|| panic!("{bad} was taken"));
        assert_eq!(verdict["code"], *code, "{bad} {verdict}");
        assert_eq!(verdict["errors"][0]["pointer"].as_str().unwrap_or_default(), *pointer, "{bad} {verdict}");
        assert!(verdict["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{bad} {verdict}");
    }
    assert_eq!(refused.len(), cases.len(), "and no other");
    assert_eq!(refused.last().unwrap()["message_id"], "good-0");
    let events = tracked.stored(cases.len() + 3).await;
    assert!(events.keys().all(|id| id.starts_with("good-") || id == "most" || id == "odd"));
    assert_eq!(events["odd"]["props"], json!({ "n": null, "i": [null], "s": "a\u{fffd}" }));
    // Alone it is refused in the same way: the SDK need not send it again.
    let (status, answer) = tracked.send("/v1/track", &json!({ "event": "e" })).await;
    assert_eq!((status, &answer["refused"][0]["code"]), (200, &json!("invalid_body")), "{answer}");
    let posthog = json!({ "api_key": "k", "batch": [
        { "event": "e", "uuid": "0" }, { "distinct_id": "u1" }, { "event": "e", "distinct_id": "u1", "timestamp": "x" },
        { "event": "e", "distinct_id": "u1", "properties": [] },
    ] });
    let (status, answer) = tracked.send("/batch/", &posthog).await;
    let codes: Vec<_> =
        answer["refused"].as_array().unwrap().iter().map(|verdict| verdict["code"].as_str().unwrap()).collect();
    assert_eq!((status, &answer["status"]), (200, &json!("Ok")));
    assert_eq!(codes, ["invalid_body", "missing_field", "bad_timestamp", "bad_event"]);
    assert_eq!(ids(&tracked.installation).len(), cases.len() + 3, "nothing of that was taken");
    let refused = async |reason| counted(&tracked.up, ("warren_events_refused_total", &[("reason", reason)])).await;
    assert_eq!(refused("too_deep").await, 2);
    // Nothing is lost by a repeat, so it is not counted among what is.
    assert_eq!(counted(&tracked.up, ("warren_events_repeated_total", &[])).await, 1);
    assert_eq!(refused("duplicate_in_batch").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_events_with_one_id_the_good_one_is_taken_whichever_comes_first() {
    let tracked = Tracked::open();
    let event = |id: &str, name: &str| json!({ "type": "track", "event": name, "userId": "u1", "messageId": id });
    let mut batch = vec![event("a", ""), event("a", "good"), event("a", "late"), event("b", "good"), event("b", "")];
    // The same where they are not read together.
    batch.push(event("c", ""));
    batch.extend((0..500).map(|n| event(&format!("m{n}"), "good")));
    batch.push(event("c", "good"));
    let (status, answer) = tracked.send("/v1/batch", &json!({ "batch": batch })).await;
    let refused: Vec<_> = answer["refused"].as_array().unwrap().iter().map(|it| (&it["index"], &it["code"])).collect();
    let (bad, repeated) = (&json!("invalid_body"), &json!("duplicate_in_batch"));
    let expected = [(&json!(0), bad), (&json!(2), repeated), (&json!(4), repeated), (&json!(5), bad)];
    assert_eq!((status, &refused[..]), (200, &expected[..]), "{answer}");
    until_equal("events that are stored", 503, async || ids(&tracked.installation).len()).await;
    let events = tracked.stored(503).await;
    assert!(events.values().all(|event| event["event"] == "good"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happened_always_or_never_is_taken_whatever_was_said_of_when_it_was_sent() {
    const FIRST: &str = "0001-01-01T00:00:00Z";
    const LAST: &str = "9999-12-30T22:00:00.999999999Z";
    let tracked = Tracked::open();
    let ends = [
        (FIRST, FIRST),
        ("0001-01-01T00:00:00", FIRST),
        ("0001-01-01T00:00:00+14:00", FIRST),
        ("9999-12-31T23:59:59Z", LAST),
        ("9999-12-31T23:59:59.9999999", LAST),
    ];
    // Ahead of our clock, behind it, never, always, and nothing that is a time.
    let sent = [
        "2091-01-01T00:00:00Z",
        "2001-01-01T00:00:00Z",
        FIRST,
        "0000-06-01T00:00:00Z",
        "-009999-01-03T00:00:00Z",
        "9999-12-31T23:59:59Z",
        "+012026-01-01T00:00:00Z",
    ];
    let mut expected = BTreeMap::new();
    for (s, sent_at) in sent.iter().enumerate() {
        let ids: Vec<_> = (0..ends.len()).map(|n| format!("{s}-{n}")).collect();
        let events = ids.iter().zip(ends);
        let segment: Vec<_> = events
            .clone()
            .map(|(id, (at, _))| {
                json!({ "type": "track", "event": "e", "userId": "u1", "messageId": format!("s{id}"), "timestamp": at })
            })
            .collect();
        let posthog: Vec<_> = events
            .clone()
            .map(
                |(id, (at, _))| json!({ "event": "e", "distinct_id": "u1", "uuid": format!("p{id}"), "timestamp": at }),
            )
            .collect();
        let answer = tracked.send("/v1/batch", &json!({ "batch": segment, "sentAt": sent_at })).await;
        assert_eq!(answer, (200, json!({ "success": true })), "{sent_at}");
        let answer = tracked.send("/batch/", &json!({ "api_key": "k", "batch": posthog, "sent_at": sent_at })).await;
        assert_eq!(answer, (200, json!({ "status": "Ok" })), "{sent_at}");
        for (id, (_, end)) in events {
            expected.insert(format!("s{id}"), (s, end));
            expected.insert(format!("p{id}"), (s, end));
        }
    }
    let events = tracked.stored(expected.len()).await;
    for (id, (s, end)) in expected {
        let event = &events[&id];
        assert_eq!(event["orig_ts"], end, "{event}");
        // A sender's clock is never at either end: what it says then is not known.
        assert_eq!(event["sent_at"], if s < 2 { json!(sent[s]) } else { Value::Null }, "{event}");
        if end == LAST {
            assert!(at(&event["ts"]) <= at(&event["received_at"]) + SignedDuration::from_mins(5), "{event}");
        } else {
            assert!(at(&event["ts"]) < "0100-01-01T00:00:00Z".parse().unwrap(), "{event}");
        }
    }
    let cloud = |time: &str| json!({ "specversion": "1.0", "type": "t", "source": "/s", "id": time, "time": time });
    for (time, end) in [(FIRST, FIRST), ("9999-12-31T23:59:59Z", LAST)] {
        let request = tracked.http.post("/v1/events").header("content-type", "application/cloudevents+json");
        let (status, answer) = parts(request.body(cloud(time).to_string()).send().await.unwrap()).await;
        assert_eq!(status, 202, "{time}: {answer}");
        let job = tracked.http.job_in(answer["jobs"][0]["id"].as_str().unwrap(), "succeeded").await;
        assert_eq!(job["output"]["time"], end, "{job}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_repeats_what_stood_in_a_body() {
    let tracked = Tracked::open();
    let value = "canary-in-a-value";
    for (path, body, status) in [
        ("/v1/batch", json!({ "batch": value }), 400),
        ("/v1/batch", json!(value), 400),
        ("/v1/batch", json!({ "batch": { value: 1 } }), 400),
        ("/batch/", json!({ "api_key": { value: 1 }, "batch": value }), 400),
        ("/batch/", json!({ "api_key": [value], "batch": [] }), 400),
        ("/v1/batch", json!({ "batch": [value, { "type": value, "userId": "u" }, { "type": [value] }] }), 200),
        ("/v1/track", json!({ "event": "e", "userId": { value: value } }), 200),
        ("/v1/track", json!({ "event": "e", "userId": "u", "messageId": [value] }), 200),
        ("/v1/track", json!({ "event": "e", "userId": "u", "timestamp": value }), 200),
        (
            "/batch/",
            json!({ "api_key": "k", "batch": [{ "event": "e", "distinct_id": "u", "properties": value }] }),
            200,
        ),
        ("/batch/", json!({ "api_key": "k", "batch": [{ "event": "e", "distinct_id": [value] }] }), 200),
    ] {
        let (got, answer) = tracked.send(path, &body).await;
        assert_eq!(got, status, "{path} {body}: {answer}");
        assert!(status != 200 || answer["refused"].is_array(), "{path} {body}: {answer}");
        assert!(!answer.to_string().contains("canary"), "{path} {body}: {answer}");
    }
}
