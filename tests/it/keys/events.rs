//! What a key may do by way of events: the routes of its tenant, and the kinds that it is held to.

use serde_json::{Value, json};

use super::with_keys;
use crate::{
    gateway::jobs,
    harness::http::{Http, parts},
};

async fn send(http: &Http, event_type: &str) -> (u16, Value) {
    let event = json!({ "specversion": "1.0", "type": event_type, "source": "/shop", "id": "1", "data": {} });
    let request = http.post("/v1/events").header("content-type", "application/cloudevents+json");
    parts(request.body(event.to_string()).send().await.unwrap()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_of_one_tenant_takes_no_event_of_another() {
    let routes = "[route.acme]\ntype = 'order.*'\ntenant = 'acme'\nkind = 'warren.probe'\n\
                  [route.all]\ntype = 'order.paid'\nkind = 'warren.probe'\n";
    let (_installation, up, keys) = with_keys(
        &[
            ("acme", &["--scope", "events:write", "--tenant", "acme"]),
            ("globex", &["--scope", "events:write", "--tenant", "globex"]),
            ("own", &["--scope", "events:write"]),
        ],
        routes,
    );
    for (key, paid, shipped) in [
        ("acme", json!(["acme", "all"]), json!(["acme"])),
        ("globex", json!(["all"]), json!([null])),
        ("own", json!(["all"]), json!([null])),
    ] {
        let http = Http::with_key(up.gateway(), &keys[key]);
        for (event_type, expected) in [("order.paid", paid), ("order.shipped", shipped)] {
            let (status, answer) = send(&http, event_type).await;
            assert_eq!(status, 202, "{key} {answer}");
            let routes: Value = answer["jobs"].as_array().unwrap().iter().map(|job| job["route"].clone()).collect();
            assert_eq!(routes, expected, "{key} {event_type} {answer}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_held_to_kinds_is_told_so_for_what_a_route_would_make_and_nothing_is_taken() {
    // The template of the one route cannot be filled, which is nothing to who may not send its kind.
    let routes = "[route.out]\ntype = 'out'\nkind = 'webhook.deliver'\nwith = { url = '{{data.url}}', \
                  event_type = 'x', event_id = '{{id}}' }\n\
                  [route.probe]\ntype = '*t'\nkind = 'warren.probe'\n";
    let (installation, up, keys) =
        with_keys(&[("shop", &["--scope", "events:write", "--kind", "warren.probe", "--tenant", "acme"])], routes);
    let http = Http::with_key(up.gateway(), &keys["shop"]);
    for (event_type, kind) in [("out", "webhook.deliver"), ("kept by nobody", "event.received")] {
        let (status, problem) = send(&http, event_type).await;
        assert_eq!((status, problem["code"].as_str()), (403, Some("kind_not_allowed")), "{problem}");
        let detail = format!("this key may not send {kind}, only warren.probe");
        assert_eq!(problem["detail"], detail);
        assert_eq!(problem["errors"], Value::Null);
    }
    let batch = json!([{ "specversion": "1.0", "type": "out", "source": "/shop", "id": "2" }]);
    let request = http.post("/v1/events").header("content-type", "application/cloudevents-batch+json");
    let (_, answer) = parts(request.body(batch.to_string()).send().await.unwrap()).await;
    assert_eq!(
        (&answer["results"][0]["status"], &answer["results"][0]["code"]),
        (&json!(403), &json!("kind_not_allowed"))
    );
    assert_eq!(jobs(&installation), Vec::<Value>::new(), "nothing was taken");
    let (status, answer) = send(&http, "in-t").await;
    assert_eq!((status, &answer["jobs"][0]["route"]), (202, &json!("probe")), "{answer}");
}
