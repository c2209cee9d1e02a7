//! Events: CloudEvents in every mode, the routes that make jobs of them, and what is kept of the others.

use std::{collections::HashSet, process::Command};

use lapin::{
    options::BasicGetOptions,
    types::{AMQPValue, ShortString},
};
use serde_json::{Value, json};
use warren::job::Kind;

use crate::{
    gateway::jobs,
    harness::{
        http::{Http, parts},
        process::{Installation, Up},
        programs::{node_script, python_script},
        proxy::Proxy,
        receiver::{Receiver, SECRET},
        wait::until,
    },
};

fn open(configuration: &str) -> (Installation, Up, Http) {
    let installation = Installation::embedded(configuration);
    let up = installation.up(&[]);
    let http = Http::to(up.gateway());
    (installation, up, http)
}

const STRUCTURED: &str = "application/cloudevents+json";
const BATCH: &str = "application/cloudevents-batch+json";

fn event(id: &str) -> Value {
    json!({ "specversion": "1.0", "type": "order.paid", "source": "/shop", "id": id, "data": { "order": { "id": 117 } } })
}

async fn send(http: &Http, content_type: &str, body: &Value) -> (u16, Value) {
    let request = http.post("/v1/events").header("content-type", content_type).body(body.to_string());
    parts(request.send().await.unwrap()).await
}

/// The ids of the jobs that an answer names.
fn ids(answer: &Value) -> Vec<String> {
    answer["jobs"].as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_no_route_takes_is_kept_as_it_came() {
    let (installation, _up, http) = open("");
    let mut sent = event("e 1%");
    sent["time"] = json!("2018-04-05T19:31:00+02:00");
    sent["subject"] = json!("s");
    sent["number"] = json!(5);
    let request = http.post("/v1/events").header("content-type", "application/cloudevents+json; charset=UTF-8");
    let response = request.body(sent.to_string()).send().await.unwrap();
    let location = response.headers()["location"].to_str().unwrap().to_owned();
    let (status, answer) = parts(response).await;
    assert_eq!(status, 202, "{answer}");
    let id = ids(&answer).remove(0);
    assert_eq!(location, format!("/v1/jobs/{id}"));
    assert_eq!(answer["jobs"], json!([{ "id": id, "kind": "event.received", "state": "queued" }]));
    let job = http.job_in(&id, "succeeded").await;
    let kept = json!({
        "type": "order.paid", "source": "/shop", "id": "e 1%", "time": "2018-04-05T17:31:00Z",
        "headers": { "subject": "s", "number": "5" }, "data": { "order": { "id": 117 } },
    });
    assert_eq!(job["output"], kept);
    // A repeat is the same job, also for a gateway that knows nothing of the first, in another mode, and with other data.
    let binary = http.post("/v1/events").header("ce-specversion", "1.0").header("ce-type", "order.paid");
    let binary = binary.header("ce-source", "/shop").header("ce-id", "e%201%25").body("7");
    let (status, again) = parts(binary.send().await.unwrap()).await;
    assert_eq!((status, ids(&again)), (202, vec![id]));
    let (_, other) = send(&http, STRUCTURED, &event("e2")).await;
    http.job_in(&ids(&other)[0], "succeeded").await;
    assert_eq!(jobs(&installation).len(), 2);
}

/// What a client says that it sent, against what was kept.
async fn everything_is_kept_once(installation: &Installation, http: &Http, said: &str, count: usize) {
    let events: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events.len(), count);
    let mut all = HashSet::new();
    for event in events {
        let answers = event["answers"].as_array().unwrap();
        let id = ids(&answers[0]).remove(0);
        assert_eq!(ids(&answers[1]), std::slice::from_ref(&id), "a repeat is the same job: {event}");
        let output = http.job_in(&id, "succeeded").await["output"].clone();
        let attributes = event["attributes"].as_object().unwrap();
        for (name, meant) in attributes {
            let text = meant.as_str().map_or_else(|| meant.to_string(), str::to_owned);
            match name.as_str() {
                "specversion" => {}
                "id" | "source" | "type" => assert_eq!(output[name], text, "{event}"),
                "time" => {
                    let instant = |text: &str| text.parse::<jiff::Timestamp>().unwrap();
                    assert_eq!(instant(output["time"].as_str().unwrap()), instant(&text), "{event}");
                }
                // The SDKs say so in binary mode where nothing was meant, or write it otherwise.
                "datacontenttype" => {
                    assert!(output["headers"][name].as_str().unwrap().starts_with(text.split(';').next().unwrap()));
                }
                _ => assert_eq!(output["headers"][name], text, "{event}"),
            }
        }
        assert_eq!(output["data"], event["data"], "{event}");
        assert_eq!(output["data_base64"], event["data_base64"], "{event}");
        all.insert(id);
    }
    assert_eq!((all.len(), jobs(installation).len()), (count, count), "each is stored once");
}

