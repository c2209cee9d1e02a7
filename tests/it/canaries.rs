//! Nothing secret is logged: canaries go in through every door, well-formed and not, and stand in no log at debug.
//!
//! The harness looks through every other log of the suite in the same way (`harness/canary.rs`). A worker's own error text
//! is recorded with its job and never logged; what a panic says is logged at trace alone.

use std::io::Write as _;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};
use lapin::{BasicProperties, options::BasicPublishOptions, types::FieldTable};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use warren_messages::codec;

use crate::{
    harness::{
        canary,
        http::{Http, parts},
        process::{Installation, Up, bare, said},
        receiver::{Receiver, SECRET},
        wait::until,
        wire::{address, raw},
    },
    hooks::signer::{GITHUB, Hook, STANDARD, STRIPE, Signer, seconds_from_now, sources},
    keys::{created, forged, made},
};

/// A number in a body, which the probe's panic repeats.
const NUMBER: u32 = 618_273;

struct Keys {
    good: String,
    expired: String,
    revoked: String,
}

/// Everything that an installation may be configured with.
fn settings() -> (String, Keys) {
    let maker = Installation::embedded("");
    let (good, section) = made(
        &maker,
        "shop",
        &["--scope", "jobs:write", "--scope", "jobs:read", "--scope", "jobs:cancel", "--scope", "events:write"],
    );
    let (expired, past) = made(&maker, "past", &["--expires", "1s"]);
    let past = past.lines().map(|line| match line.split_once(" = ") {
        Some(("expires", _)) => "expires = \"2020-01-01T00:00:00Z\"\n".to_owned(),
        _ => format!("{line}\n"),
    });
    let quick = "attempts = 2\nbackoff_base = '100ms'\nbackoff_cap = '200ms'\n";
    let text = format!(
        "{}[webhook]\nallow_private = ['127.0.0.0/8']\n[webhook.secrets]\nshop = ['{SECRET}']\n\
         [kind.'warren.probe']\ntimeout = '1s'\n{quick}[kind.'webhook.deliver']\n{quick}\
         [route.relay]\ntype = 'relay.*'\nkind = 'webhook.deliver'\n\
         with = {{ url = '{{{{data.url}}}}', event_type = 'relayed', event_id = '{{{{id}}}}', body = '{{{{data}}}}' }}\n\
         {section}{}",
        sources(),
        past.collect::<String>()
    );
    (text, Keys { good, expired, revoked: String::new() })
}

/// A webhook to be delivered, with a canary wherever there is room for one.
fn webhook(url: &str, id: &str) -> Value {
    json!({
        "url": format!("{url}?token=canary-in-a-query"), "event_type": "order.paid", "event_id": id,
        "body": { "name": "canary-in-a-body" }, "headers": { "authorization": "Bearer canary-of-a-receiver" },
        "secret_ref": "shop",
    })
}

fn packed(text: &[u8]) -> Vec<u8> {
    let mut packer = GzEncoder::new(Vec::new(), Compression::default());
    packer.write_all(text).unwrap();
    packer.finish().unwrap()
}

