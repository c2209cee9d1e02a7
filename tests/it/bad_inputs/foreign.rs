//! Messages that no client of ours would send, over a channel of their own.

use std::time::Instant;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use lapin::{
    BasicProperties, Channel,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::{AMQPValue, FieldTable, ShortString},
};
use serde_json::json;

use crate::harness::{
    http::{Http, parts},
    process::Installation,
    wait::{SOON, until, until_equal},
    wire::peak_megabytes,
};

/// What the body has that JSON has nothing like.
const EXTENSION: &str = "an extension type";

/// What is published: what its dead letter must say, its properties, its bytes.
type Message = (&'static str, BasicProperties, Vec<u8>);

fn id(number: usize) -> ShortString {
    format!("0190aaaa-bbbb-7ccc-8ddd-eeee0000{number:04x}").into()
}

fn header(name: &str, value: AMQPValue) -> BasicProperties {
    let mut headers = FieldTable::default();
    headers.insert(name.into(), value);
    BasicProperties::default().with_headers(headers)
}

/// Bytes that are no body, each under an id of its own.
fn undecodable() -> Vec<Message> {
    let deep = |levels: usize| [b"\x81\xa1a".repeat(levels), vec![0xc0]].concat();
    let bodies: Vec<(&str, Vec<u8>)> = vec![
        ("empty", b"".to_vec()),
        ("map", b"{\"work_ms\": 1}".to_vec()),
        ("map", (0..=255).collect()),
        ("map", b"\x1f\x8b\x08\0\0\0\0\0".to_vec()),
        ("map", b"\x93\x01\x02\x03".to_vec()),
        ("64 levels", deep(900)),
        ("64 levels", deep(200_000)),
        ("64 levels", [b"\x81\xa4fate".to_vec(), b"\x91".repeat(900_000)].concat()),
        ("at byte", b"\x81\xdb\xff\xff\xff\xffshort".to_vec()),
        ("at byte", b"\x81\xa4fate\xdb\xff\xff\xff\xffshort".to_vec()),
        ("at byte", b"\x81\xa4fate\xdd\xff\xff\xff\xff".to_vec()),
        ("at byte", b"\x81\xa4fate\xc6\xff\xff\xff\xff".to_vec()),
        ("at byte", b"\x81\xa4fate\xdf\xff\xff\xff\xff".to_vec()),
        ("at byte", b"\xdf\xff\xff\xff\xff".to_vec()),
        ("at byte 1", b"\x80more".to_vec()),
        (EXTENSION, b"\x81\xa4fate\xd4\x05\x00".to_vec()),
        ("at byte", b"\x81\xa4fate\xc9\xff\xff\xff\xff\x05".to_vec()),
        ("at byte", b"\x81\xa4fate\xc1".to_vec()),
    ];
    let mut messages: Vec<Message> = bodies
        .into_iter()
        .enumerate()
        .map(|(number, (says, body))| (says, BasicProperties::default().with_message_id(id(number)), body))
        .collect();
    let named = BasicProperties::default().with_content_type("text/html".into()).with_message_id(id(900));
    messages.push(("map", named, b"<html>".to_vec()));
    messages.push(("message_id", BasicProperties::default(), b"\x80".to_vec()));
    messages.push(("message_id", BasicProperties::default().with_message_id("7".into()), b"\x80".to_vec()));
    let attempt = header("x-warren-attempt", AMQPValue::LongLongInt(1 << 40)).with_message_id(id(901));
    messages.push(("x-warren-attempt", attempt, b"\x80".to_vec()));
    let version = header("x-warren-version", AMQPValue::LongLongInt(-1)).with_message_id(id(902));
    messages.push(("x-warren-version", version, b"\x80".to_vec()));
    messages
}

async fn publish(channel: &Channel, exchange: &str, properties: BasicProperties, body: &[u8]) {
    let options = BasicPublishOptions::default();
    let sent = channel.basic_publish(exchange.into(), "warren.probe".into(), options, body, properties).await.unwrap();
    assert!(sent.await.unwrap().is_ack());
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_none_are_kept_byte_for_byte_and_cost_neither_time_nor_memory() {
    let Some(installation) = Installation::on_servers("").await else { return };
    let up = installation.up(&[]);
    let http = Http::to(up.gateway());
    let finished = http.submit("warren.probe", &json!({ "payload_bytes": 1 })).await;
    let finished = (http.job_in(&finished, "succeeded").await, finished);
    let later = http.post("/v1/jobs/warren.probe").header("warren-delay", "1h").json(&json!({}));
    let (_, later) = parts(later.send().await.unwrap()).await;
    let scheduled = later["id"].as_str().unwrap().to_owned();
    let scheduled = (http.job(&scheduled).await, scheduled);
    let (rabbit, _) = installation.servers().unwrap();
    let (_connection, channel) = rabbit.channel().await;
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let exchange = rabbit.names().jobs();
    let memory = peak_megabytes(up.pid());
    let began = Instant::now();
    // A job that is over, once more: as an older run, and with another count of attempts.
    let run = header("x-warren-run", AMQPValue::LongInt(0)).with_message_id(finished.1.as_str().into());
    let attempt = header("x-warren-attempt", AMQPValue::LongInt(7)).with_message_id(finished.1.as_str().into());
    // A job of another tenant under an id that is taken.
    let tenant =
        header("x-warren-tenant", AMQPValue::LongString("globex".into())).with_message_id(scheduled.1.as_str().into());
    for properties in [run, attempt, tenant] {
        publish(&channel, &exchange, properties, b"\x80").await;
    }
    let newer = header("x-warren-version", AMQPValue::LongInt(99)).with_message_id(id(1000));
    publish(&channel, &exchange, newer, b"\x81\xa3new\x01").await;
    let messages = undecodable();
    for (_, properties, body) in &messages {
        publish(&channel, &exchange, properties.clone(), body).await;
    }
    let good = BasicProperties::default().with_message_id(id(1001));
    publish(&channel, &exchange, good, b"\x80").await;
    let letters = until("all are dead letters", async || {
        let letters = installation.run(&["dead", "list", "--limit", "100", "-o", "json"]).json();
        letters.as_array().filter(|letters| letters.len() >= messages.len()).cloned()
    })
    .await;
    assert!(began.elapsed() < SOON / 2, "{:?}", began.elapsed());
    let grown = peak_megabytes(up.pid()).saturating_sub(memory);
    assert!(grown < 64, "{grown} MB more are taken");
    assert_eq!(letters.len(), messages.len(), "each once");
    let mut left: Vec<_> = messages.iter().map(|(says, _, body)| (*says, body)).collect();
    for letter in letters {
        let letter = installation.run(&["dead", "show", letter["id"].as_str().unwrap(), "-o", "json"]).json();
        let error = letter["error"].as_str().unwrap();
        // It is a map, and believed to be the job that it claims to be; anything else is not.
        let (reason, claimed) = if error.contains(EXTENSION) { ("invalid_body", true) } else { ("undecodable", false) };
        assert_eq!((letter["reason"].as_str(), letter["run"].as_u64()), (Some(reason), Some(1)), "{letter}");
        assert_eq!(letter["id"].as_str().unwrap().starts_with("0190aaaa"), claimed, "{letter}");
        // What is a body all the same, and only its properties are wrong, is shown as one.
        let bytes =
            letter["body_base64"].as_str().map_or_else(|| b"\x80".to_vec(), |text| STANDARD.decode(text).unwrap());
        let found = left.iter().position(|(says, body)| **body == bytes && error.contains(says));
        let found = found.unwrap_or_else(|| panic!("{error} of {}", bytes[..bytes.len().min(40)].escape_ascii()));
        left.swap_remove(found);
    }
    let shown = |id: &str| {
        let said = installation.run(&["job", "show", id, "-o", "json"]);
        (said.code == 0).then(|| said.json())
    };
    let parked = until("the newer one is put off", async || shown(id(1000).as_str())).await;
    assert_eq!((parked["state"].as_str(), parked["reason"].as_str()), (Some("retrying"), Some("unknown_version")));
    assert_eq!(parked["failed_attempts"], 0, "{parked}");
    until("a good one runs", async || shown(id(1001).as_str()).filter(|job| job["state"] == "succeeded")).await;
    until_equal("jobs that wait", Some(0), async || {
        let queues = installation.run(&["queue", "list", "-o", "json"]).json();
        queues.as_array().unwrap().iter().map(|queue| queue["waiting"].as_u64()).sum::<Option<u64>>()
    })
    .await;
    for (before, id) in [finished, scheduled] {
        assert_eq!(http.job(&id).await, before, "nothing has touched it");
    }
}