/// What a client says that sends to this address.
fn said(mut client: Command, url: &str) -> String {
    let done = client.arg(url).output().unwrap();
    assert!(done.status.success(), "{done:?}");
    String::from_utf8(done.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn pythons_cloudevents_are_kept_once_each_in_both_modes() {
    let (installation, up, http) = open("");
    let url = format!("{}/v1/events", up.gateway());
    let Some(said) = python_script("send_events.py").map(|client| said(client, &url)) else { return };
    assert!(said.lines().all(|line| !line.contains("\"status\": 4")), "{said}");
    everything_is_kept_once(&installation, &http, &said, 10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn javascripts_cloudevents_are_kept_once_each_in_both_modes() {
    let (installation, up, http) = open("");
    let url = format!("{}/v1/events", up.gateway());
    let Some(said) = node_script("send_events.mjs").map(|client| said(client, &url)) else { return };
    everything_is_kept_once(&installation, &http, &said, 8).await;
}

const ROUTES: &str = r#"
[route.copy]
type = "order.*"
kind = "event.received"
with = { type = "copy.{{type}}", source = "warren", id = "{{source}} {{id}} {{data.order.id}}", data = "{{data.order}}", headers = { n = "{{headers.n}}" } }

[route.probe]
type = "order.paid"
source = "/shop*"
kind = "warren.probe"
with = { payload_bytes = "{{data.order.id}}" }

[route.plain]
type = "probe.plain"
kind = "warren.probe"
"#;

#[tokio::test(flavor = "multi_thread")]
async fn an_event_becomes_a_job_for_every_route_that_takes_it_and_a_repeat_is_the_same_jobs() {
    let (installation, _up, http) = open(ROUTES);
    let mut sent = event("1");
    sent["n"] = json!("x");
    let (status, answer) = send(&http, STRUCTURED, &sent).await;
    assert_eq!(status, 202, "{answer}");
    let routes: Vec<_> = answer["jobs"].as_array().unwrap().iter().map(|job| (&job["route"], &job["kind"])).collect();
    assert_eq!(routes, [(&json!("copy"), &json!("event.received")), (&json!("probe"), &json!("warren.probe"))]);
    let [copy, probe] = ids(&answer).try_into().unwrap();
    let copied = http.job_in(&copy, "succeeded").await["output"].clone();
    let expected = json!({
        "type": "copy.order.paid", "source": "warren", "id": "/shop 1 117", "data": { "id": 117 }, "headers": { "n": "x" },
    });
    assert_eq!(copied, expected);
    let payload = http.job_in(&probe, "succeeded").await["output"]["payload"].clone();
    // 117 bytes are 156 characters of base64.
    assert_eq!(payload.as_str().map(str::len), Some(156));
    let (status, again) = send(&http, STRUCTURED, &sent).await;
    assert_eq!((status, ids(&again)), (202, vec![copy, probe]));
    // Another source is another event, and only one route takes it.
    sent["source"] = json!("/other");
    let (_, other) = send(&http, STRUCTURED, &sent).await;
    assert_eq!(other["jobs"].as_array().unwrap().len(), 1);
    http.job_in(&ids(&other)[0], "succeeded").await;
    // Without a template its data is the body.
    let plain = json!({ "specversion": "1.0", "type": "probe.plain", "source": "s", "id": "1", "data": { "payload_bytes": 3 } });
    let (_, answer) = send(&http, STRUCTURED, &plain).await;
    assert_eq!(http.job_in(&ids(&answer)[0], "succeeded").await["output"]["payload"], "AAAA");
    assert_eq!(jobs(&installation).len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_of_which_one_job_cannot_be_made_becomes_none_and_everything_missing_is_named() {
    let (installation, _up, http) = open(ROUTES);
    // The first route lacks a header and finds a list within text, the second makes a body that breaks the rules.
    let mut sent = event("1");
    sent["data"] = json!({ "order": { "id": "many" } });
    let (status, problem) = send(&http, STRUCTURED, &sent).await;
    assert_eq!((status, problem["code"].as_str()), (422, Some("route_failed")), "{problem}");
    let errors = problem["errors"].as_array().unwrap();
    assert_eq!(errors[0]["pointer"], "/headers/n");
    assert_eq!(errors[0]["code"], "missing_part");
    assert_eq!(errors[0]["detail"], "the route `copy`: {{headers.n}} is not there");
    let detail = errors[1]["detail"].as_str().unwrap();
    assert!(detail.starts_with("the route `probe`: its body is no warren.probe: /payload_bytes: "), "{problem}");
    // The second alone would be in order.
    let (status, problem) = send(&http, STRUCTURED, &event("2")).await;
    assert_eq!((status, problem["errors"].as_array().map(Vec::len)), (422, Some(1)), "{problem}");
    assert_eq!(jobs(&installation), Vec::<Value>::new(), "nothing was taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_no_route_takes_is_refused_where_the_operator_wants_that() {
    let (installation, _up, http) = open(&format!("{ROUTES}\n[events]\nunrouted = 'refuse'\n"));
    let mut sent = event("1");
    sent["type"] = json!("invoice.paid");
    let (status, problem) = send(&http, STRUCTURED, &sent).await;
    assert_eq!((status, problem["code"].as_str()), (422, Some("no_route")));
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("invoice.paid") && detail.contains("/shop"), "{problem}");
    sent["type"] = json!("order.shipped");
    sent["n"] = json!("x");
    let (status, answer) = send(&http, STRUCTURED, &sent).await;
    assert_eq!(status, 202, "{answer}");
    http.job_in(&ids(&answer)[0], "succeeded").await;
    assert_eq!(jobs(&installation).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_answered_event_by_event_and_a_bad_one_spoils_no_other() {
    let (installation, _up, http) = open("");
    let mut bad = event("3");
    bad["specversion"] = json!("0.3");
    // The example of the JSON format's section 4.3, and what is wrong beside it.
    let batch = json!([
        {
            "specversion": "1.0", "type": "com.example.someevent", "source": "/mycontext/4", "id": "B234-1234-1234",
            "time": "2018-04-05T17:31:00Z", "comexampleextension1": "value", "comexampleothervalue": 5,
            "datacontenttype": "application/vnd.apache.thrift.binary", "data_base64": "AP+A",
        },
        {
            "specversion": "1.0", "type": "com.example.someotherevent", "source": "/mycontext/9", "id": "C234-1234-1234",
            "time": "2018-04-05T17:31:05Z", "comexampleextension1": "value", "comexampleothervalue": 5,
            "datacontenttype": "application/json", "data": { "appinfoA": "abc", "appinfoB": 123, "appinfoC": true },
        },
        bad, 7, event("1"), event("1"), { "specversion": "1.0", "type": "t", "source": "s" },
    ]);
    let (status, answer) = send(&http, &format!("{BATCH}; charset=UTF-8"), &batch).await;
    assert_eq!(status, 200, "{answer}");
    let results = answer["results"].as_array().unwrap();
    let found: Vec<_> =
        results.iter().map(|result| (result["status"].as_u64().unwrap(), result["code"].as_str())).collect();
    let expected = [
        (202, None),
        (202, None),
        (422, Some("invalid_event")),
        (422, Some("not_a_map")),
        (202, None),
        (409, Some("duplicate_in_batch")),
        (422, Some("invalid_event")),
    ];
    assert_eq!(found, expected, "{answer}");
    assert_eq!((answer["accepted"].as_u64(), answer["refused"].as_u64()), (Some(3), Some(4)));
    let indices: Vec<_> = results.iter().map(|result| result["index"].as_u64().unwrap()).collect();
    assert_eq!(indices, (0..7).collect::<Vec<_>>());
    let output = http.job_in(&ids(&results[0])[0], "succeeded").await["output"].clone();
    assert_eq!((output["data_base64"].as_str(), output["id"].as_str()), (Some("AP+A"), Some("B234-1234-1234")));
    // Sent once more, in another cut, they are the same jobs.
    let (_, again) = send(&http, BATCH, &json!([batch[4], batch[0]])).await;
    assert_eq!(ids(&again["results"][0]), ids(&results[4]));
    assert_eq!(ids(&again["results"][1]), ids(&results[0]));
    for result in results.iter().filter(|result| result["status"] == 202) {
        http.job_in(&ids(result)[0], "succeeded").await;
    }
    assert_eq!(jobs(&installation).len(), 3);
    // The specification allows a batch of none.
    assert_eq!(send(&http, BATCH, &json!([])).await, (200, json!({ "results": [], "accepted": 0, "refused": 0 })));
}

/// Headers, body; status and code.
type Case<'a> = (&'a [(&'a str, &'a [u8])], Vec<u8>, u16, &'a str);

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_event_gets_its_own_answer_and_nothing_is_taken() {
    let (installation, _up, http) = open("");
    let structured: &[(&str, &[u8])] = &[("content-type", STRUCTURED.as_bytes())];
    let batch: &[(&str, &[u8])] = &[("content-type", BATCH.as_bytes())];
    let text = |value: Value| value.to_string().into_bytes();
    let with = |name: &str, value: Value| {
        let mut event = event("1");
        event[name] = value;
        event.to_string().into_bytes()
    };
    let deep = format!("{{\"data\":{}1{}}}", "[".repeat(10_000), "]".repeat(10_000)).into_bytes();
    let long = with("data", json!("x".repeat(1 << 20)));
    let many: Vec<_> = (0..1001).map(|id| event(&id.to_string())).collect();
    let huge = format!("[{}]", " ".repeat(4 << 20)).into_bytes();
    let ce: &[(&str, &[u8])] = &[("ce-id", b"1"), ("ce-source", b"/x"), ("ce-type", b"t"), ("ce-specversion", b"1.0")];
    let and = |more: &[(&'static str, &'static [u8])]| [ce, more].concat();
    let (json_body, bad_escape, version, avro) = (
        and(&[("content-type", b"application/json")]),
        and(&[("ce-subject", b"%ff")]),
        [&ce[..3], &[("ce-specversion", b"2.0")]].concat(),
        and(&[("content-type", b"application/cloudevents+avro")]),
    );
    let cases: Vec<Case> = vec![
        (&[], b"{}".to_vec(), 415, "unsupported_content_type"),
        (&[("content-type", b"application/json")], text(event("1")), 415, "unsupported_content_type"),
        (&[("content-type", b"application/cloudevents")], text(event("1")), 415, "unsupported_content_type"),
        (&avro, text(event("1")), 415, "unsupported_content_type"),
        (structured, Vec::new(), 400, "empty_body"),
        (structured, b"{".to_vec(), 400, "invalid_json"),
        (structured, b"{\"id\":\"\xff\"}".to_vec(), 400, "bad_encoding"),
        (structured, b"{\"id\":\"\\ud800\"}".to_vec(), 400, "bad_encoding"),
        (structured, b"[]".to_vec(), 422, "not_a_map"),
        (structured, b"{\"id\":\"1\",\"id\":\"2\"}".to_vec(), 400, "duplicate_key"),
        (structured, deep, 400, "too_deep"),
        (structured, long, 413, "too_large"),
        (structured, text(json!({})), 422, "invalid_event"),
        (structured, with("specversion", json!("0.3")), 422, "invalid_event"),
        (structured, with("specversion", json!(1.0)), 422, "invalid_event"),
        (structured, with("time", json!("2018-04-05")), 422, "invalid_event"),
        (structured, with("Bad_Name", json!("x")), 422, "invalid_event"),
        (structured, with("ext", json!({})), 422, "invalid_event"),
        (structured, with("id", json!("")), 422, "invalid_event"),
        (structured, with("id", json!("a\nb")), 422, "invalid_event"),
        (structured, with("id", json!("x".repeat(1025))), 422, "invalid_event"),
        (structured, with("source", json!("x".repeat(2049))), 422, "invalid_event"),
        (structured, with("data_base64", json!("AA==")), 422, "invalid_event"),
        (structured, with("data_base64", json!("*")), 422, "invalid_event"),
        (
            structured,
            with("data", json!(null)).iter().map(|byte| if *byte == b'n' { b'x' } else { *byte }).collect(),
            400,
            "invalid_json",
        ),
        (batch, text(event("1")), 422, "not_an_array"),
        (batch, b"[{},".to_vec(), 400, "invalid_json"),
        (batch, text(json!(many)), 422, "batch_too_large"),
        (batch, huge, 413, "too_large"),
        (&[("ce-id", b"1")], Vec::new(), 422, "invalid_event"),
        (&bad_escape, Vec::new(), 422, "invalid_event"),
        (&version, Vec::new(), 422, "invalid_event"),
        (&json_body, b"{\"a\":".to_vec(), 400, "invalid_json"),
        (&json_body, b"{\"a\":1,\"a\":2}".to_vec(), 400, "duplicate_key"),
        (&json_body, b"{\"a\":18446744073709551616}".to_vec(), 422, "invalid_body"),
    ];
    for (headers, body, status, code) in cases {
        let shown = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
        let mut request = http.post("/v1/events").body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.headers()["content-type"], "application/problem+json", "{shown}");
        let (got, problem) = parts(response).await;
        assert_eq!((got, problem["code"].as_str()), (status, Some(code)), "{shown} {problem}");
        assert!(!problem["detail"].as_str().unwrap().is_empty());
    }
    assert_eq!(jobs(&installation), Vec::<Value>::new(), "nothing was taken");
}

#[test]
fn every_mistake_in_the_routes_is_reported_before_anything_starts() {
    let configuration = r#"
        [events]
        unrouted = "drop"
        [route.one]
        type = "order.*"
        kind = "webhook.delivr"
        [route.two]
        kind = "webhook.deliver"
        with = { ulr = "{{data.url}}", event_type = "{{tpye}}", event_id = "{{id" }
        [route.three]
        type = "x"
        kind = "webhook.deliver"
        with = { ulr = "{{data.url}}", event_type = "{{type}}", event_id = "{{id}}" }
    "#;
    let installation = Installation::embedded(configuration);
    for verb in [&["config", "check"][..], &["up"]] {
        let said = installation.run(verb);
        assert_eq!(said.code, 2, "{said:?}");
        for part in [
            "7 places",
            "events.unrouted",
            "route.one.kind (all in all): there is no such kind",
            "route.two.type",
            "route.two.with.event_type",
            "an event has no part `tpye`",
            "route.two.with.event_id",
            "route.three.with (all in all): webhook.deliver has no field `ulr`",
            "route.three.with (all in all): the field `url` of webhook.deliver is missing",
        ] {
            assert!(said.stderr.contains(part), "{part}: {}", said.stderr);
        }
    }
}

/// On servers, with a proxy before the broker.
async fn behind_a_proxy(configuration: &str) -> Option<(Installation, Proxy)> {
    let installation = Installation::on_servers("").await?;
    let (rabbit, database) = installation.servers().unwrap();
    let broker = Proxy::before(rabbit.address()).await;
    let keys = installation.run(&["config", "keys"]).stdout;
    let text = format!(
        "{keys}\n{configuration}\n[broker]\nurl = \"{}\"\nprefix = \"{}\"\n[database]\nurl = \"{}\"\n",
        rabbit.through(broker.port),
        rabbit.prefix,
        database.url
    );
    std::fs::write(installation.file(), text).unwrap();
    Some((installation, broker))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_the_broker_cannot_take_is_to_be_sent_again_and_is_then_taken_once() {
    let Some((installation, broker)) = behind_a_proxy(ROUTES).await else { return };
    let up = installation.up(&[]);
    let http = Http::to(up.gateway());
    let mut sent = event("1");
    sent["n"] = json!("x");
    until("it is taken", async || (send(&http, STRUCTURED, &sent).await.0 == 202).then_some(())).await;
    broker.refuse(true);
    sent["id"] = json!("2");
    let mut bad = sent.clone();
    bad["specversion"] = json!("9");
    let refused = until("the broker is missed", async || {
        let request = http.post("/v1/events").header("content-type", STRUCTURED).body(sent.to_string());
        let response = request.send().await.unwrap();
        (response.status() == 503).then_some(response)
    })
    .await;
    assert!(refused.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap() > 0);
    // What is wrong with an event is told all the same, and of a batch the rest is to be sent again.
    assert_eq!(send(&http, STRUCTURED, &bad).await.0, 422);
    let response = http.post("/v1/events").header("content-type", BATCH).body(json!([sent, bad]).to_string());
    let response = response.send().await.unwrap();
    assert!(response.headers().contains_key("retry-after"));
    let (status, answer) = parts(response).await;
    assert_eq!((status, answer["accepted"].as_u64()), (503, Some(0)), "{answer}");
    assert_eq!(answer["results"][1]["status"], 422);
    broker.refuse(false);
    let answer = until("it is taken in the end", async || {
        let (status, answer) = send(&http, BATCH, &json!([sent])).await;
        (status == 200).then_some(answer)
    })
    .await;
    let ids = ids(&answer["results"][0]);
    for id in &ids {
        http.job_in(id, "succeeded").await;
    }
    assert_eq!((ids.len(), jobs(&installation).len()), (2, 4), "two events, two jobs each");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_whose_confirm_is_lost_may_be_there_and_sent_again_it_is_the_same_job() {
    let Some((installation, broker)) = behind_a_proxy("").await else { return };
    let gateway = installation.up(&["gateway"]);
    let worker = installation.up(&["worker"]);
    let http = Http::to(gateway.gateway());
    let first = until("it is taken", async || {
        let (status, answer) = send(&http, STRUCTURED, &event("1")).await;
        (status == 202).then(|| ids(&answer).remove(0))
    })
    .await;
    http.job_in(&first, "succeeded").await;
    broker.mute_server(true);
    let (status, problem) = send(&http, STRUCTURED, &event("2")).await;
    assert_eq!((status, problem["code"].as_str()), (503, Some("outcome_unknown")), "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("same source and id"), "{problem}");
    broker.mute_server(false);
    broker.cut();
    let answer = until("it is taken", async || {
        let (status, answer) = send(&http, STRUCTURED, &event("2")).await;
        (status == 202).then_some(answer)
    })
    .await;
    assert_eq!(ids(&answer), [problem["job"].as_str().unwrap()]);
    let job = http.job_in(&ids(&answer)[0], "succeeded").await;
    assert_eq!((job["run"].as_u64(), jobs(&installation).len()), (Some(1), 2), "{job}");
    drop(worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_goes_on_with_the_job_that_of_the_event_before_that_of_the_request() {
    let Some(installation) = Installation::on_servers("").await else { return };
    let gateway = installation.up(&["gateway"]);
    let http = Http::to(gateway.gateway());
    let (rabbit, _) = installation.servers().unwrap();
    let parent = |digit: &str| format!("00-{}-{}-01", digit.repeat(32), digit.repeat(16));
    let request = |event: &Value| {
        let request = http.post("/v1/events").header("content-type", STRUCTURED).header("traceparent", parent("a"));
        request.body(event.to_string())
    };
    let mut traced = event("1");
    traced["traceparent"] = json!(parent("b"));
    for (event, expected) in [(traced, parent("b")), (event("2"), parent("a"))] {
        let answer = until("it is taken", async || {
            let (status, answer) = parts(request(&event).send().await.unwrap()).await;
            (status == 202).then_some(answer)
        })
        .await;
        let (_connection, channel) = rabbit.channel().await;
        let queue = rabbit.names().queue(&Kind::new("event.received").unwrap());
        let options = BasicGetOptions { no_ack: true };
        let message = channel.basic_get(queue.as_str().into(), options).await.unwrap().expect("it is there");
        let properties = &message.delivery.properties;
        assert_eq!(properties.message_id().as_ref().map(ShortString::as_str), Some(ids(&answer)[0].as_str()));
        let headers = properties.headers().as_ref().expect("a trace");
        let found = headers.inner().get("traceparent");
        assert_eq!(found, Some(&AMQPValue::LongString(expected.as_str().into())));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_comes_in_and_a_signed_webhook_goes_out() {
    let Some(receiver) = Receiver::start() else { return };
    let (_installation, _up, http) = open(&format!(
        "[webhook]\nallow_private = ['127.0.0.0/8']\n[webhook.secrets]\nshop = ['{SECRET}']\n\
         [route.orders]\ntype = 'order.*'\nkind = 'webhook.deliver'\nwith = {{ url = '{}', secret_ref = 'shop', \
         event_type = '{{{{type}}}}', event_id = 'order-{{{{data.order.id}}}}', body = '{{{{data}}}}' }}\n",
        receiver.url("/orders")
    ));
    for _ in 0..2 {
        let (status, answer) = send(&http, STRUCTURED, &event("1")).await;
        assert_eq!(status, 202, "{answer}");
        http.job_in(&ids(&answer)[0], "succeeded").await;
    }
    let requests = receiver.requests("/orders");
    assert_eq!(requests.len(), 1, "once, for the repeat is the same job");
    assert_eq!(requests[0]["verified"], true);
    assert_eq!(requests[0]["headers"]["webhook-id"], "order-117");
    assert_eq!(requests[0]["headers"]["warren-event-type"], "order.paid");
    assert_eq!(requests[0]["body"], "{\"order\":{\"id\":117}}");
}
