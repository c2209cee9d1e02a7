//! Signed webhooks, from the libraries of those who send them to a running gateway.

mod forged;
mod ids;
mod kept;
mod refused;
pub(crate) mod signer;

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use self::signer::{Hook, STANDARD, STANDARD_NEW, STRIPE, Signer, seconds_from_now, sources};
use crate::{
    gateway::jobs,
    harness::{
        counted::counted,
        http::{Http, parts},
        process::{Installation, Up},
        proxy::Proxy,
        wait::until,
    },
};

fn open() -> (Installation, Up, Http) {
    let installation = Installation::embedded(&sources());
    let up = installation.up(&[]);
    let http = Http::to(up.gateway());
    (installation, up, http)
}

/// The event that a webhook became.
async fn kept(installation: &Installation, id: &str) -> Value {
    let job = until("the event is kept", async || {
        let shown = installation.run(&["job", "show", id, "-o", "json"]);
        (shown.code == 0).then(|| shown.json()).filter(|job| job["state"] == "succeeded")
    });
    let job = job.await;
    assert_eq!(job["kind"], "event.received");
    job["output"].clone()
}

/// Sends one that is taken, and answers the event that it became.
async fn taken(installation: &Installation, http: &Http, hook: &Hook) -> Value {
    let (status, answer) = parts(hook.request(http).send().await.unwrap()).await;
    assert_eq!((status, answer["code"].as_str()), (202, Some("accepted")), "{hook:?} {answer}");
    let jobs = answer["jobs"].as_array().unwrap();
    assert_eq!(jobs.len(), 1, "{answer}");
    let event = kept(installation, jobs[0]["id"].as_str().unwrap()).await;
    assert_eq!((&event["type"], &event["id"]), (&answer["type"], &answer["id"]));
    event
}