/// Jobs that are done, fail, and are given up; called off, sent again, and discarded.
async fn jobs(installation: &Installation, http: &Http, receiver: &mut Receiver) {
    let failing = "/fails?token=canary-in-a-query";
    receiver.answers(failing, &[500]);
    let nowhere = "http://127.0.0.1:1/nowhere";
    let dead = [
        http.submit("webhook.deliver", &webhook(&receiver.url("/fails"), "evt_fails")).await,
        http.submit("webhook.deliver", &webhook(nowhere, "evt_unreachable")).await,
        http.submit("warren.probe", &json!({ "fate": "panic", "payload_bytes": NUMBER })).await,
        http.submit("warren.probe", &json!({ "fate": "hang", "payload_bytes": NUMBER })).await,
        http.submit("warren.probe", &json!({ "fate": "dead", "payload_bytes": NUMBER })).await,
    ];
    let private = http.post("/v1/jobs/webhook.deliver").json(&webhook("http://169.254.169.254/x", "evt_private"));
    assert_eq!(private.send().await.unwrap().status(), 422);
    let message = webhook(&receiver.url("/taken"), "evt_taken");
    let text = message.to_string();
    let plain = || http.post("/v1/jobs/webhook.deliver").header("idempotency-key", "canary-of-a-customer");
    let json = "application/json";
    let msgpack = codec::encode(&message).unwrap();
    for request in [
        plain().header("content-type", json).body(text.clone()),
        plain().header("content-type", json).body(text.clone()),
        plain().header("content-type", json).header("content-encoding", "gzip").body(packed(text.as_bytes())),
        http.post("/v1/jobs/webhook.deliver").header("content-type", "application/msgpack").body(msgpack),
    ] {
        let (status, answer) = parts(request.send().await.unwrap()).await;
        assert_eq!(status, 202, "{answer}");
        http.job_in(answer["id"].as_str().unwrap(), "succeeded").await;
    }
    let other = plain().json(&webhook(&receiver.url("/taken"), "evt_other")).send().await.unwrap();
    assert_eq!(other.status(), 409);
    let batch = json!([
        { "kind": "webhook.deliver", "body": message, "key": "canary-of-another" },
        { "kind": "webhook.deliver", "body": { "url": "canary-in-a-body" } },
        { "kind": "canary-kind", "body": "canary-in-a-body" },
        { "kind": "warren.probe", "delay": "canary-delay", "canary-field": "canary-in-a-body" },
    ]);
    let (_, answer) = parts(http.post("/v1/jobs").json(&batch).send().await.unwrap()).await;
    assert_eq!(answer["accepted"], 1, "{answer}");
    let delayed = http.post("/v1/jobs/webhook.deliver").header("warren-delay", "1h").json(&message);
    let (_, later) = parts(delayed.send().await.unwrap()).await;
    let cancelled = http.delete(&format!("/v1/jobs/{}", later["id"].as_str().unwrap())).send().await.unwrap();
    assert_eq!(cancelled.status(), 200);
    let dead_letter = async |id: &str| http.job_in(id, "dead").await;
    for id in &dead {
        dead_letter(id).await;
    }
    assert_eq!(installation.run(&["dead", "replay", &dead[0]]).code, 0);
    dead_letter(&dead[0]).await;
    assert_eq!(installation.run(&["dead", "discard", &dead[1]]).code, 0);
    installation.run(&["job", "requeue", &dead[2]]);
    assert_eq!(receiver.requests("/taken?token=canary-in-a-query").len(), 3, "those under one key are one");
    assert!(receiver.requests(failing).len() >= 4);
}

