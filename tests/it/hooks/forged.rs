//! Whoever may send events and jobs can neither pass for a signed webhook nor take its place.

use serde_json::{Value, json};
use warren::{
    id::{DEDUP_KEY, Minter, Secret},
    job::{Kind, Tenant},
};
use warren_messages::codec;

use super::{
    kept,
    signer::{Hook, TOKEN},
};
use crate::{
    gateway::jobs,
    harness::{
        http::{Http, parts},
        process::Installation,
    },
};

/// A source whose ids are known beforehand to whoever sends it its events.
fn door() -> String {
    format!("[source.other]\nscheme = 'bearer'\nsecrets = ['{TOKEN}']\n")
}

const ROUTES: &str = r#"
[route.opened]
type = "other.*"
source = "/v1/hooks/*"
kind = "warren.probe"
with = { payload_bytes = 3 }

[route.copy]
type = "copy"
kind = "event.received"
with = { type = "copied", source = "{{data.source}}", id = "{{id}}" }
"#;

const SIGNED: &str = "/v1/hooks/other";

#[tokio::test(flavor = "multi_thread")]
async fn an_event_or_a_job_that_says_it_is_a_signed_webhook_is_refused_wherever_it_comes_in() {
    let installation = Installation::embedded(&(door() + ROUTES));
    let up = installation.up(&[]);
    let http = Http::to(up.gateway());
    let event = json!({ "specversion": "1.0", "type": "other.opened", "source": SIGNED, "id": "k-1" });
    let received = json!({ "type": "other.opened", "source": SIGNED, "id": "k-1" });
    let structured = |event: &Value| {
        http.post("/v1/events").header("content-type", "application/cloudevents+json").body(event.to_string())
    };
    let binary = |source: &str| {
        let request = http.post("/v1/events").header("ce-specversion", "1.0").header("ce-type", "other.opened");
        request.header("ce-id", "k-1").header("ce-source", source)
    };
    let kept = || http.post("/v1/jobs/event.received");
    for (request, pointer) in [
        (structured(&event), "/source"),
        (binary(SIGNED), ""),
        (binary("%2Fv1%2fhooks/other"), ""),
        (kept().json(&received), "/source"),
        (kept().json(&received).header("idempotency-key", "k-1"), "/source"),
        (kept().json(&received).header("warren-delay", "1h"), "/source"),
        (kept().header("content-type", "application/msgpack").body(codec::encode(&received).unwrap()), "/source"),
    ] {
        let (status, problem) = parts(request.send().await.unwrap()).await;
        assert_eq!((status, problem["code"].as_str()), (422, Some("reserved_source")), "{problem}");
        assert_eq!(problem["errors"].as_array().map(Vec::len), Some(1), "{problem}");
        let error = &problem["errors"][0];
        assert_eq!((&error["code"], &error["pointer"]), (&json!("reserved_source"), &json!(pointer)), "{problem}");
        let named = if pointer.is_empty() { "the header ce-source begins with /v1/hooks/" } else { "/v1/hooks/" };
        assert!(error["detail"].as_str().unwrap().contains(named), "{problem}");
    }
    // With everything else that is wrong.
    let mut worse = event.clone();
    worse["specversion"] = json!("0.3");
    let (status, problem) = parts(structured(&worse).send().await.unwrap()).await;
    assert_eq!((status, problem["code"].as_str()), (422, Some("invalid_event")));
    assert_eq!(problem["errors"].as_array().map(Vec::len), Some(2), "{problem}");
    // As one of many, and by way of a route.
    let batch = http.post("/v1/events").header("content-type", "application/cloudevents-batch+json");
    let (_, answer) = parts(batch.body(json!([event]).to_string()).send().await.unwrap()).await;
    assert_eq!(answer["results"][0]["code"], "reserved_source", "{answer}");
    let items = json!([{ "kind": "event.received", "body": received }]);
    let (_, answer) = parts(http.post("/v1/jobs").json(&items).send().await.unwrap()).await;
    assert_eq!(answer["results"][0]["code"], "reserved_source", "{answer}");
    let copied = json!({
        "specversion": "1.0", "type": "copy", "source": "/a", "id": "k-1", "data": { "source": SIGNED },
    });
    let (_, problem) = parts(structured(&copied).send().await.unwrap()).await;
    assert_eq!((&problem["code"], &problem["errors"][0]["code"]), (&json!("route_failed"), &json!("reserved_source")));
    assert_eq!(jobs(&installation), Vec::<Value>::new(), "nothing was taken");
    // The one that is signed is taken, after all that and under the same id.
    let hook = Hook::bearer(b"{\"event\": \"opened\"}").with("idempotency-key", "k-1");
    let (status, answer) = parts(hook.request(&http).send().await.unwrap()).await;
    assert_eq!((status, &answer["jobs"][0]["route"]), (202, &json!("opened")), "{answer}");
    // What only looks a little like it is an event like any other.
    for source in ["/v1/hooks", "/v1/hook/other", "https://shop.example/v1/hooks/other"] {
        let mut event = event.clone();
        (event["source"], event["type"]) = (json!(source), json!("mine"));
        let (status, answer) = parts(structured(&event).send().await.unwrap()).await;
        assert_eq!((status, &answer["jobs"][0]["kind"]), (202, &json!("event.received")), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_webhook_that_is_kept_has_an_id_that_no_message_gives_itself() {
    let installation = Installation::embedded(&door());
    let up = installation.up(&[]);
    let hook = Hook::bearer(b"{\"event\": \"opened\"}").with("idempotency-key", "k-1");
    let (status, answer) = parts(hook.request(&Http::to(up.gateway())).send().await.unwrap()).await;
    assert_eq!(status, 202, "{answer}");
    let id = answer["jobs"][0]["id"].as_str().unwrap();
    assert_eq!(kept(&installation, id).await["source"], SIGNED);
    // The id of a message of this source and id, as the key that it gives itself makes it: that of any sender.
    let ids = std::fs::read_to_string(installation.folder.path().join("data").join("ids.toml")).unwrap();
    let ids: toml::Table = ids.parse().unwrap();
    let secret = |value: &toml::Value| value.as_str().unwrap().parse::<Secret>().unwrap();
    let tags: Vec<_> = ids["id"]["tag_keys"].as_array().unwrap().iter().map(secret).collect();
    let minter = Minter::new(&secret(&ids["id"]["dedup_key"]), &tags).unwrap();
    let given = |source: &str| {
        let kind = Kind::new("event.received").unwrap();
        minter.keyed(&Tenant::DEFAULT, DEDUP_KEY, &kind, &format!("{source}\nk-1")).to_string()
    };
    assert_ne!(given(SIGNED), id);
    let event = json!({ "type": "other.opened", "source": "/door", "id": "k-1" });
    assert_eq!(
        Http::to(up.gateway()).submit("event.received", &event).await,
        given("/door"),
        "so that is how it is made"
    );
}
