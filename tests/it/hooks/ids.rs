//! What a webhook is called: two stay two, and a repeat is one.

use std::collections::HashSet;

use reqwest::header::HeaderValue;
use serde_json::json;

use super::{
    open,
    signer::{Hook, STRIPE, Signer, seconds_from_now},
};
use crate::harness::http::{Http, parts};

/// A webhook of a token, with one header byte for byte; its id, and what was said of it.
async fn sent(http: &Http, name: &str, value: &[u8], body: &[u8]) -> (String, String) {
    let request = Hook::bearer(body).request(http).header(name, HeaderValue::from_bytes(value).unwrap());
    let (status, answer) = parts(request.send().await.unwrap()).await;
    assert!(matches!(status, 200 | 202), "{answer}");
    (answer["id"].as_str().unwrap().to_owned(), answer["code"].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_ids_are_two_events_whatever_they_are_made_of_and_however_equal_the_bodies() {
    let (_installation, _up, http) = open();
    let mut ids = HashSet::new();
    let long = |last: u8| [vec![b'x'; 1024], vec![last]].concat();
    let longest = [b'x'; 1024];
    let given: [&[u8]; 11] = [
        b"order-117",
        b"order 117",
        b"order 118",
        "bestellung-\u{e4}".as_bytes(),
        b"bestellung-\xe4",
        b"bestellung-\xf6",
        &longest,
        &long(b'1'),
        &long(b'2'),
        b"a\tb",
        b"a\tc",
    ];
    for given in given {
        let (id, code) = sent(&http, "idempotency-key", given, b"{}").await;
        assert_eq!(code, "accepted", "{given:?} is {id}");
        assert!(!id.starts_with("body-") && id.len() <= 1024, "{id}");
        assert_eq!(sent(&http, "idempotency-key", given, b"{\"n\":2}").await, (id.clone(), "already_received".into()));
        ids.insert(id);
    }
    assert_eq!(ids.len(), given.len());
    for plain in ["order 117", "bestellung-\u{e4}"] {
        assert!(ids.contains(plain), "what can be an event's id is: {ids:?}");
    }
    // Without an id the body is one, with the name of what happened.
    let (opened, code) = sent(&http, "x-event-type", b"opened", b"{}").await;
    assert_eq!(code, "accepted");
    let (closed, code) = sent(&http, "x-event-type", b"closed", b"{}").await;
    assert_eq!(code, "accepted", "another thing happened");
    assert_ne!(opened, closed);
    assert_eq!(sent(&http, "x-event-type", b"closed", b"{}").await, (closed, "already_received".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_within_a_body_that_cannot_be_an_events_own_still_tells_two_apart_and_a_repeat() {
    let Some(mut signer) = Signer::start() else { return };
    let (_installation, _up, http) = open();
    let mut send = async |id: &str, livemode: bool| {
        let body = json!({ "id": id, "type": "a", "livemode": livemode }).to_string();
        let hook = Hook::stripe(&mut signer, STRIPE, seconds_from_now(0), &body);
        let (_, answer) = parts(hook.request(&http).send().await.unwrap()).await;
        (answer["code"].as_str().unwrap().to_owned(), answer["id"].as_str().unwrap().to_owned())
    };
    let long = "x".repeat(1025);
    let mut ids = HashSet::new();
    for id in [long.as_str(), "a\nb", "a\nc"] {
        let (code, name) = send(id, false).await;
        assert_eq!(code, "accepted");
        assert_eq!(send(id, true).await, ("already_received".into(), name.clone()), "the rest of it does not count");
        ids.insert(name);
    }
    assert_eq!(ids.len(), 3);
}
