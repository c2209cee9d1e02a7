//! Bad input of every sort, over real sockets, and the words that it is answered with. Long, because it is a table.

mod foreign;
mod start;

use serde_json::{Value, json};

use crate::{
    gateway::jobs,
    harness::{
        http::{Http, parts},
        process::{Installation, Up},
    },
};

const PROBE: &str = "/v1/jobs/warren.probe";
const HOOK: &str = "/v1/jobs/webhook.deliver";
/// Stands in every request where it is not what is wrong with it, and in no answer.
const CANARY: &str = "canary-7f3c";

fn open() -> (Installation, Up, Http) {
    let installation = Installation::embedded("");
    let up = installation.up(&[]);
    let http = Http::to(up.gateway());
    (installation, up, http)
}

/// Whether an answer tells what is nobody's business: a value that was sent, where the program stands or keeps its data, or
/// how it came to its answer.
fn tells_too_much(answer: &str, installation: &Installation) -> bool {
    let folder = installation.folder.path().to_str().unwrap();
    [CANARY, "hunter2", ".rs:", "panicked", "backtrace", "src/", folder].iter().any(|word| answer.contains(word))
}

/// A request, and what it is answered with.
struct Case {
    path: String,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    status: u16,
    code: &'static str,
    /// The place and the code of a problem that is listed.
    listed: Option<(&'static str, &'static str)>,
    /// All of them are said.
    words: Vec<&'static str>,
}

impl Case {
    fn new(path: impl Into<String>, status: u16, code: &'static str, words: &[&'static str]) -> Self {
        let (headers, body) = (vec![("content-type", "application/json".to_owned())], b"{}".to_vec());
        Self { path: path.into(), headers, body, status, code, listed: None, words: words.to_vec() }
    }

    fn body(self, body: impl Into<Vec<u8>>) -> Self {
        Self { body: body.into(), ..self }
    }

    fn packed(self, body: impl Into<Vec<u8>>) -> Self {
        Self { headers: vec![("content-type", "application/msgpack".to_owned())], ..self.body(body) }
    }

    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.retain(|(known, _)| *known != name);
        self.headers.push((name, value.to_owned()));
        self
    }

    fn listing(self, pointer: &'static str, code: &'static str) -> Self {
        Self { listed: Some((pointer, code)), ..self }
    }
}

fn kinds() -> Vec<Case> {
    let rule = &["1 to 100", "a-z 0-9 _ - in parts joined by single dots"];
    let mut cases = vec![
        Case::new("/v1/jobs/warren.prbe", 404, "unknown_kind", &["did you mean warren.probe?"]),
        Case::new("/v1/jobs/webhook.delivery", 404, "unknown_kind", &["did you mean webhook.deliver?"]),
        Case::new("/v1/jobs/no.such.thing.at.all", 404, "unknown_kind", &["there is no kind"]),
        Case::new(format!("/v1/jobs/{}", "x".repeat(300)), 422, "bad_kind_name", rule),
        Case::new(format!("/v1/jobs/{}", "x".repeat(100)), 404, "unknown_kind", &["there is no kind"]),
    ];
    let bad = [
        "a..b",
        "a.",
        ".a",
        "%23",
        "a.%23",
        "*",
        "a.*",
        "%2A",
        "a%00",
        "%00",
        "..%2f..%2fetc",
        "a%20b",
        "a%0Ab",
        "%C3%A4",
        "A",
        "%27%20OR%201=1--",
        "%25",
        "a%5Cb",
        "%E2%80%AEa",
    ];
    cases.extend(bad.iter().map(|name| Case::new(format!("/v1/jobs/{name}"), 422, "bad_kind_name", rule)));
    cases
}

