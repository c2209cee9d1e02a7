//! What a gateway on a public address is sent: too much, too slowly, packed and broken, over real sockets.

use std::io::Write as _;

use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};

use crate::harness::{
    http::{Http, parts},
    process::{Installation, Up},
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
        (PROBE, "gzip", &twice, 400, "invalid_json", "expected value"),
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
