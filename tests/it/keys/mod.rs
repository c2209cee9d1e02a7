//! Who may do what: every answer to a key that is not good enough, and what a good one may do, over real sockets.

mod commands;
mod events;
mod local;
mod tracking;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::Response;
use serde_json::{Value, json};

use crate::{
    gateway::jobs,
    harness::{
        counted::counted,
        http::{Http, parts},
        process::{Installation, Up},
        proxy::Proxy,
        wait::{until, until_equal},
    },
};

const PROBE: &str = "/v1/jobs/warren.probe";

/// A new key of the configuration, and the section that lets it in.
pub(crate) fn made(installation: &Installation, name: &str, arguments: &[&str]) -> (String, String) {
    let said = installation.run(&[&["key", "create", name, "--toml", "-o", "json"], arguments].concat());
    assert_eq!(said.code, 0, "{said:?}");
    let text = |part: &str| said.json()[part].as_str().unwrap().to_owned();
    (text("key"), text("toml"))
}

/// A new key of the database.
pub(crate) fn created(installation: &Installation, name: &str, arguments: &[&str]) -> String {
    let said = installation.run(&[&["key", "create", name, "-o", "json"], arguments].concat());
    assert_eq!(said.code, 0, "{said:?}");
    said.json()["key"].as_str().unwrap().to_owned()
}

/// A running installation with keys of these names and rights in its configuration.
fn with_keys(keys: &[(&str, &[&str])], settings: &str) -> (Installation, Up, BTreeMap<String, String>) {
    let installation = Installation::embedded("");
    let (mut texts, mut sections) = (BTreeMap::new(), settings.to_owned());
    for (name, arguments) in keys {
        let (text, section) = made(&installation, name, arguments);
        texts.insert((*name).to_owned(), text);
        sections.push_str(&section);
    }
    installation.configure(&sections);
    let up = installation.up(&[]);
    (installation, up, texts)
}

/// The same key with its first character of secret changed, and a checksum that fits: made as anyone could.
pub(crate) fn forged(key: &str) -> String {
    const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut bytes = key.as_bytes()[..key.len() - 6].to_vec();
    let secret = bytes.len() - 32;
    bytes[secret] = if bytes[secret] == b'x' { b'y' } else { b'x' };
    let mut rest = crc32fast::hash(&bytes);
    let mut sum = [b'0'; 6];
    for digit in sum.iter_mut().rev() {
        *digit = ALPHABET[(rest % 62) as usize];
        rest /= 62;
    }
    bytes.extend(sum);
    String::from_utf8(bytes).unwrap()
}

async fn probe(http: &Http) -> Response {
    http.post(PROBE).json(&json!({})).send().await.unwrap()
}

/// The status and the code of an answer.
async fn code(response: Response) -> (u16, String) {
    let (status, answer) = parts(response).await;
    (status, answer["code"].as_str().unwrap_or_default().to_owned())
}