fn bodies() -> Vec<Case> {
    let invalid = |body: &str, pointer, code, words: &[&'static str]| {
        Case::new(PROBE, 422, "invalid_body", words).body(body).listing(pointer, code)
    };
    let long_media = format!("text/{}", "x".repeat(5000));
    vec![
        invalid(r#"{"wrok_ms": 1}"#, "/wrok_ms", "unknown_field", &["did you mean work_ms?"]),
        invalid(r#"{"work_ms": 1e999}"#, "/work_ms", "bad_number", &[]),
        invalid(r#"{"work_ms": "canary-7f3c"}"#, "/work_ms", "wrong_type", &[]),
        invalid(r#"{"work_ms": 1, "fate": "canary-7f3c"}"#, "/fate", "unknown_value", &["ok"]),
        Case::new(HOOK, 422, "invalid_body", &[]).listing("/event_id", "missing_field"),
        Case::new(PROBE, 415, "unsupported_content_type", &["application/json", "application/msgpack"])
            .with("content-type", "text/csv"),
        Case::new(PROBE, 415, "unsupported_content_type", &["application/json", "application/msgpack"])
            .with("content-type", &long_media),
        Case::new("/v1/jobs", 415, "unsupported_content_type", &["application/json", "application/x-ndjson"])
            .with("content-type", &long_media),
        // The same in MessagePack, where lengths are believed by whoever is careless.
        Case::new(PROBE, 400, "empty_body", &["empty"]).packed(b""),
        Case::new(PROBE, 400, "duplicate_key", &["twice"]).packed(b"\x82\xa7work_ms\x01\xa7work_ms\x02"),
        Case::new(HOOK, 400, "duplicate_key", &["twice"]).packed(b"\x81\xa4body\x82\xa1a\x01\xa1a\x02"),
        Case::new(PROBE, 400, "too_deep", &["64 levels"]).packed([b"\x81\xa1a".repeat(900), vec![0xc0]].concat()),
        Case::new(PROBE, 400, "too_deep", &["64 levels"])
            .packed([b"\x81\xa4fate".to_vec(), b"\x91".repeat(900_000)].concat()),
        Case::new(PROBE, 400, "invalid_msgpack", &["at byte"]).packed(b"\x81\xdb\xff\xff\xff\xffshort"),
        Case::new(PROBE, 400, "invalid_msgpack", &["at byte"]).packed(b"\x81\xa4fate\xdb\xff\xff\xff\xffshort"),
        Case::new(PROBE, 400, "invalid_msgpack", &["at byte"]).packed(b"\x81\xa4fate\xdd\xff\xff\xff\xff"),
        Case::new(PROBE, 400, "invalid_msgpack", &["at byte"]).packed(b"\xdf\xff\xff\xff\xff"),
        Case::new(PROBE, 400, "invalid_msgpack", &["at byte 1"]).packed(b"\x80\xc0"),
        Case::new(PROBE, 422, "invalid_body", &["an extension type"])
            .packed(b"\x81\xa4fate\xd4\x05\x00")
            .listing("/fate", "wrong_type"),
        Case::new(PROBE, 400, "invalid_msgpack", &["at byte"]).packed(b"\x81\xa4fate\xc1"),
        Case::new(PROBE, 422, "not_a_map", &["map"]).packed(b"\x93\x01\x02\x03"),
        Case::new(HOOK, 422, "invalid_body", &[])
            .packed(b"\x81\xa4body\xcb\x7f\xf8\0\0\0\0\0\0")
            .listing("/body", "bad_value"),
        Case::new(PROBE, 422, "invalid_body", &[]).packed(b"\x81\xa4fate\xa1\xff").listing("/fate", "bad_value"),
    ]
}

fn headers() -> Vec<Case> {
    let ago = |hours| (jiff::Timestamp::now() - jiff::SignedDuration::from_hours(hours)).to_string();
    let key = &["1 to 255 visible ASCII characters"];
    let delay = &["30s, 5m, 12h or 30d", "at most 366d"];
    let mut cases = vec![
        Case::new(PROBE, 422, "bad_run_at", &["more than a day ago"]).with("warren-run-at", &ago(25)),
        Case::new(PROBE, 422, "bad_run_at", &["more than a day ago"]).with("warren-run-at", "1999-12-31T23:59:59Z"),
        Case::new(PROBE, 422, "bad_run_at", &["366 days ahead"]).with("warren-run-at", "2326-01-01T00:00:00Z"),
        Case::new(PROBE, 422, "bad_run_at", &["RFC 3339"]).with("warren-run-at", "1766592000"),
        Case::new(PROBE, 422, "bad_run_at", &["RFC 3339"]).with("warren-run-at", "2026-13-01T00:00:00Z"),
    ];
    for value in ["", "two words", "\u{e4}", "tab\tbed", &"k".repeat(256), &"k".repeat(10_000)] {
        cases.push(Case::new(PROBE, 422, "bad_idempotency_key", key).with("idempotency-key", value));
    }
    for value in ["-5s", "NaN", "inf", "109575d", "300y", "1h30", "", "soon", "5", "1e9s", "99999999999999999999d"] {
        cases.push(Case::new(PROBE, 422, "bad_delay", delay).with("warren-delay", value));
    }
    for value in ["2030-01-01T00:00:00", "2030-01-01 00:00:00", "2030-01-01T00:00", "2030-01-01"] {
        let words = &["Z or an offset", "2026-12-24T18:00:00+01:00"];
        cases.push(Case::new(PROBE, 422, "zone_required", words).with("warren-run-at", value));
    }
    cases
}

fn webhooks() -> Vec<Case> {
    let hook = |url: &str, more: Value| {
        let mut body = json!({ "url": url, "event_type": "x", "event_id": "1", "body": CANARY });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Case::new(HOOK, 422, "invalid_body", &[]).body(body.to_string())
    };
    let mut cases = Vec::new();
    for url in [
        "http://127.0.0.1",
        "https://127.0.0.1/",
        "http://[::ffff:10.0.0.1]",
        "https://[::ffff:10.0.0.1]:443/x",
        "https://[::1]/",
        "http://0x7f.1",
        "https://0x7f.1/",
        "https://2130706433/",
        "https://0177.0.0.1/",
        "https://127.1/",
        "http://169.254.169.254",
        "https://169.254.169.254/latest/meta-data",
        "https://[fd00:ec2::254]/",
        "https://0.0.0.0/",
        "http://localhost.",
        "https://localhost./",
        "https://LOCALHOST/",
        "https://shop.localhost:443/",
        "https://\u{ff11}\u{ff12}\u{ff17}.0.0.1/",
        "https://127\u{3002}0\u{3002}0\u{3002}1/",
    ] {
        cases.push(hook(url, json!({})).listing("/url", "private_address"));
    }
    for url in [
        "https://user:hunter2@example.com/",
        "https://hunter2@example.com/",
        "https://example.com@127.0.0.1:hunter2/",
        "ftp://example.com/",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "//example.com/",
        "https://",
        "",
        "https://exa mple.com/",
        "https://999.999.999.999/",
    ] {
        cases.push(hook(url, json!({})).listing("/url", "bad_url"));
    }
    cases.push(hook("http://example.com/", json!({})).listing("/url", "insecure_url"));
    cases.push(hook("https://example.com:22/", json!({})).listing("/url", "bad_port"));
    let header = |name: &str, value: &str| {
        let mut headers = serde_json::Map::new();
        headers.insert(name.to_owned(), value.into());
        hook("https://example.com/", json!({ "headers": headers }))
    };
    for value in ["canary-7f3c\r\nx-evil: 1", "a\rb", "a\nb", "a\0b", "\u{e4}"] {
        cases.push(header("x", value).listing("/headers/x", "bad_header_value"));
    }
    cases.push(header("x\r\ny", "1").listing("/headers/x\r\ny", "bad_header_name"));
    cases.push(header("Host", "evil").listing("/headers/Host", "reserved_header"));
    // Those of a message and those of this installation come together.
    cases.push(hook("https://127.0.0.1/", json!({ "event_id": "a.b" })).listing("/event_id", "bad_value"));
    cases.push(hook("https://127.0.0.1/", json!({ "event_id": "a.b" })).listing("/url", "private_address"));
    cases
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_said_in_words_that_help_and_in_no_more() {
    let (installation, _up, http) = open();
    for case in [kinds(), bodies(), headers(), webhooks()].into_iter().flatten() {
        let mut request = http.post(&case.path).header("x-note", CANARY).header("cookie", CANARY);
        for (name, value) in &case.headers {
            request = request.header(*name, value.as_bytes());
        }
        let response = request.body(case.body.clone()).send().await.unwrap();
        let shown: String = String::from_utf8_lossy(&case.body).chars().take(200).collect();
        let shown = format!("{} {:?} {shown}", case.path, case.headers);
        assert_eq!(response.headers()["content-type"], "application/problem+json", "{shown}");
        let (status, problem) = parts(response).await;
        assert_eq!((status, problem["code"].as_str()), (case.status, Some(case.code)), "{shown}: {problem}");
        let text = problem.to_string();
        for words in &case.words {
            assert!(text.contains(words), "{words:?} is not said to {shown}: {problem}");
        }
        if let Some((pointer, code)) = case.listed {
            let listed = problem["errors"].as_array().unwrap().iter();
            let found = listed.filter(|error| error["pointer"] == pointer && error["code"] == code).count();
            assert_eq!(found, 1, "{pointer} {code} of {shown}: {problem}");
        }
        assert!(!tells_too_much(&text, &installation), "{shown}: {text}");
        assert!(text.len() < 4096, "{} bytes are said to {shown}", text.len());
    }
    assert_eq!(jobs(&installation), Vec::<Value>::new(), "nothing was taken");
    assert!(!installation.logs().contains(CANARY), "nothing of it is logged");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_item_of_many_is_told_what_it_would_be_told_alone() {
    let (installation, _up, http) = open();
    let probe = |more: &str| format!("{{\"kind\": \"warren.probe\", {more}}}");
    let deep = format!("\"body\": {{\"work_ms\": {}1{}}}", "[".repeat(10_000), "]".repeat(10_000));
    let private = r#"{"kind": "webhook.deliver", "body": {"url": "https://127.1/", "event_type": "x", "event_id": "1", "body": 1}}"#;
    let cases = [
        (probe(r#""key": """#), 422, "bad_idempotency_key", "1 to 255"),
        (probe(r#""key": "a\r\nb""#), 422, "bad_idempotency_key", "1 to 255"),
        (probe(r#""key": "ä""#), 422, "bad_idempotency_key", "1 to 255"),
        (probe(r#""delay": "-5s""#), 422, "bad_delay", "at most 366d"),
        (probe(r#""delay": "NaN""#), 422, "bad_delay", "30s"),
        (probe(r#""delay": "109575d""#), 422, "bad_delay", "at most 366d"),
        (probe(r#""delay": "1h30""#), 422, "bad_delay", "30s"),
        (probe(r#""run_at": "2030-01-01T00:00:00""#), 422, "zone_required", "offset"),
        (probe(r#""run_at": "2020-01-01T00:00:00Z""#), 422, "bad_run_at", "a day ago"),
        (probe(r#""run_at": "2030-01-01T00:00:00Z", "delay": "1s""#), 422, "bad_delay", "not both"),
        (probe(r#""priority": 999"#), 422, "unknown_field", "priority"),
        (probe(r#""dealy": "1s""#), 422, "unknown_field", "did you mean delay?"),
        (probe(&format!("\"{}\": 1", "x".repeat(5000))), 422, "unknown_field", "no field"),
        (probe(r#""key": "a", "key": "a""#), 400, "duplicate_key", "key"),
        (probe(r#""key": 7"#), 422, "bad_item", "string"),
        (r#"{"body": {}}"#.to_owned(), 422, "bad_item", "kind"),
        (r#"{"kind": "a..b"}"#.to_owned(), 422, "bad_kind_name", "single dots"),
        (r#"{"kind": "warren.prbe"}"#.to_owned(), 404, "unknown_kind", "did you mean warren.probe?"),
        (r#"{"kind": "warren.probe" "body": 1}"#.to_owned(), 400, "invalid_json", "column"),
        ("null".to_owned(), 422, "bad_item", "kind"),
        (probe(r#""body": {"work_ms": 1, "work_ms": 1}"#), 400, "duplicate_key", "twice"),
        (probe(r#""body": {"work_ms": 1e999}"#), 422, "invalid_body", "finite"),
        (probe(r#""body": {"fate": "\ud800"}"#), 400, "bad_encoding", "surrogate"),
        (probe(r#""body": {"wrok_ms": 1}"#), 422, "invalid_body", "did you mean work_ms?"),
        (probe(r#""body": [1]"#), 422, "not_a_map", "map"),
        (probe(&deep), 400, "too_deep", "64"),
        (private.to_owned(), 422, "invalid_body", "private address"),
    ];
    let texts: Vec<_> = cases.iter().map(|(text, ..)| text.as_str()).collect();
    let array = http.post("/v1/jobs").body(format!("[{}]", texts.join(",")));
    let (status, array) = parts(array.send().await.unwrap()).await;
    assert_eq!((status, array["accepted"].as_u64()), (200, Some(0)), "{array}");
    let lines = http.post("/v1/jobs").header("content-type", "application/x-ndjson").body(texts.join("\n"));
    let lines = lines.send().await.unwrap().text().await.unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for results in [array["results"].as_array().unwrap(), &lines] {
        assert_eq!(results.len(), cases.len());
        for (result, (text, status, code, words)) in results.iter().zip(&cases) {
            let shown: String = text.chars().take(200).collect();
            assert_eq!(
                (result["status"].as_u64(), result["code"].as_str()),
                (Some(*status), Some(*code)),
                "{shown}: {result}"
            );
            let said = result.to_string();
            assert!(said.contains(words) && said.len() < 4096, "{words:?} is not said to {shown}: {result}");
            assert!(!tells_too_much(&said, &installation), "{shown}: {said}");
        }
    }
    assert_eq!(jobs(&installation), Vec::<Value>::new(), "nothing was taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_more_jobs_than_one_request_may_hold_the_first_are_answered_and_the_rest_is_not_taken() {
    let (installation, _up, http) = open();
    let bad = "{\"kind\":\"x\"}\n".repeat(100_000);
    let lines = format!("{bad}{}", "{\"kind\":\"warren.probe\"}\n".repeat(2));
    let request = http.post("/v1/jobs").header("content-type", "application/x-ndjson").body(lines);
    let text = request.send().await.unwrap().text().await.unwrap();
    assert_eq!(text.lines().count(), 100_001);
    assert_eq!(text.lines().filter(|line| line.contains("\"unknown_kind\"")).count(), 100_000);
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!((last["status"].as_u64(), last["code"].as_str()), (Some(422), Some("batch_too_large")));
    assert!(last["detail"].as_str().unwrap().contains("100000"), "{last}");
    assert_eq!(last["index"], 100_000);
    assert_eq!(jobs(&installation), Vec::<Value>::new(), "nothing was taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_of_the_last_day_is_now_and_says_so() {
    let (_installation, _up, http) = open();
    let ago = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(23);
    let request = http.post(PROBE).header("warren-run-at", ago.to_string()).body("{}");
    let (status, answer) = parts(request.send().await.unwrap()).await;
    assert_eq!((status, answer["state"].as_str(), answer["late"].as_bool()), (202, Some("queued"), Some(true)));
    http.job_in(answer["id"].as_str().unwrap(), "succeeded").await;
}
