//! What the gateway says of itself, and that it is so.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde_json::{Value, json};

use crate::harness::{
    http::{Http, parts},
    process::{Installation, Up, built_in_kinds},
    programs::python,
};

fn open() -> (Installation, Up, Http) {
    let installation = Installation::embedded("");
    let up = installation.up(&[]);
    let http = Http::to(up.gateway());
    (installation, up, http)
}

async fn get(http: &Http, path: &str) -> (u16, Value) {
    parts(http.get(path).send().await.unwrap()).await
}

/// Pointer and code of each problem, in order of their places.
async fn problems(http: &Http, kind: &str, content_type: &str, body: Vec<u8>) -> (Vec<(String, String)>, String) {
    problems_of(http, kind, content_type, body, (422, "invalid_body")).await
}

/// The same of one that is answered with another status and code.
async fn problems_of(
    http: &Http,
    kind: &str,
    content_type: &str,
    body: Vec<u8>,
    (status, code): (u16, &str),
) -> (Vec<(String, String)>, String) {
    let expected = (status, Some(code));
    let request = http.post(&format!("/v1/jobs/{kind}")).header("content-type", content_type).body(body);
    let (status, problem) = parts(request.send().await.unwrap()).await;
    assert_eq!((status, problem["code"].as_str()), expected, "{problem}");
    let text = |error: &Value, name: &str| error[name].as_str().unwrap().to_owned();
    let errors = problem["errors"].as_array().unwrap().iter();
    let mut found: Vec<_> = errors.map(|error| (text(error, "pointer"), text(error, "code"))).collect();
    found.sort();
    (found, problem.to_string())
}