/// Events, webhooks and behaviour, good and bad.
async fn events(http: &Http, signer: &mut Signer, receiver: &Receiver) {
    let data = json!({ "url": receiver.url("/relayed"), "name": "canary-in-an-event" });
    let event = json!({ "specversion": "1.0", "type": "relay.it", "source": "/a", "id": "e1", "data": data });
    let kept = json!({ "specversion": "1.0", "type": "kept", "source": "/a", "id": "e2", "data": data });
    // Its route makes no job that is one.
    let bad =
        json!({ "specversion": "1.0", "type": "relay.it", "source": "/a", "id": "e3", "data": "canary-in-an-event" });
    let post = async |content_type: &str, body: String| {
        let request = http.post("/v1/events").header("content-type", content_type).body(body);
        parts(request.send().await.unwrap()).await
    };
    for (event, good) in [(&event, true), (&kept, true), (&bad, false)] {
        let (status, answer) = post("application/cloudevents+json", event.to_string()).await;
        assert_eq!(status < 300, good, "{answer}");
    }
    post("application/cloudevents-batch+json", json!([event, bad, 7, "canary-in-an-event"]).to_string()).await;
    post("application/cloudevents+json", "{\"specversion\": \"canary-version\", \"canary-key\": 1".into()).await;
    let binary = http.post("/v1/events").header("ce-specversion", "1.0").header("ce-type", "kept");
    let binary = binary.header("ce-source", "/a").header("ce-id", "e4").header("ce-name", "canary-in-a-header");
    assert!(binary.body("canary-in-an-event").send().await.unwrap().status().is_success());

    let body = "{\"type\":\"paid\",\"name\":\"canary-in-a-hook\"}";
    let now = seconds_from_now(0);
    let twilio = [("MessageSid", "SM1"), ("SmsStatus", "received"), ("Body", "canary-in-a-hook")];
    for hook in [
        Hook::standard(signer, "standard-webhooks", STANDARD, "msg_1", now, body),
        Hook::stripe(signer, STRIPE, now, body),
        Hook::github(signer, "push", "d-1", body),
        Hook::twilio(signer, "", &twilio),
        Hook::twilio(signer, "?token=canary-in-a-query", &twilio),
        Hook::bearer(body.as_bytes()),
    ] {
        let status = hook.request(http).send().await.unwrap().status();
        assert!(status.is_success(), "{hook:?} {status}");
        let changed = Hook { body: [hook.body.as_slice(), b"canary-more"].concat(), ..hook.clone() };
        changed.request(http).send().await.unwrap();
        hook.instead("authorization", "Bearer canary-that-is-wrong").request(http).send().await.unwrap();
    }
    let stale = Hook::standard(signer, "svix", STANDARD, "msg_2", now - 3600, body);
    assert_eq!(stale.request(http).send().await.unwrap().status(), 401);

    let properties = json!({ "name": "canary-in-an-event" });
    let track = json!({ "type": "track", "messageId": "m1", "userId": "u", "event": "e", "properties": properties });
    let batch = json!({
        "batch": [track, { "type": "canary-call", "userId": "canary-user" }, "canary-in-an-event"],
        "writeKey": "canary-write-key",
    });
    for (path, body) in [
        ("/v1/batch", batch.clone()),
        ("/v1/track", track),
        ("/v1/identify", json!({ "traits": "canary-in-an-event" })),
        ("/batch/", json!({ "api_key": "canary-write-key", "batch": [{ "event": "e", "properties": properties }] })),
    ] {
        http.post(path).json(&body).send().await.unwrap();
    }
    let labelled = "application/x-www-form-urlencoded";
    let packed = packed(batch.to_string().as_bytes());
    let request = http.post("/v1/batch").header("content-type", labelled).header("content-encoding", "gzip");
    request.body(packed).send().await.unwrap();
}

