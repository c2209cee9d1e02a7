//! What is held for those who send, and for those who do not take what they are sent: bounded, and nobody else goes short.

use std::time::Duration;

use futures_util::future::join_all;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, net::TcpStream, time::timeout};

use crate::{
    harness::{
        counted::counted,
        http::{Http, parts},
        process::{Installation, Up},
        scale::sized,
        wait::until,
        wire::{address, connect, peak_megabytes},
    },
    keys::made,
};

/// How much a sender was turned away for this reason.
async fn shed(up: &Up, reason: &str) -> u64 {
    counted(up, ("warren_shed_total", &[("reason", reason)])).await
}

/// A request that lacks the last byte of its body, for as long as it is held. Whoever is refused may not get so far.
async fn almost(up: &Up, path: &str, length: usize) -> TcpStream {
    let mut stream = connect(up).await;
    let head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n");
    _ = stream.write_all(head.as_bytes()).await;
    _ = stream.write_all(&vec![b' '; length - 1]).await;
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_not_shown_that_he_may_send_takes_no_room_from_those_who_have() {
    let installation = Installation::embedded("");
    let (key, section) = made(&installation, "shop", &["--scope", "jobs:write", "--scope", "events:write"]);
    let secret = "canary-of-a-door-that-is-no-secret";
    let source = format!("[source.door]\nscheme = \"bearer\"\nsecrets = [\"{secret}\"]\n");
    installation.configure(&format!("{section}\n{source}"));
    let up = installation.up(&[]);
    // Seven that would fill everything, and others that would fill what these leave.
    let mut held = join_all((0..7).map(|_| almost(&up, "/batch/", 10 << 20))).await;
    held.extend(join_all((0..20).map(|_| almost(&up, "/v1/hooks/door", 1 << 20))).await);
    until("some of them are turned away", async || (shed(&up, "strangers").await >= 5).then_some(())).await;
    assert_eq!(shed(&up, "memory").await, 0);
    let http = Http::with_key(up.gateway(), &key);
    let long = "x".repeat(30_000);
    let events = |count: usize| -> Value {
        (0..count)
            .map(|n| json!({ "event": "seen", "distinct_id": n.to_string(), "properties": { "long": long } }))
            .collect()
    };
    let sends = async |path: &str, body: Value| parts(http.post(path).json(&body).send().await.unwrap()).await;
    let (status, answer) = sends("/batch/", json!({ "batch": events(150) })).await;
    assert_eq!(status, 200, "the key is in the headers: {answer}");
    let (status, answer) = sends("/v1/jobs/warren.probe", json!({ "payload_bytes": 1 })).await;
    assert_eq!(status, 202, "{answer}");
    let calls: Vec<_> = (0..150)
        .map(|n| json!({ "type": "track", "event": "seen", "userId": n.to_string(), "properties": { "long": long } }))
        .collect();
    let (status, answer) = sends("/v1/batch", json!({ "batch": calls })).await;
    assert_eq!((status, answer["success"].as_bool()), (200, Some(true)), "{answer}");
    // A key that is no good is told so before anything is read.
    let bad = Http::with_key(up.gateway(), "no key").post("/batch/").body("{").send().await.unwrap();
    assert_eq!(parts(bad).await.1["code"], "malformed_key");
    drop(held);
    let others = Http::to(up.gateway());
    until("there is room for those who show themselves by what they send", async || {
        let batch = json!({ "api_key": key, "batch": events(1) });
        let hook = others.post("/v1/hooks/door").bearer_auth(secret).body("{}");
        let answers = [others.post("/batch/").json(&batch).send().await, hook.send().await];
        let statuses = answers.map(|answer| answer.unwrap().status().as_u16());
        assert!(statuses.iter().all(|status| [200, 202, 503].contains(status)), "{statuses:?}");
        (!statuses.contains(&503)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn json_that_takes_many_times_its_length_once_it_is_read_is_not_read_all_at_once() {
    // A gateway alone: what workers take for these jobs is not its own.
    let with = "{ url = \"https://example.com/\", event_type = \"x\", event_id = \"x\", body = \"{{data}}\" }";
    let route = format!("[route.all]\ntype = \"*\"\nkind = \"webhook.deliver\"\nwith = {with}\n");
    let Some(installation) = Installation::on_servers(&route).await else { return };
    let up = installation.up(&["gateway"]);
    let http = Http::to(up.gateway());
    // A number of two bytes takes 32 once it is read, and a map of seven takes more than 600.
    let of = |piece: &str, bytes: usize| format!("[{}0]", format!("{piece},").repeat(bytes / (piece.len() + 1)));
    let event = |id: String, data: &str| {
        format!(r#"{{"specversion":"1.0","type":"t","source":"/s","id":"{id}","data":{data}}}"#)
    };
    let numbers = of("0", 900_000);
    let maps = of("{\"\":0}", 900_000);
    let send = async |media: &str, body: String| {
        // One after the other is read, and a build for tests reads slowly.
        let request = http.post("/v1/events").header("content-type", media).timeout(Duration::from_mins(2)).body(body);
        parts(request.send().await.unwrap()).await
    };
    // Whoever finds no room is to come again; all others are taken.
    let count = |answers: Vec<(u16, Value)>, taken| {
        let unexpected = answers.iter().find(|(status, _)| ![taken, 503].contains(status));
        assert!(unexpected.is_none(), "{:?}", unexpected.map(|(status, answer)| (status, answer["detail"].clone())));
        answers.iter().filter(|(status, _)| *status == taken).count()
    };
    let many = (0..15).map(|batch| {
        let events: Vec<_> = (0..4).map(|n| event(format!("{batch}-{n}"), &numbers)).collect();
        send("application/cloudevents-batch+json", format!("[{}]", events.join(",")))
    });
    let taken = count(join_all(many).await, 200);
    let peak = peak_megabytes(up.pid());
    println!("{taken} batches of numbers were taken; at most {peak} MB");
    assert!(taken > 0 && peak < 350, "{peak} MB");
    let single = (0..16).map(|n| send("application/cloudevents+json", event(n.to_string(), &maps)));
    let taken = count(join_all(single).await, 202);
    let peak = peak_megabytes(up.pid());
    println!("{taken} events of maps were taken; at most {peak} MB");
    // What one thread has taken for the largest that there can be, it keeps for the next.
    assert!(taken > 0 && peak < 700, "{peak} MB");
}

/// A connection of HTTP/2 that takes nothing of any answer.
async fn closed_window(up: &Up) -> http2::SendRequest<String> {
    let stream = TcpStream::connect(address(up.gateway())).await.unwrap();
    let mut client = http2::Builder::new(TokioExecutor::new());
    let (client, connection) = client.initial_stream_window_size(0).handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn long_answers_that_nobody_takes_are_not_made_without_end() {
    let installation = Installation::embedded("");
    let up = installation.up(&[]);
    let http = Http::to(up.gateway());
    let id = http.submit("warren.probe", &json!({ "payload_bytes": 700_000 })).await;
    let job = http.job_in(&id, "succeeded").await;
    assert_eq!(job["output"]["payload"].as_str().map(str::len), Some(933_336), "in base64");
    let mut client = closed_window(&up).await;
    let mut held = Vec::new();
    for _ in 0..100 {
        let request = http::Request::get(format!("{}/v1/jobs/{id}", up.gateway())).body(String::new()).unwrap();
        held.push(client.send_request(request).await.unwrap());
    }
    let count = |status: u16| held.iter().filter(|answer| answer.status() == status).count();
    // 64 MiB of them, and no more.
    assert_eq!((count(200), count(503)), (71, 29));
    assert!(shed(&up, "memory").await >= 29);
    drop((held, client));
    http.job_in(&id, "succeeded").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_gives_no_window_for_his_answers_holds_nobody_up_for_long() {
    // A minute, and then it is over; `serve/tests.rs` shows the same with less patience.
    if sized(true, false) {
        return;
    }
    let installation = Installation::embedded("[gateway]\nmax_requests = 200\n");
    let up = installation.up(&[]);
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut client = closed_window(&up).await;
        for _ in 0..100 {
            let request = http::Request::get(format!("{}/", up.gateway())).body(String::new()).unwrap();
            held.push(client.send_request(request).await.unwrap());
        }
    }
    let http = Http::to(up.gateway());
    let status = async || http.post("/v1/jobs/warren.probe").json(&json!({})).send().await.unwrap().status().as_u16();
    assert_eq!(status().await, 503);
    let served = async {
        while status().await != 202 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    timeout(Duration::from_secs(100), served).await.expect("they are dropped");
    drop(held);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_wrong_with_the_items_of_a_batch_is_not_remembered_at_their_length() {
    let installation = Installation::embedded("");
    let up = installation.up(&[]);
    let http = Http::to(up.gateway());
    // Kinds that are none, each about as long as an item may be.
    let item = |number: usize| json!({ "kind": "k".repeat(1_000_000), "key": format!("key-{number}") }).to_string();
    let send = async |count: usize| {
        let lines = (0..count).map(item).collect::<Vec<_>>().join("\n");
        let sent = http.post("/v1/jobs").header("content-type", "application/x-ndjson").body(lines);
        let text = sent.send().await.unwrap().text().await.unwrap();
        let refused = text.lines().filter(|line| line.contains("bad_kind_name")).count();
        assert_eq!(refused, count, "{}", &text[..text.len().min(500)]);
    };
    send(5).await;
    let before = peak_megabytes(up.pid());
    send(120).await;
    let more = peak_megabytes(up.pid()) - before;
    assert!(more < 60, "{more} MB more for 120 MB that were refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_item_that_cannot_be_read_counts_as_one_that_can() {
    let installation = Installation::embedded("");
    let (key, section) = made(&installation, "slow", &["--scope", "jobs:write", "--rate", "5/d"]);
    installation.configure(&section);
    let up = installation.up(&[]);
    let http = Http::with_key(up.gateway(), &key);
    let items = json!([5, { "kind": "x" }, { "kind": "no.such" }, [], { "kind": 1 }, { "kind": "warren.probe" }]);
    let (status, answer) = parts(http.post("/v1/jobs").json(&items).send().await.unwrap()).await;
    assert_eq!(status, 200, "{answer}");
    let last = &answer["results"][5];
    assert_eq!((last["status"].as_u64(), last["code"].as_str()), (Some(429), Some("rate_limited")), "{answer}");
}
