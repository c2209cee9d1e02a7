//! What messages allow beyond their types, every problem at once.

use serde_json::{Value, json};
use warren_messages::{Message, analytics::Event, codec, event::Received, probe::Probe, webhook::Deliver};

fn problems<M: Message>(body: Value) -> Vec<(String, String)> {
    let message: M = codec::from_json(body.to_string().as_bytes()).unwrap_or_else(|error| panic!("{body}: {error:?}"));
    match message.validate() {
        Ok(()) => Vec::new(),
        Err(invalid) => {
            invalid.problems().iter().map(|problem| (problem.pointer.clone(), problem.code.to_string())).collect()
        }
    }
}

fn deliver(change: impl FnOnce(&mut Value)) -> Vec<(String, String)> {
    let mut body = json!({ "url": "https://example.com/x", "event_type": "a.b", "event_id": "e1", "body": {} });
    change(&mut body);
    problems::<Deliver>(body)
}

fn one(pointer: &str, code: &str) -> Vec<(String, String)> {
    vec![(pointer.to_owned(), code.to_owned())]
}

#[test]
fn a_plain_webhook_is_allowed() {
    assert_eq!(deliver(|_| {}), []);
}

#[test]
fn a_url_travels_as_it_was_written() {
    // Read as a URL it would be `https://example.com/b?q=%20`.
    let url = "HTTPS://Example.com:443/a/../b?q= ";
    let body = json!({ "url": url, "event_type": "a.b", "event_id": "e1", "body": 1 });
    let message: Deliver = codec::from_json(body.to_string().as_bytes()).unwrap();
    message.validate().unwrap();
    let travelled: Deliver = codec::decode(Deliver::VERSION, &codec::encode(&message).unwrap()).unwrap();
    assert_eq!(travelled.url.as_str(), url);
    assert_eq!(travelled, message);
}

#[test]
fn a_webhook_names_a_place_that_can_be_called() {
    for url in [
        "example.com",
        "/relative",
        "ftp://example.com",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "https://user:secret@example.com",
        "https://user@example.com",
        "https://",
        "http://[::1",
        "",
    ] {
        assert_eq!(deliver(|body| body["url"] = json!(url)), one("/url", "bad_url"), "{url}");
    }
    let long = format!("https://example.com/{}", "x".repeat(2048));
    assert_eq!(deliver(|body| body["url"] = json!(long)), one("/url", "bad_url"));
}

#[test]
fn a_webhook_has_one_body_and_null_is_one() {
    assert_eq!(deliver(|body| body["body_base64"] = json!("AA==")), one("", "one_of"));
    assert_eq!(deliver(|body| _ = body.as_object_mut().map(|body| body.remove("body"))), one("", "one_of"));
    assert_eq!(deliver(|body| body["body"] = Value::Null), []);
}

#[test]
fn an_event_id_holds_nothing_that_the_signature_separates_by() {
    for id in ["a.b", "", "a b", "ä", &"x".repeat(256)] {
        assert_eq!(deliver(|body| body["event_id"] = json!(id)), one("/event_id", "bad_value"), "{id}");
    }
    for kind in ["", "a b", "order\nx", &"x".repeat(129)] {
        assert_eq!(deliver(|body| body["event_type"] = json!(kind)), one("/event_type", "bad_value"), "{kind}");
    }
}

#[test]
fn a_header_cannot_forge_the_signature_or_split_the_request() {
    let cases = [
        ("Host", "x", "reserved_header"),
        ("content-length", "1", "reserved_header"),
        ("Webhook-Signature", "v1,x", "reserved_header"),
        ("warren-event-type", "x", "reserved_header"),
        ("x y", "1", "bad_header_name"),
        ("", "1", "bad_header_name"),
        ("x-a", "1\r\nHost: y", "bad_header_value"),
        ("x-a", "ä", "bad_header_value"),
    ];
    for (name, value, code) in cases {
        let pointer = format!("/headers/{name}");
        assert_eq!(deliver(|body| body["headers"] = json!({ name: value })), one(&pointer, code), "{name}: {value}");
    }
    let twice = json!({ "X-A": "1", "x-a": "2" });
    assert_eq!(deliver(|body| body["headers"] = twice), one("/headers/x-a", "duplicate_key"));
}