/// Requests that are not good, with canaries where they are bad.
async fn malformed(up: &Up, keys: &Keys) {
    let http = Http::to(up.gateway());
    let basic = |user: &str| format!("Basic {}", BASE64.encode(format!("{user}:canary-password")));
    let mistyped = format!("{}!", keys.good);
    for authorization in [
        format!("Bearer {}", forged(&keys.good)),
        format!("Bearer {}", keys.expired),
        format!("Bearer {}", keys.revoked),
        format!("Bearer {mistyped}"),
        "Bearer canary-of-no-form".into(),
        basic(&keys.expired),
        basic("canary-user"),
        "Basic canary-that-is-no-base64".into(),
        format!("Canary {}", keys.good),
    ] {
        for path in ["/v1/jobs/warren.probe", "/v1/batch", "/v1/events"] {
            let request = http.post(path).header("authorization", &authorization).json(&json!({}));
            let status = request.send().await.unwrap().status();
            assert!(status == 401 || status == 403, "{authorization} {status}");
        }
    }
    let key = &keys.good;
    assert_eq!(http.get(&format!("/v1/kinds?key={key}")).send().await.unwrap().status(), 400);
    let http = Http::with_key(up.gateway(), key);
    let post = |name: &str, value: &str| {
        http.post("/v1/jobs/webhook.deliver").header("content-type", "application/json").header(name, value)
    };
    let text = webhook("https://example.com/", "evt_1").to_string();
    let nested = format!("{}\"canary-in-a-body\"{}", "[".repeat(200), "]".repeat(200));
    for request in [
        post("idempotency-key", &format!("canary-{}", "x".repeat(300))).body(text.clone()),
        post("warren-delay", "canary-delay").body(text.clone()),
        post("warren-run-at", "canary-run-at").body(text.clone()),
        post("prefer", "wait=canary").body(text.clone()),
        post("traceparent", "canary-traceparent").body("{\"url\": \"canary-in-a-body\"}"),
        post("content-encoding", "canary-encoding").body(text.clone()),
        post("content-encoding", "gzip").body("canary-in-a-body"),
        post("x", "x").body("{\"url\": \"canary-in-a-body\""),
        post("x", "x").body("{\"url\": canary-in-a-body}"),
        post("x", "x").body("{\"url\": 1, \"url\": \"canary-in-a-body\"}"),
        post("x", "x").body(format!("{{\"body\": {nested}}}")),
        post("x", "x").body(b"{\"url\": \"canary-\xff\"}".to_vec()),
        post("x", "x").body(text.replace("https://", "https://canary-user:canary-password@")),
        post("x", "x").body(text.replace("\"url\"", "\"canary-field\"")),
        http.post("/v1/jobs/webhook.deliver")
            .header("content-type", "application/msgpack")
            .body("\u{7}canary-in-a-body"),
        http.post("/v1/jobs/webhook.deliver").header("content-type", "canary/type").body(text.clone()),
        http.post("/v1/jobs/canary-kind").body(text.clone()),
        http.post("/v1/hooks/canary-source?token=canary-in-a-query").body(text.clone()),
        http.post("/canary-path/%2e%2e?token=canary-in-a-query").body(text.clone()),
        http.get("/v1/jobs/canary-id"),
    ] {
        let status = request.send().await.unwrap().status();
        assert!(status.is_client_error(), "{status}");
    }
    let url = up.gateway();
    for bytes in [
        "canary-in-no-request\r\n\r\n".to_owned(),
        format!(
            "POST /v1/jobs/warren.probe HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncanary-header\r\n\r\n"
        ),
        format!("POST /v1/jobs/warren.probe HTTP/1.1\r\nhost: x\r\nx: canary-{}\r\n\r\n", "x".repeat(100_000)),
        format!("GET /?token=canary-{} HTTP/1.1\r\nhost: x\r\n\r\n", "x".repeat(100_000)),
        "POST /v1/jobs HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\ncanary-chunk\r\n".into(),
        "CANARY-METHOD / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".into(),
        "POST /v1/jobs HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\ncanary-in-a-body".into(),
    ] {
        raw(url, bytes.as_bytes()).await;
    }
    // HTTP/2 has an implementation of its own, which logs for itself.
    let stream = TcpStream::connect(address(url)).await.unwrap();
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.unwrap();
    let connection = tokio::spawn(connection);
    let request = http::Request::post(format!("{url}/v1/jobs/webhook.deliver"))
        .header("authorization", format!("Bearer {key}"))
        .header("x-name", "canary-in-a-header")
        .body(Full::new(Bytes::from(text)))
        .unwrap();
    assert_eq!(sender.send_request(request).await.unwrap().status(), 202);
    connection.abort();
}

/// Messages of other clients that are no jobs.
async fn foreign(installation: &Installation) {
    let Some((rabbit, _)) = installation.servers() else { return };
    let (_connection, channel) = rabbit.channel().await;
    let exchange = rabbit.names().jobs();
    let mut headers = FieldTable::default();
    headers.insert("x-warren-version".into(), lapin::types::AMQPValue::LongString("canary-in-a-header".into()));
    let id = BasicProperties::default().with_message_id("canary-that-is-no-id".into());
    let bare = BasicProperties::default();
    let good = codec::encode(&webhook("https://example.com/", "evt_f")).unwrap();
    let unfit = codec::encode(&json!({ "url": "canary-in-a-body", "canary-field": 1 })).unwrap();
    for (kind, body, properties) in [
        ("webhook.deliver", b"canary-in-a-message".to_vec(), id.clone()),
        ("webhook.deliver", b"{\"name\": \"canary-in-a-message\"}".to_vec(), bare.clone()),
        ("webhook.deliver", [b"\x81\xa4name\xb3".as_slice(), b"canary-in-a-message"].concat(), id.clone()),
        ("webhook.deliver", unfit, bare.clone().with_message_id("0190aaaa-bbbb-7ccc-8ddd-0000000000c1".into())),
        ("webhook.deliver", good.clone(), bare.clone().with_headers(headers)),
        ("no.such.kind", good, bare.with_message_id("0190aaaa-bbbb-7ccc-8ddd-0000000000c2".into())),
    ] {
        let options = BasicPublishOptions::default();
        channel.basic_publish(exchange.as_str().into(), kind.into(), options, &body, properties).await.unwrap();
    }
    until("all are dead letters", async || {
        let letters = installation.run(&["dead", "list", "--limit", "1000", "-o", "json"]).json();
        let reasons = letters.as_array().unwrap().iter().filter_map(|letter| letter["reason"].as_str());
        (reasons.filter(|reason| ["undecodable", "invalid_body", "unroutable"].contains(reason)).count() >= 6)
            .then_some(())
    })
    .await;
}

