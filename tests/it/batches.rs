//! Many jobs in one request, and requests that wait for their job.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection, SqliteConnection};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};

use crate::harness::{
    http::{Http, parts},
    process::{Installation, Up},
    wire::connect,
};

fn open() -> (Installation, Up, Http) {
    let installation = Installation::embedded("");
    let up = installation.up(&[]);
    let http = Http::to(up.gateway());
    (installation, up, http)
}

fn statuses(results: &[Value]) -> Vec<u64> {
    results.iter().map(|result| result["status"].as_u64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_item_is_answered_and_a_bad_one_spoils_no_other() {
    let (_installation, _up, http) = open();
    let items = json!([
        { "kind": "warren.probe" },
        { "kind": "warren.probe", "body": { "work_ms": -1 } },
        { "kind": "warren.porbe" },
        { "kind": "warren.probe", "key": "a", "delay": "1h" },
        { "kind": "warren.probe", "key": "a" },
        { "kind": "warren.probe", "priority": 1 },
        ["warren.probe"],
        { "kind": "warren.probe", "key": "two words" },
        { "kind": "warren.probe", "delay": "soon" },
        { "kind": "warren.probe", "body": { "payload_bytes": 1 } },
    ]);
    let lines: Vec<_> = items.as_array().unwrap().iter().map(Value::to_string).collect();
    let lines = lines.join("\n");
    let (status, array) = parts(http.post("/v1/jobs").json(&items).send().await.unwrap()).await;
    assert_eq!(status, 200);
    let request =
        http.post("/v1/jobs").header("content-type", "application/x-ndjson").body(lines.replace("\"a\"", "\"b\""));
    let text = request.send().await.unwrap().text().await.unwrap();
    let ndjson: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for results in [array["results"].as_array().unwrap(), &ndjson] {
        assert_eq!(statuses(results), [202, 422, 404, 202, 409, 422, 422, 422, 422, 202]);
        let indices: Vec<_> = results.iter().map(|result| result["index"].as_u64().unwrap()).collect();
        assert_eq!(indices, (0..10).collect::<Vec<_>>());
        assert_eq!(results[1]["errors"][0]["pointer"], "/work_ms");
        assert_eq!(results[3]["state"], "scheduled");
        assert_eq!(results[4]["code"], "duplicate_in_batch");
        for taken in [0, 9] {
            http.job_in(results[taken]["id"].as_str().unwrap(), "succeeded").await;
        }
    }
    assert_eq!((array["accepted"].as_u64(), array["refused"].as_u64()), (Some(3), Some(7)));
}

async fn one_row_that_cannot_be_read(installation: Installation) {
    let up = installation.up(&[]);
    let http = Http::to(up.gateway());
    let later = |key: &str| json!({ "kind": "warren.probe", "key": key, "delay": "1h" });
    let (_, first) = parts(http.post("/v1/jobs").json(&json!([later("bad")])).send().await.unwrap()).await;
    let id = first["results"][0]["id"].as_str().unwrap();
    match installation.servers() {
        Some((_, database)) => {
            let mut connection = PgConnection::connect(&database.url).await.unwrap();
            let spoil = sqlx::query("UPDATE jobs SET tenant = 'no tenant!' WHERE id = $1::uuid").bind(id);
            assert_eq!(spoil.execute(&mut connection).await.unwrap().rows_affected(), 1);
        }
        None => {
            let url = format!("sqlite://{}/warren.db", installation.data().display());
            let mut connection = SqliteConnection::connect(&url).await.unwrap();
            let spoil = sqlx::query("UPDATE jobs SET tenant = 'no tenant!' WHERE hex(id) = upper(replace(?, '-', ''))");
            assert_eq!(spoil.bind(id).execute(&mut connection).await.unwrap().rows_affected(), 1);
        }
    }
    // A process that remembers nothing of it.
    drop(up);
    let other = installation.up(&[]);
    let http = Http::to(other.gateway());
    let items = [later("a"), later("bad"), later("b"), json!({ "kind": "warren.probe" }), later("c")];
    let (_, array) = parts(http.post("/v1/jobs").json(&items).send().await.unwrap()).await;
    let results = array["results"].as_array().unwrap();
    assert_eq!(statuses(results), [202, 503, 202, 202, 202], "{array}");
    assert_eq!(results[1]["code"], "store_unavailable");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_item_that_meets_a_row_that_cannot_be_read_spoils_no_other() {
    one_row_that_cannot_be_read(Installation::embedded("")).await;
    if let Some(installation) = Installation::on_servers("").await {
        one_row_that_cannot_be_read(installation).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_none_is_refused_as_a_whole() {
    let (_installation, _up, http) = open();
    for (body, status, code) in
        [("[]", 422, "empty_batch"), ("", 400, "invalid_json"), ("{\"kind\":\"warren.probe\"}", 400, "invalid_json")]
    {
        let (found, answer) = parts(http.post("/v1/jobs").body(body).send().await.unwrap()).await;
        assert_eq!((found, answer["code"].as_str()), (status, Some(code)), "{body}: {answer}");
    }
    let request = http.post("/v1/jobs").header("content-type", "text/csv").body("a,b");
    assert_eq!(parts(request.send().await.unwrap()).await.0, 415);
    // One that breaks off says what was taken of it.
    let broken = http.post("/v1/jobs").body("[{\"kind\":\"warren.probe\"},{\"kind\":");
    let (status, answer) = parts(broken.send().await.unwrap()).await;
    assert_eq!((status, statuses(answer["results"].as_array().unwrap())), (200, vec![202, 400]), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_jobs_in_one_request_are_all_taken() {
    let (_installation, _up, http) = open();
    let lines = "{\"kind\":\"warren.probe\"}\n".repeat(10_000);
    let request = http.post("/v1/jobs").header("content-type", "application/x-ndjson").body(lines);
    let text = request.send().await.unwrap().text().await.unwrap();
    assert_eq!(text.lines().filter(|line| line.contains("\"status\":202")).count(), 10_000);
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    http.job_in(last["id"].as_str().unwrap(), "succeeded").await;
}

/// A request for many jobs, its head without what says how long it is, and the pieces in which it is answered.
struct Pieces(BufReader<TcpStream>);

impl Pieces {
    async fn ask(up: &Up, rest_of_head: &str, body: &str) -> Self {
        let head = "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\n";
        let mut pieces = Self(BufReader::new(connect(up).await));
        pieces.send(&format!("{head}{rest_of_head}\r\n\r\n{body}")).await;
        pieces
    }

    async fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.unwrap();
    }

    async fn head(&mut self) {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(self.0.read_line(&mut head).await.unwrap(), 0, "it is closed: {head}");
        }
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    }

    async fn next(&mut self) -> String {
        let length = usize::from_str_radix(&self.line().await, 16).unwrap();
        let mut piece = vec![0; length];
        self.0.read_exact(&mut piece).await.unwrap();
        assert_eq!(self.line().await, "");
        String::from_utf8(piece).unwrap()
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).await.unwrap();
        line.trim_end().to_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_said_how_long_his_request_is_has_its_items_submitted_together() {
    let (_installation, up, _http) = open();
    let item = format!("{{\"kind\":\"warren.probe\"{}}}\n", " ".repeat(400));
    let lines = item.repeat(100);
    let lines = lines.trim_end();
    // More than is read at a time, even if nothing came between the halves.
    let (first, second) = lines.split_at(lines.len() / 2);
    let mut answer = Pieces::ask(&up, &format!("Content-Length: {}", lines.len()), first).await;
    answer.send(second).await;
    answer.head().await;
    let piece = answer.next().await;
    assert_eq!((piece.matches("\"status\":202").count(), piece.lines().count()), (100, 100), "{piece}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_item_takes_no_room_however_much_of_it_there_is() {
    let (_installation, _up, http) = open();
    let item = "{\"kind\":\"warren.probe\"}";
    // More than all requests together may hold, in one line and in none.
    let (long, blank) = ("x".repeat(70 << 20), format!("\n{}", " ".repeat(1023)).repeat(70 << 10));
    let lines = format!("{item}\n{long}\n{item}{blank}\n{item}");
    let request = http.post("/v1/jobs").header("content-type", "application/x-ndjson").body(lines);
    let text = request.send().await.unwrap().text().await.unwrap();
    let told: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(statuses(&told), [202, 413, 202, 202]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_not_said_it_is_answered_before_he_sends_more() {
    let (_installation, up, _http) = open();
    let item = "{\"kind\":\"warren.probe\"}\n";
    let chunk = format!("{:x}\r\n{item}\r\n", item.len());
    let mut answer = Pieces::ask(&up, "Transfer-Encoding: chunked", &chunk).await;
    answer.head().await;
    let taken = |index: usize| format!("{{\"index\":{index},\"status\":202,");
    let piece = answer.next().await;
    assert!(piece.starts_with(&taken(0)), "{piece}");
    answer.send(&chunk).await;
    let piece = answer.next().await;
    assert!(piece.starts_with(&taken(1)), "{piece}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_waits_is_answered_when_its_job_is_over() {
    let (_installation, _up, http) = open();
    let wait =
        |seconds: &str| http.post("/v1/jobs/warren.probe").header("prefer", format!("respond-async, wait={seconds}"));
    let (status, job) = parts(wait("10").json(&json!({ "work_ms": 300 })).send().await.unwrap()).await;
    assert_eq!((status, job["state"].as_str(), job["output"]["attempt"].as_u64()), (200, Some("succeeded"), Some(1)));
    let began = Instant::now();
    let (status, slow) = parts(wait("1").json(&json!({ "work_ms": 8000 })).send().await.unwrap()).await;
    assert_eq!((status, slow["state"].as_str()), (202, Some("queued")), "{slow}");
    assert!((1.0..7.0).contains(&began.elapsed().as_secs_f64()), "{:?}", began.elapsed());
    let id = slow["id"].as_str().unwrap();
    let (status, job) = parts(http.get(&format!("/v1/jobs/{id}?wait=20")).send().await.unwrap()).await;
    assert_eq!((status, job["state"].as_str()), (200, Some("succeeded")));
    for (query, code) in [("wait=soon", "bad_wait"), ("wait=61", "bad_wait"), ("state=dead", "unknown_parameter")] {
        let (status, answer) = parts(http.get(&format!("/v1/jobs/{id}?{query}")).send().await.unwrap()).await;
        assert_eq!((status, answer["code"].as_str()), (422, Some(code)), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_may_wait_for_jobs_that_end_at_different_times() {
    let (_installation, _up, http) = open();
    let waits = (0..300).map(|number| {
        let request = http.post("/v1/jobs/warren.probe").header("prefer", "wait=20");
        let request = request.json(&json!({ "work_ms": number * 5 }));
        async move { parts(request.send().await.unwrap()).await }
    });
    let began = Instant::now();
    for (status, job) in futures_util::future::join_all(waits).await {
        assert_eq!((status, job["state"].as_str()), (200, Some("succeeded")), "{job}");
    }
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}