/// How often this became of a webhook of this source.
async fn received(up: &Up, source: &str, outcome: &str) -> u64 {
    counted(up, ("warren_hooks_received_total", &[("source", source), ("outcome", outcome)])).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_libraries_of_standard_webhooks_svix_and_stripe_sign_becomes_events() {
    let Some(mut signer) = Signer::start() else { return };
    let (installation, up, http) = open();
    let now = seconds_from_now(0);
    let body = concat!(
        "{\"type\": \"user.created\", \"timestamp\": \"2022-11-03T20:26:10.344522Z\",",
        " \"data\": {\"id\": 9007199254740993, \"name\": \"canary-in-a-hook\"}}"
    );
    for by in ["standard-webhooks", "svix"] {
        let hook = Hook::standard(&mut signer, by, STANDARD, &format!("msg_{by}"), now, body);
        let event = taken(&installation, &http, &hook).await;
        assert_eq!(event["type"], "shop.user.created");
        assert_eq!(event["source"], "/v1/hooks/shop");
        assert_eq!(event["id"], format!("msg_{by}"));
        assert_eq!(event["time"], "2022-11-03T20:26:10.344522Z");
        assert_eq!(event["data"], body.parse::<Value>().unwrap(), "number for number");
        assert_eq!(event["headers"]["content-type"], "application/json");
        assert!(!event["headers"].to_string().contains("signature"), "{event}");
    }
    // A body that is no JSON is text.
    let event = taken(&installation, &http, &Hook::standard(&mut signer, "svix", STANDARD, "msg_t", now, "{ no")).await;
    assert_eq!((&event["type"], &event["data"]), (&json!("shop.event"), &json!("{ no")));
    let body = json!({
        "id": "evt_1MqqbKLt4dXK03v5qaIbiNCC", "object": "event", "created": 1_680_064_028, "type": "invoice.paid",
        "data": { "object": { "name": "Zo\u{eb}" } },
    });
    let event = taken(&installation, &http, &Hook::stripe(&mut signer, STRIPE, now, &body.to_string())).await;
    assert_eq!(event["type"], "pay.invoice.paid");
    assert_eq!(event["id"], "evt_1MqqbKLt4dXK03v5qaIbiNCC");
    assert_eq!(event["time"], "2023-03-29T04:27:08Z");
    assert_eq!(event["data"], body);
    assert_eq!(received(&up, "shop", "accepted").await, 3);
    assert_eq!(received(&up, "pay", "accepted").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_of_github_and_what_it_sends_become_events() {
    let Some(mut signer) = Signer::start() else { return };
    let (installation, _up, http) = open();
    let example = Hook {
        path: "/v1/hooks/github".into(),
        headers: vec![(
            "X-Hub-Signature-256".into(),
            "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17".into(),
        )],
        body: b"Hello, World!".into(),
    };
    let event = taken(&installation, &http, &example).await;
    assert_eq!((&event["type"], &event["data"]), (&json!("github.event"), &json!("Hello, World!")));
    let body = "{\"action\":\"opened\",\"number\":1}";
    let hook = Hook::github(&mut signer, "pull_request", "72d3162e-cc78-11e3-81ab-4c9367dc0958", body);
    let event = taken(&installation, &http, &hook.with("user-agent", "GitHub-Hookshot/044aadd")).await;
    assert_eq!(event["type"], "github.pull_request");
    assert_eq!(event["id"], "72d3162e-cc78-11e3-81ab-4c9367dc0958");
    assert_eq!(event["data"], json!({ "action": "opened", "number": 1 }));
    assert_eq!(event["headers"]["user-agent"], "GitHub-Hookshot/044aadd");
    assert_eq!(event["time"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn twilio_gets_an_answer_that_it_can_read_and_its_webhooks_become_events() {
    let Some(mut signer) = Signer::start() else { return };
    let (installation, _up, http) = open();
    let send = async |hook: Hook| {
        let response = hook.request(&http).send().await.unwrap();
        assert_eq!(response.status(), 200, "{hook:?}");
        assert_eq!(response.headers()["content-type"], "text/xml");
        assert_eq!(response.headers()["warren-outcome"], "accepted");
        let id = response.headers()["warren-jobs"].to_str().unwrap().to_owned();
        assert!(response.text().await.unwrap().ends_with("<Response/>\n"));
        kept(&installation, &id).await
    };
    // The published example, with the published signature.
    let fields = [
        ("Digits", "1234"),
        ("To", "+18005551212"),
        ("From", "+14158675309"),
        ("Caller", "+14158675309"),
        ("CallSid", "CA1234567890ABCDE"),
    ];
    let hook = Hook::twilio(&mut signer, "?foo=1&bar=2", &fields);
    let event = send(hook.instead("x-twilio-signature", "RSOYDt4T1cUTdK1PDd93/VVr8B8=")).await;
    assert_eq!(event["type"], "phone.event");
    assert!(event["data"].as_str().unwrap().contains("CallSid=CA1234567890ABCDE"), "{event}");
    // A message with an empty field, a field twice, and letters that are none of ASCII.
    let fields = [
        ("Body", ""),
        ("MessageSid", "SM1"),
        ("SmsStatus", "received"),
        ("Media", "b"),
        ("Media", "a"),
        ("City", "K\u{f6}ln & Rh+"),
    ];
    let event = send(Hook::twilio(&mut signer, "", &fields)).await;
    assert_eq!((&event["type"], &event["id"]), (&json!("phone.message.received"), &json!("SM1:received")));
    // A call that asks twice while it is in progress has asked two things.
    let mut asked = std::collections::HashSet::new();
    for digits in ["1", "2"] {
        let fields = [("CallSid", "CA1"), ("CallStatus", "in-progress"), ("Digits", digits)];
        let event = send(Hook::twilio(&mut signer, "", &fields)).await;
        assert_eq!(event["type"], "phone.call.in-progress");
        asked.insert(event["id"].to_string());
    }
    assert_eq!(asked.len(), 2);
    let fields = [("CallSid", "CA1"), ("CallStatus", "completed"), ("SequenceNumber", "3")];
    let hook = Hook::twilio(&mut signer, "", &fields);
    assert_eq!(send(hook.clone().with("i-twilio-idempotency-token", "token-1")).await["id"], "CA1:completed:3");
    // The token is not signed: with another one, what was caught on its way and is sent once more is no other event.
    for token in ["token-2", "token-3"] {
        let again = hook.clone().with("i-twilio-idempotency-token", token).request(&http).send().await.unwrap();
        assert_eq!(again.headers()["warren-outcome"], "already_received");
    }
    // What names itself in no other way is named by it.
    let fields = [("CallSid", "CA2"), ("CallStatus", "in-progress")];
    let hook = Hook::twilio(&mut signer, "", &fields).with("i-twilio-idempotency-token", "token-1");
    assert_eq!(send(hook).await["id"], "token-1");
    // A body that is no form, by its digest in the query: the vector that Twilio's libraries test themselves with.
    let query = "?foo=1&bar=2&bodySHA256=0a1ff7634d9ab3b95db5c9a2dfe9416e41502b283a80c7cf19632632f96e6620";
    let mut hook = Hook::twilio(&mut signer, query, &[]).instead("content-type", "application/json");
    hook = hook.instead("x-twilio-signature", "a9nBmqA0ju/hNViExpshrM61xv4=");
    hook.body = br#"{"property": "value", "boolean": true}"#.into();
    assert_eq!(send(hook).await["data"], json!({ "property": "value", "boolean": true }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_enough_for_who_cannot_sign_and_the_events_are_those_of_its_tenant() {
    let (installation, _up, http) = open();
    let hook = Hook::bearer(br#"{"event": "door.opened", "n": 1}"#).with("idempotency-key", "k-1");
    let event = taken(&installation, &http, &hook).await;
    assert_eq!((&event["type"], &event["id"]), (&json!("other.door.opened"), &json!("k-1")));
    let answer = parts(hook.request(&http).send().await.unwrap()).await.1;
    assert_eq!(answer["code"], "already_received");
    // What is no text is kept byte for byte; without an id its digest is one.
    let response = Hook::bearer(b"\xff\x00\x01").with("x-event-type", "photo").request(&http).send().await.unwrap();
    let (status, answer) = parts(response).await;
    assert_eq!(status, 202, "{answer}");
    let id = answer["jobs"][0]["id"].as_str().unwrap();
    let event = kept(&installation, id).await;
    assert_eq!((&event["type"], &event["data_base64"]), (&json!("other.photo"), &json!("/wAB")));
    assert!(event["id"].as_str().unwrap().starts_with("body-"));
    let status = http.get(&format!("/v1/jobs/{id}")).send().await.unwrap().status();
    assert_eq!(status, 404, "it is acme's, and who asks is not");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_secret_is_replaced_both_are_good_and_one_good_signature_of_a_list_is_enough() {
    let Some(mut signer) = Signer::start() else { return };
    let (installation, _up, http) = open();
    let now = seconds_from_now(0);
    for (id, secret) in [("msg_old", STANDARD), ("msg_new", STANDARD_NEW)] {
        taken(&installation, &http, &Hook::standard(&mut signer, "svix", secret, id, now, "{}")).await;
    }
    for (id, secret) in [("evt_old", STRIPE), ("evt_new", "whsec_the_new_one")] {
        let body = format!("{{\"id\":\"{id}\",\"type\":\"a\"}}");
        taken(&installation, &http, &Hook::stripe(&mut signer, secret, now, &body)).await;
    }
    // Its sender rotates too, and signs with one that is unknown here, and one that is known.
    let unknown = "whsec_dW5rbm93biB1bmtub3duIHVua25vd24gdW5rbm93bg==";
    let mut sign = |by: &str, secret: &str| match by {
        "svix" => Hook::standard(&mut signer, "svix", secret, "msg_both", now, "{}"),
        _ => Hook::stripe(&mut signer, secret, now, "{\"id\":\"evt_both\"}"),
    };
    let value = |hook: &Hook, name: &str| hook.headers.iter().find(|(known, _)| known == name).unwrap().1.clone();
    let (one, other) = (sign("svix", unknown), sign("svix", STANDARD));
    assert_eq!(parts(one.request(&http).send().await.unwrap()).await.1["code"], "bad_signature");
    let list = format!("{} v1a,AAAA {}", value(&one, "svix-signature"), value(&other, "svix-signature"));
    taken(&installation, &http, &one.instead("svix-signature", &list)).await;
    let (one, other) = (sign("stripe", unknown), sign("stripe", STRIPE));
    assert_eq!(parts(one.request(&http).send().await.unwrap()).await.1["code"], "bad_signature");
    let (one_value, other_value) = (value(&one, "stripe-signature"), value(&other, "stripe-signature"));
    let list = format!("{one_value},{},v0=00", other_value.split_once(',').unwrap().1);
    taken(&installation, &http, &one.instead("stripe-signature", &list)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_is_sent_again_is_told_so_and_is_the_same_job_for_a_gateway_that_has_forgotten_it() {
    let Some(mut signer) = Signer::start() else { return };
    let (installation, up, http) = open();
    let now = seconds_from_now(0);
    let hook = Hook::standard(&mut signer, "standard-webhooks", STANDARD, "msg_1", now, "{\"type\":\"a\"}");
    let (_, first) = parts(hook.request(&http).send().await.unwrap()).await;
    let id = first["jobs"][0]["id"].as_str().unwrap().to_owned();
    kept(&installation, &id).await;
    // Sent again later, it has another time and another signature, and is the same.
    let again = Hook::standard(&mut signer, "standard-webhooks", STANDARD, "msg_1", now + 7, "{\"type\":\"a\"}");
    for hook in [&hook, &again] {
        let (status, answer) = parts(hook.request(&http).send().await.unwrap()).await;
        assert_eq!((status, answer["code"].as_str()), (200, Some("already_received")), "{answer}");
        assert_eq!((&answer["id"], &answer["type"], &answer["jobs"]), (&json!("msg_1"), &json!("shop.a"), &json!([])));
    }
    assert_eq!(received(&up, "shop", "already_received").await, 2);
    up.kill();
    let up = installation.up(&[]);
    let (status, answer) = parts(again.request(&Http::to(up.gateway())).send().await.unwrap()).await;
    assert_eq!((status, answer["jobs"][0]["id"].as_str()), (202, Some(id.as_str())), "{answer}");
    let all = jobs(&installation);
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!(installation.run(&["job", "show", &id, "-o", "json"]).json()["run"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_away_is_said_at_once_and_what_was_not_taken_is_taken_when_it_comes_again() {
    let Some(installation) = Installation::on_servers("").await else { return };
    let Some(mut signer) = Signer::start() else { return };
    let to_broker = Proxy::before(installation.servers().unwrap().0.address()).await;
    installation.configure_behind(&sources(), Some(&to_broker), None);
    let up = installation.up(&[]);
    let http = Http::to(up.gateway());
    taken(&installation, &http, &Hook::github(&mut signer, "push", "delivery-0", "{}")).await;
    to_broker.refuse(true);
    let hook = Hook::github(&mut signer, "push", "delivery-1", "{}");
    let began = Instant::now();
    let response = hook.request(&http).send().await.unwrap();
    // GitHub waits for ten seconds, and does not send again.
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    assert!(response.headers().contains_key("retry-after"));
    let (status, answer) = parts(response).await;
    assert_eq!(status, 503, "{answer}");
    assert_eq!(received(&up, "github", "not_taken").await, 1);
    to_broker.refuse(false);
    let answer = until("it is taken", async || {
        let (status, answer) = parts(hook.request(&http).send().await.unwrap()).await;
        (status == 202).then_some(answer)
    })
    .await;
    assert_eq!(answer["code"], "accepted", "it was not remembered as received");
    let event = kept(&installation, answer["jobs"][0]["id"].as_str().unwrap()).await;
    assert_eq!(event["id"], "delivery-1");
}
