//! The gateway: what it takes, what it refuses and how, over real sockets.

use std::{collections::HashSet, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use warren::{
    clock,
    id::{Minter, Secret},
    job::Tenant,
};

use crate::harness::{
    http::{Http, parts},
    process::{Installation, Up},
    wait::until_equal,
};

fn open() -> (Installation, Up, Http) {
    let installation = Installation::embedded("");
    let up = installation.up(&[]);
    let http = Http::to(up.gateway());
    (installation, up, http)
}

/// Everything that was ever taken: every job has a row in the end.
pub(crate) fn jobs(installation: &Installation) -> Vec<Value> {
    let mut jobs = Vec::new();
    for state in ["succeeded", "dead", "scheduled", "retrying", "queued"] {
        let listed = installation.run(&["job", "list", "--state", state, "--limit", "10000", "-o", "json"]).json();
        jobs.extend(listed.as_array().unwrap().iter().cloned());
    }
    jobs
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_taken_in_both_formats_and_its_place_is_told() {
    let (_installation, _up, http) = open();
    let response = http.post("/v1/jobs/warren.probe").json(&json!({ "payload_bytes": 3 })).send().await.unwrap();
    assert_eq!(response.status(), 202);
    let location = response.headers()["location"].to_str().unwrap().to_owned();
    let answer: Value = response.json().await.unwrap();
    assert_eq!(location, format!("/v1/jobs/{}", answer["id"].as_str().unwrap()));
    assert_eq!((answer["kind"].as_str(), answer["state"].as_str()), (Some("warren.probe"), Some("queued")));
    let job = http.job_in(answer["id"].as_str().unwrap(), "succeeded").await;
    assert_eq!(job["output"]["payload"], "AAAA", "three zero bytes in base64");
    // {"work_ms": 1} as MessagePack, under each of its names.
    for name in ["application/msgpack", "application/vnd.msgpack", "application/x-msgpack; v=1"] {
        let body = b"\x81\xa7work_ms\x01".to_vec();
        let response = http.post("/v1/jobs/warren.probe").header("content-type", name).body(body).send().await.unwrap();
        let (status, answer) = parts(response).await;
        assert_eq!(status, 202, "{answer}");
        http.job_in(answer["id"].as_str().unwrap(), "succeeded").await;
    }
    // Without a content type it is JSON.
    let (status, _) = parts(http.post("/v1/jobs/warren.probe").body("{}").send().await.unwrap()).await;
    assert_eq!(status, 202);
    let (status, index) = parts(http.get("/").send().await.unwrap()).await;
    let kinds = json!(["analytics.event", "event.received", "warren.probe", "webhook.deliver"]);
    assert_eq!((status, index["kinds"].clone()), (200, kinds));
}

/// Path, headers, body; status and code.
type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [u8], u16, &'a str);

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_gets_its_own_answer_and_nothing_is_taken() {
    let (installation, _up, http) = open();
    let deep = format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000));
    let webhook =
        json!({ "url": "ftp://x", "event_type": "", "event_id": "a.b", "body": 1, "body_base64": "AA==" }).to_string();
    let deep_field = format!("{{\"work_ms\":{deep}}}");
    let long_kind = format!("/v1/jobs/{}", "x".repeat(300));
    let json_type = [("content-type", "application/json")];
    let msgpack = [("content-type", "application/msgpack")];
    let probe = "/v1/jobs/warren.probe";
    let cases: Vec<Case> = vec![
        (probe, &json_type, b"", 400, "empty_body"),
        (probe, &json_type, b"{\"work_ms\": ", 400, "invalid_json"),
        (probe, &json_type, b"{\"work_ms\": 1}}", 400, "invalid_json"),
        (probe, &json_type, b"{\"work_ms\": \"\xff\"}", 400, "bad_encoding"),
        (probe, &json_type, b"{\"fate\": \"\\ud800\"}", 400, "bad_encoding"),
        (probe, &json_type, b"{\"work_ms\": 1e999}", 422, "invalid_body"),
        (probe, &json_type, deep_field.as_bytes(), 400, "too_deep"),
        (probe, &json_type, b"[1]", 422, "not_a_map"),
        (probe, &json_type, b"{\"work_ms\": 1, \"work_ms\": 2}", 400, "duplicate_key"),
        (probe, &json_type, b"{\"wrok_ms\": 1}", 422, "invalid_body"),
        (probe, &json_type, b"{\"work_ms\": \"1\"}", 422, "invalid_body"),
        (probe, &json_type, b"{\"work_ms\": -1}", 422, "invalid_body"),
        (probe, &json_type, b"{\"work_ms\": 600001}", 422, "invalid_body"),
        (probe, &json_type, b"{\"fate\": \"glory\"}", 422, "invalid_body"),
        (probe, &msgpack, b"{}", 422, "not_a_map"),
        (probe, &msgpack, b"\x81\xa1x", 400, "invalid_msgpack"),
        (probe, &msgpack, b"\x80\x80", 400, "invalid_msgpack"),
        (probe, &[("content-type", "text/plain")], b"{}", 415, "unsupported_content_type"),
        (probe, &[("content-type", "application/x-www-form-urlencoded")], b"{}", 415, "unsupported_content_type"),
        ("/v1/jobs/webhook.deliver", &json_type, webhook.as_bytes(), 422, "invalid_body"),
        ("/v1/jobs/warren.prbe", &json_type, b"{}", 404, "unknown_kind"),
        ("/v1/jobs/Warren", &json_type, b"{}", 422, "bad_kind_name"),
        ("/v1/jobs/a..b", &json_type, b"{}", 422, "bad_kind_name"),
        ("/v1/jobs/%23", &json_type, b"{}", 422, "bad_kind_name"),
        ("/v1/jobs/a%00b", &json_type, b"{}", 422, "bad_kind_name"),
        (&long_kind, &json_type, b"{}", 422, "bad_kind_name"),
        ("/v1/jobs/..%2f..%2fetc", &json_type, b"{}", 422, "bad_kind_name"),
        ("/v1/job", &json_type, b"{}", 404, "not_found"),
        ("/v1/jobs/", &json_type, b"{}", 404, "not_found"),
        ("/v2/jobs/warren.probe", &json_type, b"{}", 404, "not_found"),
        (probe, &[("idempotency-key", "")], b"{}", 422, "bad_idempotency_key"),
        (probe, &[("idempotency-key", "a b")], b"{}", 422, "bad_idempotency_key"),
        (probe, &[("idempotency-key", "\u{e4}")], b"{}", 422, "bad_idempotency_key"),
        (probe, &[("idempotency-key", "a"), ("idempotency-key", "b")], b"{}", 422, "bad_idempotency_key"),
        (probe, &[("warren-delay", "-5s")], b"{}", 422, "bad_delay"),
        (probe, &[("warren-delay", "NaN")], b"{}", 422, "bad_delay"),
        (probe, &[("warren-delay", "1h30")], b"{}", 422, "bad_delay"),
        (probe, &[("warren-delay", "109575d")], b"{}", 422, "bad_delay"),
        (probe, &[("warren-delay", "1s"), ("warren-run-at", "2030-01-01T00:00:00Z")], b"{}", 422, "bad_delay"),
        (probe, &[("warren-run-at", "2030-01-01T00:00:00")], b"{}", 422, "zone_required"),
        (probe, &[("warren-run-at", "tomorrow")], b"{}", 422, "bad_run_at"),
        (probe, &[("warren-run-at", "2020-01-01T00:00:00Z")], b"{}", 422, "bad_run_at"),
        (probe, &[("warren-run-at", "2300-01-01T00:00:00Z")], b"{}", 422, "bad_run_at"),
    ];
    let mut requests = HashSet::new();
    for (path, headers, body, status, code) in cases {
        let mut request = http.post(path).body(body.to_vec());
        for (name, value) in headers {
            request = request.header(*name, value.as_bytes());
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.headers()["content-type"], "application/problem+json", "{path} {headers:?}");
        let (got, problem) = parts(response).await;
        assert_eq!((got, problem["code"].as_str()), (status, Some(code)), "{path} {headers:?} {problem}");
        assert_eq!(problem["status"], status);
        assert_eq!(problem["type"], format!("urn:warren:problem:{code}"));
        assert!(!problem["detail"].as_str().unwrap().is_empty());
        assert!(requests.insert(problem["request_id"].as_str().unwrap().to_owned()), "each request has its own id");
    }
    let long_key = "k".repeat(10_000);
    let response = http.post(probe).header("idempotency-key", long_key).body("{}").send().await.unwrap();
    assert_eq!(parts(response).await.1["code"], "bad_idempotency_key");
    assert_eq!(jobs(&installation), Vec::<Value>::new(), "nothing was taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_problem_of_a_body_is_listed_with_its_place() {
    let (_installation, _up, http) = open();
    let body = json!({ "url": "ftp://x", "event_type": "", "event_id": "a.b", "body": 1, "body_base64": "AA==" });
    let (_, problem) = parts(http.post("/v1/jobs/webhook.deliver").json(&body).send().await.unwrap()).await;
    let errors = problem["errors"].as_array().unwrap();
    let places: Vec<_> = errors.iter().map(|error| error["pointer"].as_str().unwrap()).collect();
    assert_eq!(places, ["/url", "/event_type", "/event_id", ""]);
    assert!(errors.iter().all(|error| error["code"].is_string() && error["detail"].is_string()));
    let (_, problem) =
        parts(http.post("/v1/jobs/warren.probe").json(&json!({ "wrok_ms": 1 })).send().await.unwrap()).await;
    assert_eq!(problem["errors"][0]["pointer"], "/wrok_ms");
    assert_eq!(problem["errors"][0]["code"], "unknown_field");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_too_long_is_refused_with_the_limit_and_the_connection_is_closed() {
    let (_installation, _up, http) = open();
    let long = format!("{{\"x\":\"{}\"}}", "y".repeat(1 << 20));
    let response = http.post("/v1/jobs/warren.probe").body(long.clone()).send().await.unwrap();
    assert_eq!(response.headers()["connection"], "close");
    let (status, problem) = parts(response).await;
    assert_eq!((status, problem["code"].as_str()), (413, Some("too_large")));
    assert!(problem["detail"].as_str().unwrap().contains("1048576"));
    // Chunked, so that no length warns of it.
    let chunks = futures_util::stream::iter(vec![Ok::<_, std::io::Error>(long.clone()), Ok(long)]);
    let body = reqwest::Body::wrap_stream(chunks);
    let (status, problem) = parts(http.post("/v1/jobs/warren.probe").body(body).send().await.unwrap()).await;
    assert_eq!((status, problem["code"].as_str()), (413, Some("too_large")));
}

#[tokio::test(flavor = "multi_thread")]
async fn other_methods_and_pages_are_told_what_there_is() {
    let (_installation, up, http) = open();
    let put = http.client.put(format!("{}/v1/jobs/warren.probe", up.gateway())).send().await.unwrap();
    assert_eq!(put.status(), 405);
    assert!(put.headers()["allow"].to_str().unwrap().contains("POST"));
    assert_eq!(parts(put).await.1["code"], "method_not_allowed");
    let admin = Http::to(&up.admin);
    for page in ["/livez", "/readyz", "/metrics"] {
        let post = admin.post(page).body("x").send().await.unwrap();
        assert_eq!(post.status(), 405, "{page}");
    }
    assert_eq!(parts(admin.get("/nothing").send().await.unwrap()).await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_gives_one_job_and_another_body_under_it_is_a_conflict() {
    let (installation, up, http) = open();
    let send = async |http: &Http, key: &str, body: Value| {
        parts(http.post("/v1/jobs/warren.probe").header("idempotency-key", key).json(&body).send().await.unwrap()).await
    };
    let (status, first) = send(&http, "k1", json!({ "work_ms": 1, "payload_bytes": 2 })).await;
    assert_eq!((status, first["replayed"].clone()), (202, Value::Null));
    // The same body, written otherwise.
    let (status, again) = send(&http, "k1", json!({ "payload_bytes": 2, "work_ms": 1, "fate": "ok" })).await;
    assert_eq!((status, again["id"].clone(), again["replayed"].as_bool()), (202, first["id"].clone(), Some(true)));
    let (status, conflict) = send(&http, "k1", json!({ "work_ms": 2 })).await;
    assert_eq!((status, conflict["code"].as_str()), (409, Some("idempotency_conflict")));
    assert_eq!(conflict["job"], first["id"]);
    let (_, other) = send(&http, "k2", json!({ "work_ms": 1, "payload_bytes": 2 })).await;
    assert_ne!(other["id"], first["id"]);
    let id = first["id"].as_str().unwrap().to_owned();
    http.job_in(&id, "succeeded").await;
    // A gateway that knows nothing of it takes both again; the first runs no second time, the other is noted.
    up.kill();
    let up = installation.up(&[]);
    let http = Http::to(up.gateway());
    let (status, again) = send(&http, "k1", json!({ "work_ms": 1, "payload_bytes": 2 })).await;
    assert_eq!((status, again["id"].as_str()), (202, Some(id.as_str())));
    up.kill();
    let up = installation.up(&[]);
    let http = Http::to(up.gateway());
    let (status, again) = send(&http, "k1", json!({ "work_ms": 2 })).await;
    assert_eq!((status, again["id"].as_str()), (202, Some(id.as_str())));
    until_equal("the conflict is noted", 1, async || {
        http.job(&id).await["idempotency_conflicts"].as_u64().unwrap_or(0)
    })
    .await;
    let job = http.job(&id).await;
    assert_eq!((job["state"].as_str(), job["run"].as_u64()), (Some("succeeded"), Some(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delay_is_kept_and_a_time_that_is_over_is_now() {
    let (_installation, _up, http) = open();
    let send = async |name: &str, value: &str| {
        let request = http.post("/v1/jobs/warren.probe").header(name, value).json(&json!({}));
        parts(request.send().await.unwrap()).await.1
    };
    let delayed = send("warren-delay", "1s").await;
    assert_eq!(delayed["state"], "scheduled");
    let id = delayed["id"].as_str().unwrap();
    assert_eq!(http.job(id).await["state"], "scheduled");
    let job = http.job_in(id, "succeeded").await;
    let micros = |value: &Value| value.as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_microsecond();
    let waited = job["output"]["started_us"].as_i64().unwrap() - micros(&job["created_at"]);
    assert!((1_000_000..4_000_000).contains(&waited), "{waited} us after it was sent");
    let now = jiff::Timestamp::now();
    let at = send("warren-run-at", &(now + jiff::SignedDuration::from_secs(1)).to_string()).await;
    assert_eq!((at["state"].as_str(), at["late"].clone()), (Some("scheduled"), Value::Null));
    http.job_in(at["id"].as_str().unwrap(), "succeeded").await;
    let late = send("warren-run-at", &(now - jiff::SignedDuration::from_hours(1)).to_string()).await;
    assert_eq!((late["state"].as_str(), late["late"].as_bool()), (Some("queued"), Some(true)));
    let zone = send("warren-run-at", "2026-11-22T00:00:00+14:00").await;
    assert_ne!(zone["code"], "zone_required");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_was_not_made_here_is_unknown_and_one_that_is_too_old_is_gone() {
    let (installation, _up, http) = open();
    let status = async |id: &str| {
        let (status, problem) = parts(http.get(&format!("/v1/jobs/{id}")).send().await.unwrap()).await;
        (status, problem["code"].as_str().map(str::to_owned), problem)
    };
    for id in ["0190aaaa-bbbb-8ccc-8ddd-eeeeffff0000", "7", "..", "%00", "' OR 1=1--"] {
        let (code, name, _) = status(id).await;
        assert!(code == 404 && matches!(name.as_deref(), Some("unknown_job" | "not_found")), "{id}: {code} {name:?}");
    }
    let secrets = std::fs::read_to_string(installation.data().join("ids.toml")).unwrap();
    let table: toml::Table = secrets.parse().unwrap();
    let secret = |value: &toml::Value| value.as_str().unwrap().parse::<Secret>().unwrap();
    let tags = table["id"]["tag_keys"].as_array().unwrap().iter().map(secret).collect::<Vec<_>>();
    let minter = Minter::new(&secret(&table["id"]["dedup_key"]), &tags).unwrap();
    // Made here, but never sent: it may still come.
    let (code, _, job) = status(&minter.mint(&Tenant::DEFAULT, clock::now()).to_string()).await;
    assert_eq!((code, job["state"].as_str(), job["recorded"].as_bool()), (200, Some("queued"), Some(false)));
    let old = minter.mint(&Tenant::DEFAULT, clock::now() - 25 * 3600 * 1_000_000);
    assert_eq!(status(&old.to_string()).await.1.as_deref(), Some("expired"));
    let foreign = minter.mint(&Tenant::new("acme").unwrap(), clock::now());
    assert_eq!(status(&foreign.to_string()).await.1.as_deref(), Some("unknown_job"));
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn the_secrets_of_an_embedded_installation_are_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let (installation, _up, _http) = open();
    let mode = std::fs::metadata(installation.data().join("ids.toml")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

/// Sends bytes as they are and answers what comes back until the other side closes or a moment has passed.
async fn raw(up: &Up, bytes: &[u8]) -> String {
    let address = up.gateway().strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    _ = tokio::time::timeout(Duration::from_secs(2), stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_contradict_themselves_are_refused_and_closed() {
    let (installation, up, _http) = open();
    let head = "POST /v1/jobs/warren.probe HTTP/1.1\r\nhost: localhost\r\n";
    let both = format!("{head}content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n");
    let bad_chunk = format!("{head}transfer-encoding: chunked\r\n\r\nzz\r\n{{}}\r\n0\r\n\r\n");
    let two_lengths = format!("{head}content-length: 2\r\ncontent-length: 3\r\n\r\n{{}}");
    let many = format!("{head}{}\r\n", "x-many: 1\r\n".repeat(1000));
    let huge = format!("{head}x: {}\r\n\r\n", "y".repeat(1 << 20));
    let line = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "z".repeat(100_000));
    for (request, allowed) in [
        (bad_chunk, &["400"][..]),
        (two_lengths, &["400"]),
        (many, &["431"]),
        (huge, &["431"]),
        (line, &["414", "431"]),
        ("nonsense\r\n\r\n".to_owned(), &["400"]),
    ] {
        let answer = raw(&up, request.as_bytes()).await;
        let status = answer.split(' ').nth(1).unwrap_or("closed");
        assert!(allowed.contains(&status) || answer.is_empty(), "{}…: {answer}", &request[..60.min(request.len())]);
    }
    assert_eq!(jobs(&installation), Vec::<Value>::new(), "nothing was taken");
    // With both a length and chunks, the chunks count and the connection ends, as RFC 9112 asks: what follows on it
    // cannot be taken for another request.
    let smuggled = "POST /v1/jobs/warren.probe HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\n{}";
    let answer = raw(&up, format!("{both}{smuggled}").as_bytes()).await;
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
}