#[test]
fn a_header_that_is_given_twice_is_refused() {
    let text = r#"{"url":"https://a.example/","event_type":"a","event_id":"b","body":1,"headers":{"x":"1","x":"2"}}"#;
    match warren_messages::codec::from_json::<Deliver>(text.as_bytes()) {
        Err(warren_messages::DecodeError::Unfit(invalid)) => {
            let found: Vec<_> = invalid.problems().iter().map(|it| (it.pointer.as_str(), it.code.as_ref())).collect();
            assert_eq!(found, [("/headers/x", "duplicate_key")]);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_problem_is_reported_at_once() {
    let found = deliver(|body| {
        *body = json!({
            "url": "ftp://x", "event_type": "", "event_id": "a.b", "headers": { "host": "x" }, "secret_ref": "a b",
        });
    });
    let pointers: Vec<_> = found.iter().map(|(pointer, _)| pointer.as_str()).collect();
    assert_eq!(pointers, ["/url", "/event_type", "/event_id", "", "/headers/host", "/secret_ref"]);
}

fn received(change: impl FnOnce(&mut Value)) -> Vec<(String, String)> {
    let mut body = json!({ "type": "a.b", "source": "/x", "id": "7", "data": 1 });
    change(&mut body);
    problems::<Received>(body)
}

#[test]
fn an_event_may_be_named_in_any_script_and_have_no_data_or_null() {
    assert_eq!(received(|_| {}), []);
    assert_eq!(received(|body| body["id"] = json!("\u{540d} 7%")), []);
    assert_eq!(received(|body| body["data"] = Value::Null), []);
    assert_eq!(received(|body| _ = body.as_object_mut().map(|body| body.remove("data"))), []);
    assert_eq!(received(|body| body["headers"] = json!({ "subject": "a\tb" })), []);
}

#[test]
fn every_problem_of_a_received_event_is_reported_at_once() {
    let many: Value = (0..65).map(|n| (format!("h{n}"), json!("x"))).collect::<serde_json::Map<_, _>>().into();
    let found = received(|body| {
        *body = json!({ "type": "", "source": "a\nb", "id": "x".repeat(1025), "headers": many, "data": 1, "data_base64": "AA==" });
        body["headers"]["a/b"] = json!("\u{1}");
    });
    let pointers: Vec<_> = found.iter().map(|(pointer, _)| pointer.as_str()).collect();
    assert_eq!(pointers, ["/type", "/source", "/id", "/headers", "/headers/a~1b", ""]);
    assert_eq!(received(|body| body["headers"] = json!({ "x": "y".repeat(16 * 1024) })), one("/headers", "too_large"));
}

#[test]
fn an_event_is_named_by_its_source_and_id_together() {
    let key = |source: &str, id: &str| {
        let body = json!({ "type": "t", "source": source, "id": id });
        codec::from_json::<Received>(body.to_string().as_bytes()).expect("an event").dedup_key()
    };
    assert_eq!(key("/a", "b"), key("/a", "b"));
    assert_ne!(key("/a", "b"), key("/ab", ""));
    assert_ne!(key("/a", "b"), key("/a", "c"));
}

#[test]
fn a_probe_stays_within_what_an_output_can_carry() {
    assert_eq!(problems::<Probe>(json!({})), []);
    let body = json!({ "payload_bytes": 700_001, "work_ms": 600_001, "fail_attempts": 101 });
    let pointers: Vec<_> = problems::<Probe>(body).into_iter().map(|(pointer, _)| pointer).collect();
    assert_eq!(pointers, ["/payload_bytes", "/work_ms", "/fail_attempts"]);
}

fn event(change: impl FnOnce(&mut Value)) -> Vec<(String, String)> {
    let mut body =
        json!({ "call": "track", "event": "e", "user_id": "u1", "ts": "2026-03-01T10:00:00Z", "message_id": "m" });
    change(&mut body);
    problems::<Event>(body)
}

#[test]
fn an_event_has_somebody_who_did_it() {
    assert_eq!(event(|_| {}), []);
    let remove = |body: &mut Value| _ = body.as_object_mut().map(|body| body.remove("user_id"));
    assert_eq!(event(remove), one("", "one_of"));
    assert_eq!(
        event(|body| {
            remove(body);
            body["anonymous_id"] = json!("a1");
        }),
        []
    );
}

#[test]
fn an_event_says_32_kilobytes_of_itself_and_no_more() {
    // {"a":""} is 8 bytes, and what JSON has to escape counts as it is written.
    for (text, fits) in [
        ("x".repeat(32 * 1024 - 8), true),
        ("x".repeat(32 * 1024 - 7), false),
        ("\"".repeat(16 * 1024 - 4), true),
        ("\"".repeat(16 * 1024 - 3), false),
        ("Ω".repeat(16 * 1024 - 4), true),
        ("Ω".repeat(16 * 1024 - 3), false),
    ] {
        for field in ["props", "ctx"] {
            let pointer = format!("/{field}");
            let expected = if fits { vec![] } else { one(&pointer, "too_large") };
            assert_eq!(event(|body| body[field] = json!({ "a": text })), expected, "{field} {}", text.len());
        }
    }
}

#[test]
fn every_problem_of_a_tracked_event_is_reported_at_once() {
    let long = "x".repeat(1025);
    let found = event(|body| {
        *body = json!({
            "call": "group", "event": "", "category": "", "user_id": long, "anonymous_id": "", "previous_id": long,
            "group_id": "", "ts": "2026-03-01T10:00:00Z", "message_id": "x".repeat(256),
        });
    });
    let pointers: Vec<_> = found.iter().map(|(pointer, _)| pointer.as_str()).collect();
    let expected = ["/event", "/category", "/user_id", "/anonymous_id", "/previous_id", "/group_id", "/message_id"];
    assert_eq!(pointers, expected);
}