/// Configurations with mistakes where secrets stand. `said` looks at what is printed.
fn mistakes(keys: &Keys) {
    let secret = "canary-0123456789-in-a-configuration";
    let texts = [
        format!("[source.a]\nscheme = 'standard-webhooks'\nsecrets = ['whsec_{secret}', 5]\nsecert = '{secret}'\n"),
        format!("[source.a]\nscheme = 'bearer'\nsecrets_file = '{secret}'\n"),
        format!("[source.a]\nscheme = '{secret}'\nsecrets = '{secret}'\nurl = 'https://u:{secret}@x'\n"),
        format!("[source.a]\nscheme = 'bearer'\nsecrets = [{secret}]\n"),
        format!("[source.a]\nsecrets = ['{secret}\n"),
        format!("[source.a]\nsecrets = \"\\{secret}\"\n"),
        format!("secret = '{secret}'\nsecret = '{secret}'\n"),
        format!("{secret}\n"),
        format!("[webhook.secrets]\nshop = ['{secret}']\nother = '{secret}'\n"),
        format!("[key.a]\nkey_file = '{}'\nscopes = ['jobs:write']\n", keys.good),
        format!("[key.a]\nid = '{0}'\nsha256 = ['{0}']\nscopes = ['jobs:write']\n", keys.good),
        format!("[id]\ndedup_key = '{secret}'\ntag_keys = ['{secret}', '']\n"),
        format!("[broker]\nurl = 'amqp://u:{secret}@127.0.0.1:99999'\nmanagement_url = 'ftp://u:{secret}@x'\n"),
        format!("[database]\nurl = 'mysql://u:{secret}@127.0.0.1'\n[broker]\nurl = 'u:{secret}'\n"),
        format!("[gateway.tls]\ncertificate = 'no'\nkey = '-----BEGIN PRIVATE KEY-----{secret}'\n"),
        format!("[gateway]\nlisten = '{secret}'\ntrusted_proxies = ['{secret}']\n[log]\nformat = '{secret}'\n"),
    ];
    for text in texts {
        let installation = Installation::embedded(&text);
        for verb in [&["config", "check"][..], &["up"], &["doctor"], &["job", "list"]] {
            assert_ne!(installation.run(verb).code, 0, "{verb:?}: {text}");
        }
    }
    let folder = tempfile::tempdir().unwrap();
    for (variable, text) in [
        ("AMQP_URL", format!("http://guest:{secret}@127.0.0.1")),
        ("AMQP_URL_FILE", format!("amqp://guest:{secret}@127.0.0.1")),
        ("DATABASE_URL_FILE", format!("postgres://warren:{secret}@127.0.0.1/x")),
        ("WARREN__SOURCE__GITHUB__SECRETS", format!("['{secret}'")),
        ("WARREN__ID__DEDUP_KEY", secret.to_owned()),
        ("WARREN__ID__DEDUPKEY", secret.to_owned()),
    ] {
        let checked = said(bare(folder.path()).args(["config", "check"]).env(variable, text));
        assert_eq!(checked.code, 2, "{variable}: {checked:?}");
    }
    // A broker and a database that do not answer, and what is printed of the way to them.
    let mut unreachable = bare(folder.path());
    unreachable.env("AMQP_URL", format!("amqp://guest:{secret}@127.0.0.1:1/%2f"));
    unreachable.env("DATABASE_URL", format!("postgres://warren:{secret}@127.0.0.1:1/x"));
    for verb in [&["doctor"][..], &["migrate"], &["topology", "plan"]] {
        let answer = said(unreachable.env("WARREN__LOG__LEVEL", "debug").args(verb));
        assert!(!answer.stdout.contains(secret), "{answer:?}");
        unreachable = bare(folder.path());
        unreachable.env("AMQP_URL", format!("amqp://guest:{secret}@127.0.0.1:1/%2f"));
        unreachable.env("DATABASE_URL", format!("postgres://warren:{secret}@127.0.0.1:1/x"));
    }
}