/// All of a problem but what is another in every answer.
async fn essence(response: Response) -> (u16, Value) {
    let (status, mut answer) = parts(response).await;
    answer.as_object_mut().unwrap().remove("request_id").unwrap();
    (status, answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_has_its_own_answer_and_nothing_is_taken() {
    let past = made(&Installation::embedded(""), "past", &["--expires", "1s"]);
    let expired = past.1.lines().map(|line| match line.split_once(" = ") {
        Some(("expires", _)) => "expires = \"2020-01-01T00:00:00Z\"\n".to_owned(),
        _ => format!("{line}\n"),
    });
    let (installation, up, keys) = with_keys(
        &[
            ("shop", &["--kind", "webhook.deliver"]),
            ("reader", &["--scope", "jobs:read"]),
            ("canceller", &["--scope", "jobs:cancel"]),
            ("far", &["--network", "192.0.2.0/24"]),
        ],
        &expired.collect::<String>(),
    );
    let revoked = created(&installation, "revoked", &[]);
    let http = Http::to(up.gateway());
    until_equal("the stored key is known", 202, async || {
        probe(&Http::with_key(up.gateway(), &revoked)).await.status().as_u16()
    })
    .await;
    assert_eq!(installation.run(&["key", "revoke", "revoked"]).code, 0);
    until_equal("it is revoked", 401, async || probe(&Http::with_key(up.gateway(), &revoked)).await.status().as_u16())
        .await;
    until_equal("what it sent is done", 0, async || {
        jobs(&installation).iter().filter(|job| job["state"] != "succeeded").count()
    })
    .await;
    let before = jobs(&installation).len();
    let unknown = forged(&keys["shop"].replacen(&keys["shop"][9..21], "zzzzzzzzzzzz", 1));
    let (shop, reader) = (&keys["shop"], &keys["reader"]);
    let mistyped = format!("{}{}", &shop[..shop.len() - 1], if shop.ends_with('0') { '1' } else { '0' });
    let basic = |user: &str| format!("Basic {}", STANDARD.encode(format!("{user}:")));
    let bearer = |key: &str| format!("Bearer {key}");
    let mut invalid = Vec::new();
    for (authorization, status, expected, says) in [
        (None, 401, "missing_key", "Authorization: Bearer"),
        (Some("Digest username=x".to_owned()), 401, "missing_key", "Authorization: Bearer"),
        (Some("Bearer".to_owned()), 401, "missing_key", "Authorization: Bearer"),
        (Some(bearer("wrn_live")), 401, "malformed_key", "wrn_ENV_ID_SECRET"),
        (Some(bearer("secret")), 401, "malformed_key", "checksum"),
        (Some(bearer(&mistyped)), 401, "malformed_key", "mistyped"),
        (Some(bearer(&shop[..40])), 401, "malformed_key", "mistyped"),
        (Some(basic("")), 401, "malformed_key", "checksum"),
        (Some("Basic %%%".to_owned()), 401, "malformed_key", "checksum"),
        (Some(bearer(&unknown)), 401, "invalid_key", "not good"),
        (Some(bearer(&forged(shop))), 401, "invalid_key", "not good"),
        (Some(basic(&forged(shop))), 401, "invalid_key", "not good"),
        (Some(bearer(&past.0)), 401, "invalid_key", "not good"),
        (Some(bearer(&revoked)), 401, "invalid_key", "not good"),
        (Some(bearer(reader)), 403, "missing_scope", "jobs:write"),
        (Some(bearer(&keys["far"])), 403, "address_not_allowed", "127.0.0.1"),
        (Some(bearer(shop)), 403, "kind_not_allowed", "webhook.deliver"),
    ] {
        let mut request = http.post(PROBE).json(&json!({}));
        if let Some(authorization) = &authorization {
            request = request.header("authorization", authorization);
        }
        let response = request.send().await.unwrap();
        let challenge = response.headers().get("www-authenticate").map(|it| it.to_str().unwrap().to_owned());
        assert_eq!(challenge.is_some_and(|it| it.starts_with("Bearer ")), status == 401, "{authorization:?}");
        let (got, problem) = essence(response).await;
        assert_eq!((got, problem["code"].as_str()), (status, Some(expected)), "{authorization:?} {problem}");
        assert!(problem["detail"].as_str().unwrap().contains(says), "{says}: {problem}");
        for key in keys.values().chain([&unknown, &revoked, &past.0]) {
            assert!(!problem.to_string().contains(&key[22..]), "{problem}");
        }
        if expected == "invalid_key" {
            invalid.push(problem);
        }
    }
    assert!(invalid.windows(2).all(|two| two[0] == two[1]), "unknown, wrong, expired and revoked are one: {invalid:?}");
    // Twice the same header is none.
    let twice = http.post(PROBE).header("authorization", bearer(shop)).header("authorization", bearer(shop));
    assert_eq!(code(twice.send().await.unwrap()).await, (401, "malformed_key".into()));
    // Each verb has a scope of its own.
    let id = "0190aaaa-bbbb-8ccc-8ddd-000000000001";
    let (reader, canceller) = (Http::with_key(up.gateway(), reader), Http::with_key(up.gateway(), &keys["canceller"]));
    let path = format!("/v1/jobs/{id}");
    for (http, status, refused) in [(&reader, (404, 403), "jobs:cancel"), (&canceller, (403, 404), "jobs:read")] {
        let (got, delete) = (http.get(&path).send().await.unwrap(), http.delete(&path).send().await.unwrap());
        let ((got, one), (deleted, other)) = (parts(got).await, parts(delete).await);
        assert_eq!((got, deleted), status);
        assert!(one.to_string().contains(refused) || other.to_string().contains(refused), "{one} {other}");
    }
    let many = reader.post("/v1/jobs").json(&json!([{ "kind": "warren.probe" }])).send().await.unwrap();
    assert_eq!(code(many).await, (403, "missing_scope".into()));
    assert_eq!(jobs(&installation).len(), before, "nothing was taken");
    // What is refused is counted, by its reason.
    assert!(counted(&up, ("warren_auth_refused_total", &[("reason", "missing_scope")])).await > 0);
    for key in keys.values().chain([&unknown, &revoked, &past.0]) {
        assert!(!installation.logs().contains(&key[22..]), "no key is in a log");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_in_a_url_is_told_of_before_anything_else() {
    let (installation, up, keys) = with_keys(&[("shop", &[])], "");
    let key = &keys["shop"];
    let http = Http::with_key(up.gateway(), key);
    for path in [
        format!("{PROBE}?key={key}"),
        format!("{PROBE}?wait=1&api_key={}", key.replace('_', "%5F")),
        format!("/nowhere?{key}"),
        format!("/v1/jobs?token={}", &key[..30]),
    ] {
        let (status, problem) = parts(http.post(&path).json(&json!({})).send().await.unwrap()).await;
        assert_eq!((status, problem["code"].as_str()), (400, Some("key_in_url")), "{path}");
        assert!(problem["detail"].as_str().unwrap().contains("warren key rotate"), "{problem}");
        assert!(!problem.to_string().contains(&key[22..]), "{problem}");
    }
    // Whatever the method, also one that the page does not have, and wherever it is asked.
    let admin = Http::with_key(&up.admin, key);
    let page = format!("/openapi.json?key={key}");
    for request in [http.get(&page), http.delete(&page), admin.get(&format!("/livez?key={key}"))] {
        let (status, problem) = parts(request.send().await.unwrap()).await;
        assert_eq!((status, problem["code"].as_str()), (400, Some("key_in_url")), "{problem}");
    }
    assert_eq!(jobs(&installation), Vec::<Value>::new(), "nothing was taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_taken_as_a_bearer_token_and_as_the_user_of_basic() {
    let (_installation, up, keys) = with_keys(&[("shop", &[])], "");
    let http = Http::to(up.gateway());
    for authorization in [
        format!("Bearer {}", keys["shop"]),
        format!("bearer {}", keys["shop"]),
        format!("Basic {}", STANDARD.encode(format!("{}:", keys["shop"]))),
        format!("basic {}", STANDARD.encode(format!("{}:x:y", keys["shop"]))),
    ] {
        let request = http.post(PROBE).header("authorization", &authorization).json(&json!({}));
        let (status, answer) = parts(request.send().await.unwrap()).await;
        assert_eq!(status, 202, "{answer}");
        let reader = Http::with_key(up.gateway(), &keys["shop"]);
        let job = reader.job_in(answer["id"].as_str().unwrap(), "succeeded").await;
        assert_eq!(job["source"], "shop", "it is seen who has sent it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_send_and_not_see_is_not_shown_a_result_either() {
    let (_installation, up, keys) = with_keys(&[("writer", &["--scope", "jobs:write"]), ("both", &[])], "");
    let sent = async |key: &str| {
        let http = Http::with_key(up.gateway(), &keys[key]);
        let body = json!({ "payload_bytes": 3 });
        let request = http.post(PROBE).header("idempotency-key", "one").header("prefer", "wait=20").json(&body);
        parts(request.send().await.unwrap()).await
    };
    let (status, seen) = sent("both").await;
    assert_eq!((status, seen["output"]["payload"].as_str()), (200, Some("AAAA")), "{seen}");
    let (status, unseen) = sent("writer").await;
    assert_eq!((status, unseen["id"].clone(), unseen["output"].clone()), (202, seen["id"].clone(), Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_tenants_job_is_no_job() {
    let all = ["jobs:write", "jobs:read", "jobs:cancel"].map(|scope| ["--scope", scope]).concat();
    let of = |tenant| [&all[..], &["--tenant", tenant]].concat();
    let (_installation, up, keys) = with_keys(&[("acme", &of("acme")), ("globex", &of("globex"))], "");
    let (acme, globex) = (Http::with_key(up.gateway(), &keys["acme"]), Http::with_key(up.gateway(), &keys["globex"]));
    let waiting = async |http: &Http| {
        let request = http.post(PROBE).header("warren-delay", "1h").json(&json!({}));
        parts(request.send().await.unwrap()).await.1["id"].as_str().unwrap().to_owned()
    };
    let theirs = [acme.submit("warren.probe", &json!({ "work_ms": 300 })).await, waiting(&acme).await, {
        let id = acme.submit("warren.probe", &json!({})).await;
        acme.job_in(&id, "succeeded").await;
        id
    }];
    // One that was never made, one that is no id, and one that an operator's database has never seen.
    let nobodys = ["0190aaaa-bbbb-8ccc-8ddd-000000000001", "x", "00000000-0000-0000-0000-000000000000"];
    let mut answers = Vec::new();
    for id in theirs.iter().map(String::as_str).chain(nobodys) {
        let path = format!("/v1/jobs/{id}");
        for (request, patience) in
            [(globex.get(&path), 5), (globex.delete(&path), 5), (globex.get(&format!("{path}?wait=20")), 5)]
        {
            let began = Instant::now();
            answers.push(essence(request.send().await.unwrap()).await);
            assert!(began.elapsed() < Duration::from_secs(patience), "nobody waits for what is not his");
        }
    }
    assert_eq!(answers[0].0, 404);
    assert!(answers.windows(2).all(|two| two[0] == two[1]), "{answers:?}");
    // Nothing came of the attempts.
    acme.job_in(&theirs[0], "succeeded").await;
    assert_eq!(acme.job(&theirs[1]).await["state"], "scheduled");
    // The same idempotency key is another job for another tenant, and their bodies never meet.
    let keyed = async |http: &Http, body: Value| {
        parts(http.post(PROBE).header("idempotency-key", "order-1").json(&body).send().await.unwrap()).await
    };
    let (one, other) = (keyed(&acme, json!({ "work_ms": 1 })).await, keyed(&globex, json!({ "work_ms": 2 })).await);
    assert_eq!((one.0, other.0), (202, 202));
    assert_ne!(one.1["id"], other.1["id"]);
    assert_eq!(parts(acme.delete(&format!("/v1/jobs/{}", theirs[1])).send().await.unwrap()).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_item_of_a_batch_needs_what_it_would_need_alone() {
    let (installation, up, keys) = with_keys(&[("shop", &["--kind", "warren.probe", "--rate", "3/h"])], "");
    let http = Http::with_key(up.gateway(), &keys["shop"]);
    let item = json!({ "kind": "warren.probe" });
    let foreign = json!({ "kind": "webhook.deliver" });
    let items = json!([item, foreign, item, item, item, item]);
    let response = http.post("/v1/jobs").json(&items).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let answer: Value = response.json().await.unwrap();
    let results = answer["results"].as_array().unwrap().iter();
    let codes: Vec<_> = results.map(|it| (it["status"].as_u64().unwrap(), it["code"].as_str().unwrap_or(""))).collect();
    let (taken, limited) = ((202, ""), (429, "rate_limited"));
    // What is not allowed counts too: else it could be asked for without end.
    assert_eq!(codes, [taken, (403, "kind_not_allowed"), taken, limited, limited, limited]);
    until_equal("what was taken is done", 2, async || jobs(&installation).len()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_has_used_up_its_rate_is_told_when_to_come_again() {
    let (installation, up, keys) =
        with_keys(&[("shop", &["--rate", "1/h", "--burst", "3", "--quota", "100/d"]), ("free", &[])], "");
    let shop = Http::with_key(up.gateway(), &keys["shop"]);
    // What is refused for other reasons costs nothing.
    for _ in 0..5 {
        let wrong = Http::with_key(up.gateway(), &forged(&keys["shop"]));
        assert_eq!(code(probe(&wrong).await).await.0, 401);
        assert_eq!(shop.delete("/v1/jobs/x").send().await.unwrap().status(), 403);
    }
    let header = |response: &Response, name: &str| {
        response.headers().get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
    };
    for (left, of_quota, refilled) in [(2, 99, 3600), (1, 98, 7200), (0, 97, 10_800)] {
        let response = probe(&shop).await;
        assert_eq!(response.status(), 202);
        assert_eq!(header(&response, "ratelimit-policy"), "\"default\";q=3;w=10800, \"quota\";q=100;w=86400");
        let quota = (100 - of_quota) * 864;
        let standing = format!("\"default\";r={left};t={refilled}, \"quota\";r={of_quota};t={quota}");
        assert_eq!(header(&response, "ratelimit"), standing);
    }
    for request in [shop.post(PROBE).json(&json!({})), shop.get("/v1/jobs/x")] {
        let response = request.send().await.unwrap();
        let pause: u64 = header(&response, "retry-after").parse().unwrap();
        assert!((3500..=3600).contains(&pause), "{pause}");
        assert!(header(&response, "ratelimit").starts_with("\"default\";r=0;t=10800"), "{response:?}");
        assert_eq!(code(response).await, (429, "rate_limited".into()));
    }
    let free = probe(&Http::with_key(up.gateway(), &keys["free"])).await;
    assert_eq!((free.status().as_u16(), header(&free, "ratelimit")), (202, String::new()), "others go on");
    until_equal("what was taken is done", 4, async || jobs(&installation).len()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_works_from_its_networks_and_only_a_trusted_proxy_speaks_for_others() {
    let key: (&str, &[&str]) = ("shop", &["--network", "203.0.113.0/24", "--network", "2001:db8::/32"]);
    let status = async |up: &Up, key: &str, forwarded: &[&str]| {
        let mut request = Http::with_key(up.gateway(), key).post(PROBE).json(&json!({}));
        for value in forwarded {
            request = request.header("x-forwarded-for", *value);
        }
        code(request.send().await.unwrap()).await
    };
    let refused = (403, "address_not_allowed".to_owned());
    let (_first, up, keys) = with_keys(&[key], "");
    assert_eq!(status(&up, &keys["shop"], &["203.0.113.7"]).await, refused, "anyone can say that");
    let (_second, up, keys) = with_keys(&[key], "[gateway]\ntrusted_proxies = ['127.0.0.0/8', '10.0.0.0/8']\n");
    for (forwarded, is_allowed) in [
        (&["203.0.113.7"][..], true),
        (&["198.51.100.1, 203.0.113.7"], true),
        (&["203.0.113.7, 198.51.100.1"], false),
        (&["203.0.113.7, 10.1.2.3"], true),
        (&["203.0.113.7", "10.1.2.3"], true),
        (&["198.51.100.1", "203.0.113.7"], true),
        (&["[2001:db8::1]:4711"], true),
        (&["2001:db8::1"], true),
        (&["::ffff:203.0.113.7"], true),
        (&["203.0.113.7, nonsense"], false),
        (&[""], false),
        (&[], false),
    ] {
        let (status, _) = status(&up, &keys["shop"], forwarded).await;
        assert_eq!(status, if is_allowed { 202 } else { 403 }, "{forwarded:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_loopback_a_request_needs_a_key_as_soon_as_there_is_one_and_ever_after() {
    let installation = Installation::embedded("");
    let up = installation.up(&[]);
    let http = Http::to(up.gateway());
    // While there is none, whatever an SDK sends as its key does no harm.
    for request in [http.post(PROBE), http.post(PROBE).header("authorization", "Basic d3JpdGVfa2V5Og==")] {
        assert_eq!(request.json(&json!({})).send().await.unwrap().status(), 202);
    }
    let key = created(&installation, "shop", &["--expires", "1h"]);
    until_equal("a key is needed", 401, async || probe(&http).await.status().as_u16()).await;
    let shop = Http::with_key(up.gateway(), &key);
    shop.submit("warren.probe", &json!({})).await;
    let listed = async || installation.run(&["key", "list", "-o", "json"]).json();
    let used =
        until("its use is noted", async || Some(listed().await).filter(|keys| keys[0]["last_used_at"].is_string()));
    let keys = used.await;
    assert_eq!((keys[0]["name"].as_str(), keys[0]["state"].as_str()), (Some("shop"), Some("live")), "{keys}");
    assert!(!keys.to_string().contains(&key[22..]), "a list shows no key");
    assert_eq!(installation.run(&["key", "revoke", "shop"]).code, 0);
    until_equal("it is revoked", 401, async || probe(&shop).await.status().as_u16()).await;
    assert_eq!(code(probe(&http).await).await, (401, "missing_key".into()), "the last key opens no door by its end");
    up.kill();
    let up = installation.up(&[]);
    assert_eq!(code(probe(&Http::to(up.gateway())).await).await, (401, "missing_key".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn where_others_can_reach_it_everything_needs_a_key_even_while_there_is_none() {
    let installation = Installation::embedded("");
    let up = installation.up_for_others(&[]);
    let (http, admin) = (Http::to(up.gateway()), Http::to(&up.admin));
    let id = "0190aaaa-bbbb-8ccc-8ddd-000000000001";
    for request in [
        http.post(PROBE).json(&json!({})),
        http.post("/v1/jobs").json(&json!([])),
        http.get(&format!("/v1/jobs/{id}")),
        http.delete(&format!("/v1/jobs/{id}")),
        admin.get("/metrics"),
    ] {
        assert_eq!(code(request.send().await.unwrap()).await, (401, "missing_key".into()));
    }
    assert!(installation.logs().contains("warren key create"), "the operator is told why");
    installation.configure("[gateway]\nlisten = '0.0.0.0:1'\n");
    let doctor = installation.run(&["doctor"]);
    assert!(doctor.code == 1 && doctor.stdout.contains("refuses every request"), "{doctor:?}");
    // What supervisors and load balancers ask needs none, and says no more than they need.
    assert_eq!(admin.get("/livez").send().await.unwrap().status(), 200);
    let ready = until("it is ready", async || {
        let (status, ready) = parts(admin.get("/readyz").send().await.unwrap()).await;
        (status == 200).then_some(ready)
    });
    assert_eq!(ready.await, json!({ "ready": true }));
    // Made while it runs.
    let scrape = created(&installation, "prometheus", &["--scope", "metrics:read"]);
    let operator = created(&installation, "ops", &["--scope", "admin"]);
    let shop = created(&installation, "shop", &[]);
    let status = async |url: &str, key: &str, page: &str| {
        Http::with_key(url, key).get(page).send().await.unwrap().status().as_u16()
    };
    until_equal("the keys are known", 202, async || {
        probe(&Http::with_key(up.gateway(), &shop)).await.status().as_u16()
    })
    .await;
    for (key, expected) in [(&scrape, 200), (&operator, 200), (&shop, 403)] {
        assert_eq!(status(&up.admin, key, "/metrics").await, expected);
        let (_, ready) = parts(Http::with_key(&up.admin, key).get("/readyz").send().await.unwrap()).await;
        assert_eq!(ready["parts"]["database"].is_object(), expected == 200, "{ready}");
    }
    assert_eq!(code(probe(&Http::with_key(up.gateway(), &operator)).await).await, (403, "missing_scope".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_key_is_good_with_both_secrets_until_the_overlap_ends() {
    let installation = Installation::embedded("");
    let up = installation.up(&[]);
    let first = created(&installation, "shop", &[]);
    let rotate = |overlap: &str| {
        let said = installation.run(&["key", "rotate", "shop", "--overlap", overlap, "-o", "json"]);
        assert_eq!(said.code, 0, "{said:?}");
        said.json()["key"].as_str().unwrap().to_owned()
    };
    let status = async |key: &str| probe(&Http::with_key(up.gateway(), key)).await.status().as_u16();
    until_equal("keys are needed", 401, async || probe(&Http::to(up.gateway())).await.status().as_u16()).await;
    let second = rotate("1h");
    assert_eq!(first[..21], second[..21], "it is the same key with another secret");
    until_equal("the new secret is good", 202, async || status(&second).await).await;
    assert_eq!(status(&first).await, 202, "and the former still is");
    let third = rotate("6s");
    until_equal("the third is good", 202, async || status(&third).await).await;
    assert_eq!(status(&first).await, 401, "there are never more than two");
    until_equal("the overlap ends by itself", 401, async || status(&second).await).await;
    assert_eq!(status(&third).await, 202);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_counts_at_every_gateway_within_five_seconds() {
    let Some(installation) = Installation::on_servers("").await else { return };
    let gateways = [installation.up(&["gateway"]), installation.up(&["gateway"])];
    let (shop, other) = (created(&installation, "shop", &[]), created(&installation, "other", &[]));
    let status = async |up: &Up, key: &str| probe(&Http::with_key(up.gateway(), key)).await.status().as_u16();
    for up in &gateways {
        until_equal("keys are needed", 401, async || probe(&Http::to(up.gateway())).await.status().as_u16()).await;
        until_equal("the key is known", 202, async || status(up, &shop).await).await;
    }
    let revoked = Instant::now();
    let said = installation.run(&["key", "revoke", "shop", "-o", "json"]);
    assert_eq!((said.code, said.json()["revoked"].as_bool()), (0, Some(true)), "{said:?}");
    for up in &gateways {
        until_equal("it is revoked", 401, async || status(up, &shop).await).await;
        assert!(revoked.elapsed() < Duration::from_secs(5), "{:?}", revoked.elapsed());
        assert_eq!(status(up, &other).await, 202, "others go on");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_database_is_away_known_keys_work_until_they_expire_and_a_new_gateway_knows_those_of_its_file() {
    let Some(installation) = Installation::on_servers("").await else { return };
    let (rabbit, database) = installation.servers().unwrap();
    let proxy = Proxy::before(database.address()).await;
    let ids = installation.run(&["config", "keys"]).stdout;
    let (configured, section) = made(&installation, "configured", &[]);
    let servers = format!(
        "{ids}\n[broker]\nurl = \"{}\"\nprefix = \"{}\"\n[database]\nurl = \"{}\"\n",
        rabbit.url,
        rabbit.prefix,
        database.through(proxy.port)
    );
    std::fs::write(installation.file(), format!("{servers}{section}")).unwrap();
    let up = installation.up(&["gateway"]);
    let (lasting, brief) =
        (created(&installation, "lasting", &[]), created(&installation, "brief", &["--expires", "8s"]));
    let answer = async |up: &Up, key: &str| code(probe(&Http::with_key(up.gateway(), key)).await).await;
    let (taken, invalid) = ((202, String::new()), (401, "invalid_key".to_owned()));
    for key in [&lasting, &brief] {
        until_equal("the key is known", taken.clone(), async || answer(&up, key).await).await;
    }
    proxy.refuse(true);
    until("the gateway says what it no longer hears of", async || {
        let (_, ready) = parts(Http::to(&up.admin).get("/readyz").send().await.unwrap()).await;
        ready["parts"]["keys"]["detail"].as_str().filter(|detail| detail.contains("revoked since")).map(drop)
    })
    .await;
    assert_eq!(answer(&up, &lasting).await, taken, "the gateway goes on with the keys that it knew");
    until_equal("a key expires all the same", invalid.clone(), async || answer(&up, &brief).await).await;
    assert_eq!(answer(&up, &lasting).await, taken);
    let late = installation.up(&["gateway"]);
    assert_eq!(answer(&late, &configured).await, taken, "what stands in its file it knows from the start");
    assert_eq!(answer(&late, &lasting).await, (503, "keys_unknown".into()));
    assert_eq!(answer(&late, &forged(&configured)).await, invalid);
    assert_eq!(code(probe(&Http::to(late.gateway())).await).await, (401, "missing_key".into()));
    // Without any of its own it does not take it that there are none.
    std::fs::write(installation.file(), &servers).unwrap();
    let blind = installation.up(&["gateway"]);
    let response = probe(&Http::to(blind.gateway())).await;
    assert!(response.headers().contains_key("retry-after"));
    assert_eq!(code(response).await, (503, "keys_unknown".into()));
    proxy.refuse(false);
    for up in [&late, &blind] {
        until_equal("the keys are known", taken.clone(), async || answer(up, &lasting).await).await;
        assert_eq!(code(probe(&Http::to(up.gateway())).await).await, (401, "missing_key".into()));
    }
}
