//! Jobs that are called off, on both engines.

use serde_json::{Value, json};

use crate::harness::{
    counted::until_a_probe_runs,
    http::{Http, parts},
    process::{Installation, Up},
};

const KIND: &str = "[kind.'warren.probe']\nconcurrency = 1\nbackoff_base = '1h'\nbackoff_cap = '1h'\n";

async fn cancel(http: &Http, id: &str) -> (u16, Value) {
    parts(http.delete(&format!("/v1/jobs/{id}")).send().await.unwrap()).await
}

/// A job that keeps the only place until it is called off or its time is up.
async fn slow(http: &Http, up: &Up, ms: u32) -> String {
    let id = http.submit("warren.probe", &json!({ "work_ms": ms })).await;
    until_a_probe_runs(up).await;
    id
}

async fn what_waits_is_called_off_and_never_starts(installation: Installation) {
    let up = installation.up(&[]);
    let http = Http::to(up.gateway());
    let slow = slow(&http, &up, 3000).await;
    let batch: Vec<_> = (0..1000).map(|_| json!({ "kind": "warren.probe", "body": { "payload_bytes": 1 } })).collect();
    let answer: Value = http.post("/v1/jobs").json(&batch).send().await.unwrap().json().await.unwrap();
    let ids: Vec<_> =
        answer["results"].as_array().unwrap().iter().map(|it| it["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(ids.len(), 1000);
    let answers = futures_util::future::join_all(ids.iter().map(|id| cancel(&http, id))).await;
    for (status, answer) in answers {
        assert_eq!((status, answer["state"].as_str()), (202, Some("cancel_requested")), "{answer}");
    }
    http.job_in(&slow, "succeeded").await;
    for id in &ids {
        let job = http.job_in(id, "cancelled").await;
        assert_eq!((job["ran"].as_bool(), job["output"].is_null()), (Some(false), true), "{job}");
    }
    let (status, answer) = cancel(&http, &slow).await;
    assert_eq!((status, answer["code"].as_str()), (409, Some("already_finished")), "{answer}");
    let (status, answer) = cancel(&http, &ids[0]).await;
    assert_eq!((status, answer["state"].as_str()), (200, Some("cancelled")), "once more is no mistake: {answer}");
}

async fn what_nobody_has_is_called_off_at_once(installation: Installation) {
    let up = installation.up(&[]);
    let http = Http::to(up.gateway());
    let delayed =
        http.post("/v1/jobs/warren.probe").header("warren-delay", "1h").json(&json!({})).send().await.unwrap();
    let delayed = parts(delayed).await.1["id"].as_str().unwrap().to_owned();
    let failing = http.submit("warren.probe", &json!({ "fate": "retry" })).await;
    http.job_in(&failing, "retrying").await;
    for (id, ran) in [(&delayed, false), (&failing, true)] {
        let (status, answer) = cancel(&http, id).await;
        assert_eq!((status, answer["state"].as_str()), (200, Some("cancelled")), "{answer}");
        let job = http.job(id).await;
        assert_eq!((job["state"].as_str(), job["ran"].as_bool()), (Some("cancelled"), Some(ran)), "{job}");
    }
    for foreign in ["01a202b2-9d7e-8952-afca-4a9d1541c132", "nonsense"] {
        let (status, answer) = cancel(&http, foreign).await;
        assert_eq!((status, answer["code"].as_str()), (404, Some("unknown_job")), "{answer}");
    }
}

async fn what_runs_is_told_and_its_outcome_is_dropped(installation: Installation) {
    let up = installation.up(&[]);
    let http = Http::to(up.gateway());
    let id = http.submit("warren.probe", &json!({ "work_ms": 1500, "follow_ups": 3 })).await;
    until_a_probe_runs(&up).await;
    let said = installation.run(&["job", "cancel", &id, "-o", "json"]);
    assert_eq!((said.code, said.json()["state"].as_str()), (0, Some("cancel_requested")), "{said:?}");
    let job = http.job_in(&id, "cancelled").await;
    assert_eq!((job["ran"].as_bool(), job["output"].is_null()), (Some(true), true), "{job}");
    let follow_ups = installation.run(&["job", "list", "--state", "scheduled", "-o", "json"]).json();
    assert_eq!(follow_ups, json!([]), "what it asked for is dropped with it");
}

macro_rules! on_both {
    ($($case:ident),* $(,)?) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case(super::Installation::embedded(super::KIND)).await;
            })*
        }
        mod on_servers {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                if let Some(installation) = super::Installation::on_servers(super::KIND).await {
                    super::$case(installation).await;
                }
            })*
        }
    };
}

on_both!(
    what_waits_is_called_off_and_never_starts,
    what_nobody_has_is_called_off_at_once,
    what_runs_is_told_and_its_outcome_is_dropped,
);