async fn everything(installation: Installation, mut keys: Keys) {
    let (Some(mut signer), Some(mut receiver)) = (Signer::start(), Receiver::start()) else { return };
    for secret in [GITHUB, STRIPE, STANDARD, SECRET, &format!("{NUMBER} bytes")] {
        canary::plant(secret);
    }
    let up = installation.up(&[]);
    let http = Http::with_key(up.gateway(), &keys.good);
    keys.revoked = created(&installation, "revoked", &[]);
    assert_eq!(installation.run(&["key", "revoke", "revoked"]).code, 0);
    jobs(&installation, &http, &mut receiver).await;
    events(&http, &mut signer, &receiver).await;
    malformed(&up, &keys).await;
    foreign(&installation).await;
    installation.run(&["doctor"]);
    until("everything is worked off", async || {
        let waiting = installation.run(&["job", "list", "--state", "retrying", "-o", "json"]).json();
        waiting.as_array().is_some_and(Vec::is_empty).then_some(())
    })
    .await;
    // What is sent again is a secret that was made on the way.
    for request in receiver.requests("/taken?token=canary-in-a-query") {
        canary::plant(request["headers"]["webhook-signature"].as_str().unwrap());
    }
    up.terminate();
    let mut up = up;
    assert!(up.ended().await.success());
    let logs = installation.logs();
    // What is looked at is what was meant, and not an empty file.
    for line in ["\"DEBUG\"", "a webhook was refused", "events were refused", "a thread has panicked", "ended"] {
        assert!(logs.contains(line), "{line} is not in the log:\n{logs}");
    }
    assert_eq!(canary::found(&logs), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn embedded_nothing_secret_is_logged_whatever_comes_in() {
    let (text, keys) = settings();
    mistakes(&keys);
    everything(Installation::embedded(&text), keys).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_servers_nothing_secret_is_logged_whatever_comes_in() {
    let (text, keys) = settings();
    if let Some(installation) = Installation::on_servers(&text).await {
        everything(installation, keys).await;
    }
}

#[test]
fn a_secret_in_a_log_is_found_in_any_of_its_forms_and_in_no_other_line() {
    let (key, _) = made(&Installation::embedded(""), "shop", &[]);
    canary::plant("It was planted by a test");
    let in_base64 = |text: &str| BASE64.encode(text);
    let hexadecimal: Vec<_> = b"a canary-x".iter().map(|byte| format!("{byte:02x}")).collect();
    for secret in [
        "body = {\"name\": \"canary-in-a-body\"}",
        "CANARY-METHOD",
        "hunter2",
        "It was planted by a test",
        &in_base64("canary-user:x"),
        &in_base64("1canary-user:x"),
        &in_base64("12canary-user:x"),
        &hexadecimal.concat(),
        &format!("{:?}", b"a canary-x"),
        &format!("{:?}", b"a canary-x".as_slice()),
        &key,
        &in_base64(&format!("{key}:")),
        &in_base64(&format!(":{key}")),
        SECRET,
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17",
        "t=1,v1=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17",
        "postgres://warren:secret@127.0.0.1/x",
        "authorization: Bearer 0123456789abcdef",
        "-----BEGIN RSA PRIVATE KEY-----",
    ] {
        let log = format!("the first line\nhere is {secret} in it\nthe last");
        let (_, line) = canary::found(&log).unwrap_or_else(|| panic!("{secret} is not found"));
        assert_eq!(line, format!("here is {secret} in it"));
    }
    let innocent = "postgres://warren@127.0.0.1:5432/x amqp://guest@127.0.0.1 job 01a202b2-9d7e-8952-afca-4a9d1541c132\n\
                    a Postgres URL reads postgres://user:password@host:port/database\n\
                    send it as Authorization: Bearer KEY; a secret of this scheme begins with whsec_\n";
    assert_eq!(canary::found(innocent), None);
    assert!(std::panic::catch_unwind(|| canary::check("hunter2")).is_err());
    canary::check(innocent);
}
