//! Messages of other clients, published past the gateway.

use serde_json::{Value, json};

use crate::harness::{
    http::Http,
    process::Installation,
    programs::python_script,
    wait::{until, until_equal},
};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_job_is_a_dead_letter_with_its_bytes_and_what_is_one_runs() {
    let Some(installation) = Installation::on_servers("").await else { return };
    let Some(mut foreign) = python_script("foreign.py") else { return };
    let up = installation.up(&[]);
    let http = Http::to(up.gateway());
    let finished = http.submit("warren.probe", &json!({ "payload_bytes": 1 })).await;
    let before = http.job_in(&finished, "succeeded").await;
    let (rabbit, _) = installation.servers().unwrap();
    let good = "0190aaaa-bbbb-7ccc-8ddd-0000ffff0000";
    let arguments = [rabbit.url.as_str(), &rabbit.names().jobs(), "warren.probe", &finished, good];
    let done = foreign.args(arguments).output().unwrap();
    assert!(done.status.success(), "{done:?}");
    http_job(&installation, good).await;
    let letters = until("all are dead letters", async || {
        let letters = installation.run(&["dead", "list", "-o", "json"]).json();
        (letters.as_array().unwrap().len() >= 10).then_some(letters)
    })
    .await;
    let mut reasons: Vec<_> =
        letters.as_array().unwrap().iter().map(|letter| letter["reason"].as_str().unwrap().to_owned()).collect();
    reasons.sort_unstable();
    let mut expected = vec!["undecodable"; 8];
    expected.insert(0, "invalid_body");
    expected.push("unroutable");
    assert_eq!(reasons, expected, "{letters}");
    // Those that claimed the id of a job that is over touched nothing of it.
    assert_eq!(http.job(&finished).await, before);
    until_equal("jobs that wait", Some(0), async || {
        let queues = installation.run(&["queue", "list", "-o", "json"]).json();
        queues.as_array().unwrap().iter().map(|queue| queue["waiting"].as_u64()).sum::<Option<u64>>()
    })
    .await;
    let status = http.get("/").send().await.unwrap().status();
    assert_eq!(status, 200, "it lives");
}

/// A job of which only its row is known: its id is not one of the gateway's.
async fn http_job(installation: &Installation, id: &str) -> Value {
    until("a well-formed job of another client has run", async || {
        let shown = installation.run(&["job", "show", id, "-o", "json"]);
        (shown.code == 0).then(|| shown.json()).filter(|job| job["state"] == "succeeded")
    })
    .await
}
