//! One signed request to one receiver.

use std::{collections::BTreeMap, time::Duration};

use serde_json::json;
use warren_messages::{codec, webhook::Deliver as Message};
use warren_workers::{
    Disposition, WorkError as _,
    testing::perform,
    webhook::{Deliver, Error, Settings, guard::Rules},
};

use super::{guard::resolving, receiver::Receiver};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

fn settings() -> Settings {
    let rules = Rules { allow_private: vec!["127.0.0.1/32".parse().expect("a network")], ..Rules::default() };
    let secrets = BTreeMap::from([("shop".to_owned(), vec![SECRET.parse().expect("a good secret")])]);
    Settings { rules, secrets, per_host: 2 }
}

fn worker() -> Deliver {
    Deliver::new(settings()).expect("TLS")
}

fn message(url: &str, change: impl FnOnce(&mut serde_json::Value)) -> Message {
    let mut body =
        json!({ "url": url, "event_type": "order.paid", "event_id": "evt_1", "body": { "b": 1, "a": [true] } });
    change(&mut body);
    codec::from_json(body.to_string().as_bytes()).expect("a good message")
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";

#[tokio::test]
async fn a_receiver_gets_the_body_its_headers_and_a_signature_over_the_very_bytes() {
    let receiver = Receiver::answering(OK).await;
    let message = message(&receiver.url(), |body| {
        body["secret_ref"] = json!("shop");
        body["headers"] = json!({ "X-Shop": "7" });
    });
    let output = perform(&worker(), message).await.result.expect("it answered 200");
    assert_eq!((output.status, output.answer.as_str()), (200, "hello"));
    let request = receiver.requests().remove(0);
    let (head, body) = request.split_once("\r\n\r\n").expect("a whole request");
    assert!(head.starts_with("POST /hook HTTP/1.1\r\n"), "{head}");
    assert_eq!(body, r#"{"a":[true],"b":1}"#);
    let header = |name: &str| {
        let line =
            head.lines().find_map(|line| line.split_once(": ").filter(|(key, _)| key.eq_ignore_ascii_case(name)));
        line.unwrap_or_else(|| panic!("no {name} in {head}")).1.to_owned()
    };
    assert_eq!(header("content-type"), "application/json");
    assert_eq!(header("x-shop"), "7");
    assert_eq!(header("webhook-id"), "evt_1");
    assert_eq!(header("warren-event-type"), "order.paid");
    let mut headers = http::HeaderMap::new();
    for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
        headers.insert(name, header(name).parse().expect("a header"));
    }
    let library = standardwebhooks::Webhook::new(SECRET).expect("a good secret");
    library.verify(body.as_bytes(), &headers).expect("a signature that the library knows, and a fresh timestamp");
}

#[tokio::test]
async fn bytes_go_out_as_they_are() {
    let receiver = Receiver::answering(OK).await;
    let message = message(&receiver.url(), |body| {
        body.as_object_mut().expect("a map").remove("body");
        // "bytes" in base64.
        body["body_base64"] = json!("Ynl0ZXM=");
        body["headers"] = json!({ "Content-Type": "text/plain" });
    });
    perform(&worker(), message).await.result.expect("it answered 200");
    let request = receiver.requests().remove(0).to_lowercase();
    assert!(request.ends_with("\r\n\r\nbytes"), "{request}");
    assert_eq!(request.matches("content-type").count(), 1, "{request}");
    assert!(!request.contains("webhook-signature"), "unsigned without a secret_ref: {request}");
}

async fn fails(answer: &'static str) -> Error {
    let receiver = Receiver::answering(answer).await;
    perform(&worker(), message(&receiver.url(), |_| {})).await.result.expect_err("no 2xx")
}

#[tokio::test]
async fn nothing_but_a_2xx_is_a_success() {
    let cases = [
        ("HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy", Disposition::Retry),
        ("HTTP/1.1 400 Bad\r\ncontent-length: 0\r\n\r\n", Disposition::Retry),
        (
            "HTTP/1.1 429 Slow\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n",
            Disposition::RetryAfter(Duration::from_secs(7)),
        ),
        // A receiver may ask for a pause, but not for ever.
        (
            "HTTP/1.1 503 x\r\nretry-after: 99999999\r\ncontent-length: 0\r\n\r\n",
            Disposition::RetryAfter(Duration::from_hours(1)),
        ),
        (
            "HTTP/1.1 503 x\r\nretry-after: Wed, 21 Oct 2015 07:28:00 GMT\r\ncontent-length: 0\r\n\r\n",
            Disposition::RetryAfter(Duration::ZERO),
        ),
        ("HTTP/1.1 503 x\r\nretry-after: soon\r\ncontent-length: 0\r\n\r\n", Disposition::Retry),
        ("HTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n", Disposition::DeadLetter),
        ("nonsense\r\n\r\n", Disposition::Retry),
    ];
    for (answer, disposition) in cases {
        assert_eq!(fails(answer).await.disposition(), disposition, "{answer}");
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let elsewhere = Receiver::answering(OK).await;
    let redirect = format!("HTTP/1.1 307 x\r\nlocation: {}\r\ncontent-length: 0\r\n\r\n", elsewhere.url());
    assert_eq!(fails(redirect.leak()).await.code(), "bad_status");
    assert_eq!(elsewhere.requests().len(), 0);
}

#[tokio::test]
async fn an_answer_is_judged_by_its_status_even_if_its_body_breaks_off() {
    let receiver = Receiver::answering("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf").await;
    let gone = fails("HTTP/1.1 410 Gone\r\ncontent-length: 100\r\n\r\nhalf");
    let (worker, message) = (worker(), message(&receiver.url(), |_| {}));
    let (done, gone) = tokio::join!(perform(&worker, message), gone);
    let output = done.result.expect("it answered 200");
    assert_eq!((output.status, output.answer.as_str()), (200, "half"));
    assert_eq!(gone.disposition(), Disposition::DeadLetter);
}

#[tokio::test]
async fn an_error_does_not_tell_the_url_which_may_hold_a_token() {
    let receiver = Receiver::answering("nonsense\r\n\r\n").await;
    let message = message(&format!("{}?token=hunter2", receiver.url()), |_| {});
    let error = perform(&worker(), message).await.result.expect_err("it is no HTTP");
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    assert!(!text.contains("hunter2"), "{text}");
}

#[tokio::test]
async fn no_answer_is_read_beyond_its_first_kilobyte() {
    // Claims a gigabyte, sends three kilobytes, and never ends.
    let answer = format!("HTTP/1.1 500 x\r\ncontent-length: 1000000000\r\n\r\n{}", "y".repeat(3000));
    match fails(answer.leak()).await {
        Error::Status { answer, .. } => assert_eq!(answer.len(), 1024),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_private_target_is_refused_before_anything_is_sent() {
    let receiver = Receiver::answering(OK).await;
    let strict = Deliver::new(Settings::default()).expect("TLS");
    let error = perform(&strict, message(&receiver.url(), |_| {})).await.result.expect_err("loopback");
    assert_eq!((error.code(), error.disposition()), ("private_address", Disposition::DeadLetter));
    assert_eq!(receiver.requests().len(), 0);
}

#[tokio::test]
async fn a_name_that_resolves_to_something_private_is_never_connected_to() {
    let receiver = Receiver::answering(OK).await;
    let rules = Rules { allow_http: true, allow_ports: vec![receiver.port], ..Rules::default() };
    let settings = Settings { rules: rules.clone(), ..Settings::default() };
    // First elsewhere, then here (rebinding); and one good address does not excuse a bad one.
    let answers: [&[&str]; 2] = [&["127.0.0.1"], &["203.0.114.1", "127.0.0.1"]];
    let worker = Deliver::with_guard(settings, resolving(rules, &answers)).expect("TLS");
    for _ in answers {
        let url = format!("http://receiver.example:{}/", receiver.port);
        let error = perform(&worker, message(&url, |_| {})).await.result.expect_err("loopback");
        assert_eq!((error.code(), error.disposition()), ("private_address", Disposition::Retry), "{error:?}");
    }
    assert_eq!(receiver.requests().len(), 0);
}

#[tokio::test]
async fn the_address_that_was_judged_is_the_one_that_is_connected_to() {
    let receiver = Receiver::answering(OK).await;
    let rules = Rules { allow_http: true, allow_ports: vec![receiver.port], ..settings().rules };
    let settings = Settings { rules: rules.clone(), ..Settings::default() };
    // There is one answer: a second look-up would fail.
    let worker = Deliver::with_guard(settings, resolving(rules, &[&["127.0.0.1"]])).expect("TLS");
    let url = format!("http://receiver.example:{}/", receiver.port);
    perform(&worker, message(&url, |_| {})).await.result.expect("an allowed address");
    assert_eq!(receiver.requests().len(), 1);
}

#[tokio::test]
async fn what_exceeds_the_cap_of_one_host_is_put_off_and_other_hosts_are_served() {
    let (stuck, healthy) = (Receiver::answering("").await, Receiver::answering(OK).await);
    let worker = std::sync::Arc::new(worker());
    let held: Vec<_> = (0..2)
        .map(|_| {
            let (worker, message) = (worker.clone(), message(&stuck.url(), |_| {}));
            tokio::spawn(async move { perform(worker.as_ref(), message).await })
        })
        .collect();
    while stuck.requests().len() < 2 {
        tokio::task::yield_now().await;
    }
    let mut pauses = Vec::new();
    for _ in 0..4 {
        let error = perform(worker.as_ref(), message(&stuck.url(), |_| {})).await.result.expect_err("full");
        match error.disposition() {
            Disposition::Snooze(pause) => pauses.push(pause),
            other => panic!("{other:?}"),
        }
    }
    assert!(pauses.is_sorted() && pauses[0] < pauses[3], "each has a time of its own: {pauses:?}");
    perform(worker.as_ref(), message(&healthy.url(), |_| {})).await.result.expect("another host");
    for held in held {
        held.abort();
    }
}

#[tokio::test]
async fn a_deadline_that_is_over_ends_the_job_without_an_attempt() {
    let receiver = Receiver::answering(OK).await;
    let late = message(&receiver.url(), |body| body["deadline"] = json!("2020-01-01T00:00:00Z"));
    let error = perform(&worker(), late).await.result.expect_err("over");
    assert_eq!((error.code(), error.disposition()), ("deadline_passed", Disposition::DeadLetter));
    assert_eq!(receiver.requests().len(), 0);
}

#[tokio::test]
async fn a_secret_that_is_not_configured_yet_is_waited_for() {
    let receiver = Receiver::answering(OK).await;
    let error = perform(&worker(), message(&receiver.url(), |body| body["secret_ref"] = json!("other"))).await.result;
    let error = error.expect_err("unknown");
    assert_eq!((error.code(), error.disposition()), ("unknown_secret", Disposition::Retry));
    assert_eq!(receiver.requests().len(), 0);
}
