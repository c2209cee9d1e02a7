//! What a gateway on a public address is sent: too much, too slowly, packed and broken, over real sockets.

use std::{io::Write as _, time::Duration};

use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::{
    http::{Http, parts},
    process::{Installation, Up},
    wire::{connect, raw, rest},
};

const PROBE: &str = "/v1/jobs/warren.probe";

fn open_with(configuration: &str) -> (Installation, Up, Http) {
    let installation = Installation::embedded(configuration);
    let up = installation.up(&[]);
    let http = Http::to(up.gateway());
    (installation, up, http)
}

fn open() -> (Installation, Up, Http) {
    open_with("")
}

/// How many jobs there are, of any kind and in any state.
fn taken(installation: &Installation) -> usize {
    let states = ["queued", "scheduled", "retrying", "succeeded", "dead", "cancelled"];
    let list = |state| installation.run(&["job", "list", "--state", state, "--limit", "10000", "-o", "json"]).json();
    states.into_iter().map(|state| list(state).as_array().unwrap().len()).sum()
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_comes_in_one_piece() {
    let (_installation, up, _http) = open();
    let request = format!("POST {PROBE} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\n{{}}");
    let mut stream = connect(&up).await;
    // A second write for the body costs as much as all of the rest; now and then both are there at the first read.
    for _ in 0..200 {
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = [0; 4096];
        let length = stream.read(&mut answer).await.unwrap();
        let answer = std::str::from_utf8(&answer[..length]).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 202"), "{answer}");
        assert!(head.contains(&format!("content-length: {}", body.len())), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_may_be_gzip() {
    let (_installation, _up, http) = open();
    let send = async |path: &str, media: &str, encoding: &str, body: Vec<u8>| {
        let request = http.post(path).header("content-type", media).header("content-encoding", encoding);
        parts(request.body(body).send().await.unwrap()).await
    };
    for encoding in ["gzip", "GZip", "x-gzip", " gzip ,"] {
        let (status, answer) = send(PROBE, "application/json", encoding, gzip(b"{\"payload_bytes\": 3}")).await;
        assert_eq!(status, 202, "{encoding}: {answer}");
        let job = http.job_in(answer["id"].as_str().unwrap(), "succeeded").await;
        assert_eq!(job["output"]["payload"], "AAAA", "three zero bytes in base64");
    }
    // Members one after another are one body; so is what is not packed at all.
    let members = [gzip(b"{\"payload_"), gzip(b"bytes\": 3}")].concat();
    assert_eq!(send(PROBE, "application/json", "gzip", members).await.0, 202);
    assert_eq!(send(PROBE, "application/msgpack", "gzip", gzip(b"\x80")).await.0, 202);
    assert_eq!(send(PROBE, "application/json", "identity", b"{}".to_vec()).await.0, 202);
    let array = gzip(b"[{\"kind\": \"warren.probe\"}, {\"kind\": \"warren.probe\"}]");
    let (status, answer) = send("/v1/jobs", "application/json", "gzip", array).await;
    assert_eq!((status, answer["accepted"].as_u64()), (200, Some(2)), "{answer}");
    let lines = gzip("{\"kind\": \"warren.probe\"}\n".repeat(3000).as_bytes());
    let (status, answer) = send("/v1/jobs", "application/x-ndjson", "gzip", lines).await;
    let answer = answer.as_str().unwrap().to_owned();
    assert_eq!((status, answer.matches("\"status\":202").count()), (200, 3000), "{answer}");
}

/// Path, encoding, body; status, code, and what the sentence must say.
type Packed<'a> = (&'a str, &'a str, &'a [u8], u16, &'a str, &'a str);

#[tokio::test(flavor = "multi_thread")]
async fn a_packed_body_that_is_broken_too_large_or_of_another_encoding_is_refused() {
    let (installation, _up, http) = open();
    let good = gzip(b"{\"work_ms\": 1}");
    let cut = good[..good.len() - 1].to_vec();
    let followed = [good.clone(), b"{}".to_vec()].concat();
    let bomb = gzip(&vec![b' '; 100 << 20]);
    assert!(bomb.len() < 200_000);
    // As large as may be, and one more.
    let just = gzip(format!("{{\"fate\": \"{}\"}}", "x".repeat((1 << 20) - 12)).as_bytes());
    let beyond = gzip(format!("{{\"fate\": \"{}\"}}", "x".repeat((1 << 20) - 11)).as_bytes());
    let (twice, nothing) = (gzip(&good), gzip(b""));
    let cases: Vec<Packed> = vec![
        (PROBE, "gzip", &cut, 400, "bad_gzip", "cut off"),
        (PROBE, "gzip", &followed, 400, "bad_gzip", "something else follows"),
        (PROBE, "gzip", b"{\"work_ms\": 1}", 400, "bad_gzip", "no gzip"),
        (PROBE, "gzip", &twice, 400, "bad_encoding", "not UTF-8"),
        (PROBE, "gzip, gzip", &twice, 415, "unsupported_encoding", "once"),
        (PROBE, "br", &good, 415, "unsupported_encoding", "gzip"),
        (PROBE, "deflate", &good, 415, "unsupported_encoding", "gzip"),
        (PROBE, "gzip, zstd", &good, 415, "unsupported_encoding", "gzip"),
        (PROBE, "gzip", b"", 400, "empty_body", "empty"),
        (PROBE, "gzip", &nothing, 400, "empty_body", "empty"),
        (PROBE, "gzip", &just, 422, "invalid_body", "rules"),
        (PROBE, "gzip", &beyond, 413, "too_large_decompressed", "1048576"),
        (PROBE, "gzip", &bomb, 413, "too_large_decompressed", "1048576"),
        ("/v1/jobs", "gzip", &bomb, 413, "too_large_decompressed", "20 times"),
        ("/v1/jobs", "br", &good, 415, "unsupported_encoding", "gzip"),
    ];
    for (path, encoding, body, status, code, words) in cases {
        let request = http.post(path).header("content-type", "application/json").header("content-encoding", encoding);
        let response = request.body(body.to_vec()).send().await.unwrap();
        if status == 415 {
            assert_eq!(response.headers()["accept-encoding"], "gzip, identity");
        }
        let (found, problem) = parts(response).await;
        assert_eq!((found, problem["code"].as_str()), (status, Some(code)), "{path} {encoding}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains(words), "{path} {encoding}: {problem}");
    }
    assert_eq!(taken(&installation), 0);
    // Of many, what came before the damage was taken, and is told.
    let array = gzip(b"[{\"kind\": \"warren.probe\"}, {\"kind\": \"warren.probe\"}, ");
    let request = http.post("/v1/jobs").header("content-encoding", "gzip").body(array[..array.len() - 3].to_vec());
    let (status, answer) = parts(request.send().await.unwrap()).await;
    assert_eq!((status, answer["accepted"].clone(), answer["refused"].clone()), (200, json!(2), json!(1)), "{answer}");
    assert_eq!(
        answer["results"].as_array().and_then(|results| results.last()).map(|last| &last["code"]),
        Some(&Value::from("bad_gzip"))
    );
}

/// A request as it stands on the wire; status, code, and what the sentence must say.
type OnTheWire<'a> = (String, u16, &'a str, &'a str);

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_none_is_told_what_is_wrong_with_it_and_its_connection_is_closed() {
    let (installation, up, _http) = open();
    let head = "POST /v1/jobs/warren.probe HTTP/1.1\r\nhost: localhost\r\n";
    let chunks = "2\r\n{}\r\n0\r\n\r\n";
    let cases: Vec<OnTheWire> = vec![
        (format!("{head}content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n{chunks}"), 400, "two_lengths", "both"),
        (format!("{head}Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n{chunks}"), 400, "two_lengths", "both"),
        (format!("{head}content-length: 2\r\ncontent-length: 3\r\n\r\n{{}}"), 400, "bad_request", "length"),
        (format!("{head}content-length: -2\r\n\r\n{{}}"), 400, "bad_request", "length"),
        (format!("{head}content-length: 2, 3\r\n\r\n{{}}"), 400, "bad_request", "length"),
        (format!("{head}transfer-encoding: gzip\r\n\r\n{chunks}"), 400, "bad_request", "length"),
        (format!("{head}transfer-encoding: chunked\r\n\r\nzz\r\n{{}}\r\n0\r\n\r\n"), 400, "broken_body", "broke off"),
        (format!("{head}transfer-encoding: chunked\r\n\r\n5\r\n{{}}\r\n0\r\n\r\n"), 400, "broken_body", "broke off"),
        (format!("{head}transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n{{}}"), 400, "broken_body", "broke off"),
        (format!("{head}idempotency-key: a\rb\r\ncontent-length: 2\r\n\r\n{{}}"), 400, "bad_request", "header fields"),
        (format!("{head}idempotency-key: a\0b\r\ncontent-length: 2\r\n\r\n{{}}"), 400, "bad_request", "header fields"),
        (format!("{head}x: 1\r\n folded: 2\r\ncontent-length: 2\r\n\r\n{{}}"), 400, "bad_request", "header fields"),
        (format!("{head}content-length : 2\r\n\r\n{{}}"), 400, "bad_request", "header fields"),
        (format!("{head}{}\r\n", "x-many: 1\r\n".repeat(1000)), 431, "headers_too_large", "64 fields"),
        (format!("{head}{}\r\n", "x-many: 1\r\n".repeat(64)), 431, "headers_too_large", "64 fields"),
        (format!("{head}x: {}\r\n\r\n", "y".repeat(1 << 20)), 431, "headers_too_large", "16384 bytes"),
        (format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "z".repeat(100_000)), 414, "url_too_long", "8192"),
        (
            format!("GET /{} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", "z".repeat(9000)),
            414,
            "url_too_long",
            "8192",
        ),
        ("nonsense\r\n\r\n".to_owned(), 400, "bad_request", "first line"),
        ("POST /v1/jobs/warren.probe HTTP/4.2\r\nhost: x\r\n\r\n".to_owned(), 400, "bad_request", "first line"),
        ("POST /v1/jobs/\u{1}warren.probe HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(), 400, "bad_request", "first line"),
        ("\x16\x03\x01\x02\0\x01\0\x01\u{fc}\x03\x03".to_owned() + "\r\n\r\n", 400, "bad_request", "first line"),
    ];
    for (request, status, code, words) in cases {
        let answer = raw(up.gateway(), request.as_bytes()).await;
        let short: String = request.chars().take(150).collect();
        assert_eq!(answer.status(), status, "{short}: {answer:?}");
        assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{short}");
        assert_eq!(answer.header("connection"), Some("close"), "{short}");
        let problem = answer.json();
        assert_eq!(
            (problem["status"].as_u64(), problem["code"].as_str()),
            (Some(status.into()), Some(code)),
            "{short}"
        );
        assert!(problem["detail"].as_str().unwrap().contains(words), "{short}: {problem}");
    }
    // Less than was promised.
    let mut stream = connect(&up).await;
    stream.write_all(format!("{head}content-length: 20\r\n\r\n{{\"work").as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let answer = rest(&mut stream).await;
    assert_eq!((answer.status(), answer.json()["code"].as_str()), (400, Some("broken_body")));
    assert_eq!(taken(&installation), 0);
    // More than was promised: the first is one, and what follows it is none.
    let more = format!("{head}content-length: 2\r\n\r\n{{}}{{\"and\": \"more\"}}\r\n\r\n");
    let answer = raw(up.gateway(), more.as_bytes()).await;
    assert!(answer.text.starts_with("HTTP/1.1 202 "), "{answer:?}");
    assert!(answer.text.contains("HTTP/1.1 400 ") && answer.text.contains("bad_request"), "{answer:?}");
    // Nor is a request that is hidden behind one with two lengths ever read.
    let both = format!("{head}content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{chunks}");
    let hidden = format!("{head}content-length: 2\r\n\r\n{{}}{both}{head}content-length: 2\r\n\r\n{{}}");
    let answer = raw(up.gateway(), hidden.as_bytes()).await;
    assert!(answer.text.matches("HTTP/1.1 ").count() <= 2, "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_behind_another_is_looked_at_as_closely() {
    let (installation, up, _http) = open();
    let post = |fields: &str, body: &str| {
        format!("POST {PROBE} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{fields}\r\n{body}")
    };
    let chunks = "1;of=two\r\n{\r\n1\r\n}\r\n0\r\nbehind: it\r\n\r\n";
    let both = post("content-length: 2\r\ntransfer-encoding: chunked\r\n", chunks);
    let before = [
        "GET / HTTP/1.1\r\nhost: localhost\r\n\r\n".to_owned(),
        post("content-length: 2\r\n", "{}"),
        post("transfer-encoding: chunked\r\n", chunks),
    ];
    for before in &before {
        // In one segment.
        let answer = raw(up.gateway(), format!("{before}{both}{before}").as_bytes()).await;
        assert_eq!(answer.text.matches("HTTP/1.1 20").count(), 1, "{before}: {answer:?}");
        assert_eq!(answer.text.matches("HTTP/1.1 ").count(), 2, "{before}: {answer:?}");
        assert!(answer.text.contains("HTTP/1.1 400 ") && answer.text.contains("two_lengths"), "{before}: {answer:?}");
    }
    // All of them are good, in whatever pieces they come.
    let all = before.concat().repeat(3) + &before[0].replace("host: localhost", "host: localhost\r\nconnection: close");
    for pieces in [7, 1000, 10_000] {
        let mut stream = connect(&up).await;
        for piece in all.as_bytes().chunks(pieces) {
            stream.write_all(piece).await.unwrap();
        }
        let answer = rest(&mut stream).await;
        let count = |status: &str| answer.text.matches(&format!("HTTP/1.1 {status} ")).count();
        assert_eq!((count("200"), count("202")), (4, 6), "{pieces}: {answer:?}");
    }
    // While the one before it is worked on, which is when hyper reads ahead.
    let waits = before[1].replacen("{}", "{\"work_ms\": 2000}", 1).replace("length: 2", "length: 17");
    let waits = waits.replace("host: localhost", "host: localhost\r\nprefer: wait=20");
    let mut stream = connect(&up).await;
    stream.write_all(waits.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    stream.write_all(both.as_bytes()).await.unwrap();
    let answer = rest(&mut stream).await;
    assert!(answer.text.starts_with("HTTP/1.1 200 ") && answer.text.contains("two_lengths"), "{answer:?}");
    assert_eq!(taken(&installation), 2 + 18 + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_leads_to_a_page_or_to_nothing_and_never_to_a_file() {
    let (installation, up, _http) = open();
    let paths = [
        "/../../../../../../etc/passwd",
        "/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/v1/jobs/..%2f..%2f..%2fetc%2fpasswd",
        "/v1/jobs/%2e%2e",
        "/v1/jobs/..",
        "/v1/../warren.toml",
        "/warren.toml",
        "/v1/jobs/%00",
        "/v1/jobs/a%00b",
        "/%00",
        "/V1/JOBS/warren.probe",
        "/v1/Jobs",
        "//v1/jobs/x",
        "/v1//jobs/x",
        "/v1/jobs/x/",
        "/livez/..",
        "/LIVEZ",
        "/livez/",
        "/%6civez%00",
        "/..%5c..%5cwindows",
        "/%c0%ae%c0%ae/etc/passwd",
        "/%zz",
    ];
    for url in [up.gateway(), &up.admin] {
        for path in paths {
            for method in ["GET", "POST"] {
                let request = format!(
                    "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{{}}"
                );
                let answer = raw(url, request.as_bytes()).await;
                let refused = matches!((method, answer.status()), (_, 400 | 404) | ("POST", 405 | 422));
                assert!(refused, "{method} {path}: {answer:?}");
                assert!(!answer.text.contains("root:") && !answer.text.contains("[gateway]"), "{answer:?}");
            }
        }
    }
    assert_eq!(taken(&installation), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_that_are_only_read_say_so_to_every_other_method() {
    let (_installation, up, _http) = open();
    for page in ["/livez", "/readyz", "/metrics"] {
        for method in ["OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND", "XYZZY", "get"] {
            let request = format!("{method} {page} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            let answer = raw(&up.admin, request.as_bytes()).await;
            assert_eq!(answer.status(), 405, "{method} {page}: {answer:?}");
            assert_eq!(answer.header("allow"), Some("GET,HEAD"), "{method} {page}: {answer:?}");
            assert_eq!(answer.json()["code"], "method_not_allowed");
        }
        // HEAD is GET without the body, and a body is of no interest.
        let request = format!("HEAD {page} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let answer = raw(&up.admin, request.as_bytes()).await;
        assert_eq!((answer.status(), answer.text.split("\r\n\r\n").nth(1)), (200, Some("")), "{answer:?}");
        let request = format!("GET {page} HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello");
        assert_eq!(raw(&up.admin, request.as_bytes()).await.status(), 200);
    }
}

/// A kind and a body; status, code, the place of the problem where it has one, and what is said.
type Said<'a> = (&'a str, &'a [u8], u16, &'a str, Option<&'a str>, &'a str);

#[tokio::test(flavor = "multi_thread")]
async fn json_that_is_none_is_told_where_and_why() {
    const HOOK: &str = "/v1/jobs/webhook.deliver";
    let (installation, _up, http) = open();
    let deep = format!("{{\"work_ms\": {}1{}}}", "[".repeat(10_000), "]".repeat(10_000));
    let cases: Vec<Said> = vec![
        (PROBE, b"", 400, "empty_body", None, "empty"),
        (PROBE, b"{\n  \"work_ms\": ]\n}", 400, "invalid_json", None, "line 2 column 14 (at byte 15)"),
        (PROBE, b"{\"work_ms\": 1", 400, "invalid_json", None, "line 1 column 13"),
        (PROBE, b"{\"work_ms\": 01}", 400, "invalid_json", None, "line 1 column 14"),
        (PROBE, b"{'work_ms': 1}", 400, "invalid_json", None, "line 1 column 2"),
        (PROBE, b"\xef\xbb\xbf{\"work_ms\": }", 400, "invalid_json", None, "line 1 column 13"),
        (PROBE, deep.as_bytes(), 400, "too_deep", None, "64"),
        (PROBE, b"{\"work_ms\": 1, \"work_ms\": 1}", 400, "duplicate_key", Some("/work_ms"), "twice"),
        (HOOK, b"{\"headers\": {\"a\": \"1\", \"a\": \"2\"}}", 400, "duplicate_key", Some("/headers/a"), "twice"),
        (HOOK, b"{\"body\": {\"x\": [{\"y\": 1, \"y\": 2}]}}", 400, "duplicate_key", Some("/body/x/0/y"), "twice"),
        (PROBE, b"{\"fate\": \"\xff\"}", 400, "bad_encoding", None, "not UTF-8 (at byte 10)"),
        (PROBE, b"{\"fate\": \"\xc3\xa9\xed\xa0\x80\"}", 400, "bad_encoding", None, "not UTF-8 (at byte 12)"),
        (PROBE, b"\xff\xfe{\0}\0", 400, "bad_encoding", None, "not UTF-8 (at byte 0)"),
        (
            PROBE,
            b"{\"fate\": \"\\ud83d\\ude00\\ud83d!\"}",
            400,
            "bad_encoding",
            None,
            "surrogate pair stands alone (at byte 22)",
        ),
        (PROBE, b"{\"fate\": \"\\\\\\udc00\"}", 400, "bad_encoding", None, "surrogate pair stands alone (at byte 12)"),
        (PROBE, b"{\"work_ms\": NaN}", 422, "invalid_body", Some("/work_ms"), "finite"),
        (PROBE, b"{\"work_ms\": Infinity}", 422, "invalid_body", Some("/work_ms"), "finite"),
        (PROBE, b"{\"work_ms\": -Infinity}", 422, "invalid_body", Some("/work_ms"), "finite"),
        (PROBE, b"{\"work_ms\": 1e999}", 422, "invalid_body", Some("/work_ms"), "finite"),
        (HOOK, b"{\"body\": {\"a\": [1, NaN]}}", 422, "invalid_body", Some("/body/a/1"), "finite"),
        (HOOK, b"{\"body\": {\"a\": [1, -1e400]}}", 422, "invalid_body", Some("/body/a/1"), "finite"),
        (PROBE, b"{\"work_ms\": 18446744073709551616}", 422, "invalid_body", Some("/work_ms"), "from 0 to 4294967295"),
        (HOOK, b"{\"body\": {\"id\": -9223372036854775809}}", 422, "invalid_body", Some("/body/id"), "64 bits"),
    ];
    for (path, body, status, code, place, words) in cases {
        let request = http.post(path).header("content-type", "application/json").body(body.to_vec());
        let (found, problem) = parts(request.send().await.unwrap()).await;
        let text = String::from_utf8_lossy(&body[..body.len().min(80)]);
        assert_eq!((found, problem["code"].as_str()), (status, Some(code)), "{text}: {problem}");
        let error = problem["errors"].as_array().into_iter().flatten().find(|error| error["pointer"].as_str() == place);
        assert_eq!(error.is_some(), place.is_some(), "{text}: {problem}");
        let said = [&problem["detail"], error.map_or(&Value::Null, |error| &error["detail"])]
            .map(|text| text.as_str().unwrap_or(""));
        assert!(said.iter().any(|said| said.contains(words)), "{text}: {problem}");
    }
    assert_eq!(taken(&installation), 0);
}