fn owned(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(pointer, code)| ((*pointer).to_owned(), (*code).to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_problem_of_a_body_that_does_not_even_fit_is_listed_at_once() {
    let (_installation, _up, http) = open();
    let body =
        json!({ "wrok_ms": 1, "payload_bytes": "many", "fail_attempts": 65_536, "follow_ups": 1.5, "fate": "okay" });
    let expected = owned(&[
        ("/fail_attempts", "out_of_range"),
        ("/fate", "unknown_value"),
        ("/follow_ups", "wrong_type"),
        ("/payload_bytes", "wrong_type"),
        ("/wrok_ms", "unknown_field"),
    ]);
    let (found, said) = problems(&http, "warren.probe", "application/json", body.to_string().into_bytes()).await;
    assert_eq!(found, expected);
    for hint in ["did you mean work_ms?", "did you mean ok?", "a whole number from 0 to 65535"] {
        assert!(said.contains(hint), "{hint}: {said}");
    }
    // {"wrok_ms": 1, "fate": 7} in MessagePack.
    let packed = b"\x82\xa7wrok_ms\x01\xa4fate\x07".to_vec();
    let (found, _) = problems(&http, "warren.probe", "application/msgpack", packed).await;
    assert_eq!(found, owned(&[("/fate", "wrong_type"), ("/wrok_ms", "unknown_field")]));
    // A field that nobody knows hides none of the rules beyond types, and a key that is given twice hides nothing.
    let body = json!({ "url": "ftp://x", "event_type": "", "event_id": "a", "body": 1, "evnt_id": 1 });
    let (found, _) = problems(&http, "webhook.deliver", "application/json", body.to_string().into_bytes()).await;
    assert_eq!(found, owned(&[("/event_type", "bad_value"), ("/evnt_id", "unknown_field"), ("/url", "bad_url")]));
    let twice = br#"{"work_ms": 1, "work_ms": 2, "fate": null}"#.to_vec();
    let expected = (400, "duplicate_key");
    let (found, _) = problems_of(&http, "warren.probe", "application/json", twice, expected).await;
    assert_eq!(found, owned(&[("/fate", "wrong_type"), ("/work_ms", "duplicate_key")]));
    // What only the text shows is told in the reader's own words.
    let long =
        br#"{"url": "https://a.example", "event_type": "a", "event_id": "b", "body": 18446744073709551616}"#.to_vec();
    let (found, _) = problems(&http, "webhook.deliver", "application/json", long).await;
    assert_eq!(found, owned(&[("/body", "bad_value")]));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_value_of_a_body_is_repeated_in_an_answer() {
    const CANARY: &str = "canary-5be1";
    let (installation, up, http) = open();
    let each_field_wrong = json!({
        "url": [CANARY], "event_type": { "a": CANARY }, "event_id": 5, "body_base64": CANARY, "deadline": CANARY, "headers": CANARY,
    });
    let bodies = [
        ("webhook.deliver", each_field_wrong.to_string()),
        ("warren.probe", json!({ "work_ms": CANARY, "fate": CANARY }).to_string()),
        ("warren.probe", format!(r#"{{"work_ms": 1, "work_ms": "{CANARY}"}}"#)),
        ("warren.probe", format!(r#"{{"fate": "{CANARY}, expected {CANARY}"}}"#)),
        ("warren.probe", format!(r#"{{"fate": "{CANARY}" 1"#)),
    ];
    for (kind, body) in bodies {
        let request = http.post(&format!("/v1/jobs/{kind}")).body(body.clone());
        let (status, problem) = parts(request.send().await.unwrap()).await;
        assert!((400..500).contains(&status), "{problem}");
        assert!(!problem.to_string().contains(CANARY), "{body}: {problem}");
        let many = format!(r#"[{{"kind": "{kind}", "body": {body}}}]"#);
        let (_, answer) = parts(http.post("/v1/jobs").body(many).send().await.unwrap()).await;
        assert!(!answer.to_string().contains(CANARY), "{body}: {answer}");
    }
    drop(up);
    assert!(!installation.logs().contains(CANARY));
}

#[tokio::test(flavor = "multi_thread")]
async fn kinds_and_their_schemas_can_be_read_and_are_not_sent_twice() {
    let (_installation, _up, http) = open();
    let (status, answer) = get(&http, "/v1/kinds").await;
    assert_eq!(status, 200);
    let kinds = answer["kinds"].as_array().unwrap();
    let names: Vec<_> = kinds.iter().map(|kind| kind["kind"].as_str().unwrap().to_owned()).collect();
    assert_eq!(names, built_in_kinds().iter().map(ToString::to_string).collect::<Vec<_>>());
    let probe = &kinds[names.iter().position(|name| name == "warren.probe").unwrap()];
    assert_eq!((probe["policy"]["timeout_ms"].as_u64(), probe["policy"]["attempts"].as_u64()), (Some(10_000), Some(3)));
    assert_eq!(probe["links"]["submit"], "/v1/jobs/warren.probe");
    for kind in kinds {
        let place = kind["links"]["schema"].as_str().unwrap();
        let response = http.get(place).send().await.unwrap();
        assert_eq!(response.headers()["content-type"], "application/schema+json");
        let tag = response.headers()["etag"].clone();
        let (status, schema) = parts(response).await;
        assert_eq!((status, schema["$schema"].as_str()), (200, Some("https://json-schema.org/draft/2020-12/schema")));
        assert_eq!(schema["$id"], format!("urn:warren:schema:{}:1", kind["kind"].as_str().unwrap()));
        assert!(jsonschema::meta::is_valid(&schema), "{schema}");
        for had in [tag.to_str().unwrap().to_owned(), format!("\"other\", W/{}", tag.to_str().unwrap()), "*".into()] {
            let response = http.get(place).header("if-none-match", had).send().await.unwrap();
            assert_eq!((response.status().as_u16(), &response.headers()["etag"]), (304, &tag));
            assert_eq!(response.bytes().await.unwrap().len(), 0);
        }
        let response = http.get(place).header("if-none-match", "\"other\"").send().await.unwrap();
        assert_eq!(response.status(), 200);
    }
    for (path, status, code, hint) in [
        ("/v1/schemas/warren.prob/1", 404, "unknown_kind", "did you mean warren.probe?"),
        ("/v1/schemas/Warren/1", 422, "bad_kind_name", "a-z"),
        ("/v1/schemas/warren.probe/2", 404, "unknown_version", "there is 1"),
        ("/v1/schemas/warren.probe/one", 404, "unknown_version", "there is 1"),
        ("/v1/schemas/%ff/1", 400, "bad_path", "UTF-8"),
    ] {
        let (got, problem) = get(&http, path).await;
        assert_eq!((got, problem["code"].as_str()), (status, Some(code)), "{path}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains(hint), "{path}: {problem}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_description_of_the_interface_is_the_one_that_was_agreed() {
    let (_installation, _up, http) = open();
    let (status, document) = get(&http, "/v1/openapi.json").await;
    assert_eq!(status, 200);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/openapi.json");
    if std::env::var("WARREN_GOLDEN").is_ok_and(|value| value == "write") {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, serde_json::to_string_pretty(&document).unwrap() + "\n").unwrap();
    }
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    assert!(
        document == golden,
        "the interface has changed. If that is meant: \
         WARREN_GOLDEN=write cargo test --test it -- the_description_of_the_interface; and read the difference"
    );
}

/// Whether one path may be the other, where `{name}` stands for anything.
fn meet(one: &str, other: &str) -> bool {
    let (one, other): (Vec<_>, Vec<_>) = (one.split('/').collect(), other.split('/').collect());
    let same = |(a, b): (&&str, &&str)| a == b || a.starts_with('{') || b.starts_with('{');
    one.len() == other.len() && one.iter().zip(&other).all(same)
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_in_the_description_is_served_with_just_these_methods() {
    let (_installation, up, http) = open();
    let (_, document) = get(&http, "/v1/openapi.json").await;
    let described: BTreeMap<&str, BTreeSet<String>> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(path, methods)| {
            (path.as_str(), methods.as_object().unwrap().keys().map(|it| it.to_uppercase()).collect())
        })
        .collect();
    for kind in built_in_kinds() {
        assert!(described[format!("/v1/jobs/{kind}").as_str()].contains("POST"));
    }
    for path in described.keys() {
        let mut methods: BTreeSet<_> =
            described.iter().filter(|(other, _)| meet(path, other)).flat_map(|(_, it)| it.clone()).collect();
        if methods.contains("GET") {
            methods.insert("HEAD".into());
        }
        let concrete =
            path.replace("{id}", "x").replace("{kind}", "x").replace("{version}", "1").replace("{file}", "x");
        let response = http.client.patch(format!("{}{concrete}", up.gateway())).send().await.unwrap();
        assert_eq!(response.status(), 405, "{path}");
        let allowed: BTreeSet<_> =
            response.headers()["allow"].to_str().unwrap().split(',').map(|method| method.trim().to_owned()).collect();
        assert_eq!(allowed, methods, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_asks_for_a_key_is_described_so_and_nothing_else_asks() {
    let installation = Installation::embedded("");
    let key = installation.run(&["key", "create", "shop", "--toml", "-o", "json"]).json();
    installation.configure(key["toml"].as_str().unwrap());
    let up = installation.up(&[]);
    let http = Http::to(up.gateway());
    let (_, document) = get(&http, "/v1/openapi.json").await;
    let (mut asking, mut open) = (0, 0);
    for (path, methods) in document["paths"].as_object().unwrap() {
        let concrete = path
            .replace("{id}", "x")
            .replace("{kind}", "x")
            .replace("{version}", "1")
            .replace("{file}", "x")
            .replace("{source}", "x");
        for (method, operation) in methods.as_object().unwrap() {
            let method = method.to_uppercase().parse().unwrap();
            let request = http.client.request(method, format!("{}{concrete}", up.gateway()));
            let (status, answer) = parts(request.json(&json!({ "batch": [] })).send().await.unwrap()).await;
            let asks = (status, answer["code"].as_str()) == (401, Some("missing_key"));
            assert_eq!(asks, operation["security"].is_array(), "{path}: {status} {answer}");
            *(if asks { &mut asking } else { &mut open }) += 1;
            assert!(!asks || operation["responses"]["401"].is_object(), "{path}");
        }
    }
    assert!(asking >= 5 && open >= 5, "{asking} ask, {open} do not");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_for_people_comes_from_here_alone() {
    let (_installation, _up, http) = open();
    let response = http.get("/docs").send().await.unwrap();
    let policy = response.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.starts_with("default-src 'none';") && policy.contains("script-src 'self';"), "{policy}");
    assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");
    let page = response.text().await.unwrap();
    assert!(!page.contains("http:") && !page.contains("https:") && !page.contains("<style"), "{page}");
    assert_eq!(
        page.matches("<script").count(),
        page.matches("<script src=\"docs/").count(),
        "no program stands in the page"
    );
    let mut sizes = BTreeMap::new();
    for (place, media) in [
        ("docs/swagger-ui.css", "text/css"),
        ("docs/swagger-ui-bundle.js", "text/javascript"),
        ("docs/start.js", "text/javascript"),
        ("docs/favicon-32x32.png", "image/png"),
    ] {
        assert!(page.contains(place), "{place}");
        let response = http.get(&format!("/{place}")).send().await.unwrap();
        assert_eq!(response.status(), 200, "{place}");
        let named = response.headers()["content-type"].to_str().unwrap();
        assert!(named.starts_with(media), "{place}: {named}");
        assert_eq!(response.headers()["x-content-type-options"], "nosniff");
        sizes.insert(place, response.bytes().await.unwrap().len());
    }
    assert!(sizes["docs/swagger-ui-bundle.js"] > 1_000_000 && sizes["docs/swagger-ui.css"] > 100_000, "{sizes:?}");
    for path in ["/docs/index.html", "/docs/..%2f..%2fetc%2fpasswd", "/docs/swagger-ui.css%00"] {
        assert_eq!(get(&http, path).await.0, 404, "{path}");
    }
}

/// Schemathesis sends what the description allows and what it does not, and holds every answer against it. Without workers:
/// what it sends is accepted, and never run.
#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_who_knows_only_the_description_finds_it_true() {
    let source = "[source.shop]\nscheme = \"bearer\"\nsecrets = [\"a-token-for-schemathesis-alone-4f1c\"]\n";
    let Some(installation) = Installation::on_servers(source).await else { return };
    let Some(mut python) = python() else { return };
    let up = installation.up(&["gateway"]);
    let settings = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/schemathesis.toml");
    let run = python
        .args(["-m", "schemathesis.cli", "--config-file", settings])
        .args(["run", &format!("{}/v1/openapi.json", up.gateway()), "--no-color", "--continue-on-failure"])
        .args(["--seed", "1", "--generation-database", "none", "--max-examples", "50"])
        .args(["--phases", "examples,coverage,fuzzing", "--request-timeout", "20"])
        .current_dir(installation.folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{said}\n{}", String::from_utf8_lossy(&run.stderr));
    let (_, document) = get(&Http::to(up.gateway()), "/v1/openapi.json").await;
    let operations: usize =
        document["paths"].as_object().unwrap().values().map(|path| path.as_object().unwrap().len()).sum();
    // But for the one by which it has read the description.
    assert!(said.contains(&format!("Tested: {}", operations - 1)), "every operation is tried: {said}");
}
