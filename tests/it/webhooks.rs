//! The main job from end to end: an event comes in over HTTP, a signed webhook goes out, and the story can be told.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{
    http::{Http, parts},
    process::{Installation, Up},
    receiver::{Receiver, SECRET},
    wait::until,
};

/// Quick to try again, and allowed to reach the receiver.
fn configuration(kind: &str) -> String {
    format!(
        "[webhook]\nallow_private = [\"127.0.0.0/8\"]\n[webhook.secrets]\nshop = [\"{SECRET}\"]\n\
         [kind.\"webhook.deliver\"]\nbackoff_base = \"200ms\"\nbackoff_factor = 2.0\nbackoff_cap = \"5s\"\nattempts = 3\n{kind}"
    )
}

struct Shop {
    installation: Installation,
    up: Up,
    http: Http,
    receiver: Receiver,
}

impl Shop {
    fn embedded(kind: &str) -> Option<Self> {
        Some(Self::open(Installation::embedded(&configuration(kind)), Receiver::start()?))
    }

    async fn on_servers(kind: &str) -> Option<Self> {
        Some(Self::open(Installation::on_servers(&configuration(kind)).await?, Receiver::start()?))
    }

    fn open(installation: Installation, receiver: Receiver) -> Self {
        let up = installation.up(&[]);
        let http = Http::to(up.gateway());
        Self { installation, up, http, receiver }
    }

    fn message(&self, path: &str) -> Value {
        json!({
            "url": self.receiver.url(path),
            "event_type": "order.paid",
            "event_id": "evt_1",
            "body": { "order": 7, "text": "Ωmega", "name": "canary-in-a-body" },
            "secret_ref": "shop",
        })
    }

    async fn send(&self, path: &str) -> String {
        self.http.submit("webhook.deliver", &self.message(path)).await
    }

    fn shown(&self, id: &str) -> Value {
        self.installation.run(&["job", "show", id, "-o", "json"]).json()
    }
}

/// Every case on both engines.
macro_rules! on_both {
    ($($case:ident $(with $kind:literal)?),* $(,)?) => {
        mod on_servers {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                if let Some(shop) = super::Shop::on_servers(concat!("", $($kind)?)).await {
                    super::$case(shop).await;
                }
            })*
        }
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                if let Some(shop) = super::Shop::embedded(concat!("", $($kind)?)) {
                    super::$case(shop).await;
                }
            })*
        }
    };
}

on_both!(
    a_webhook_arrives_signed_and_its_story_can_be_told,
    a_receiver_that_is_busy_twice_is_tried_three_times_spaced_by_the_policy,
    a_receiver_that_always_fails_makes_a_dead_letter_that_can_be_replayed_once_it_is_mended,
    a_receiver_that_is_gone_is_not_tried_again,
    a_receiver_that_never_answers_is_timed_out_and_counted with "timeout = \"500ms\"\n",
    one_stuck_host_does_not_delay_the_others,
    a_private_target_is_refused_and_one_that_is_no_longer_allowed_is_a_dead_letter,
);

async fn a_webhook_arrives_signed_and_its_story_can_be_told(shop: Shop) {
    let id = shop.send("/ok").await;
    let job = shop.http.job_in(&id, "succeeded").await;
    assert_eq!((job["output"]["status"].as_u64(), job["output"]["answer"].as_str()), (Some(200), Some("thanks")));
    let requests = shop.receiver.requests("/ok");
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0]["verified"], true, "{:?}", requests[0]);
    assert_eq!(requests[0]["headers"]["webhook-id"], "evt_1");
    let told = shop.installation.run(&["job", "show", &id]);
    assert_eq!(told.code, 0, "{told:?}");
    for part in [id.as_str(), "webhook.deliver", "succeeded", "\"answer\": \"thanks\""] {
        assert!(told.stdout.contains(part), "{part} is not told in {}", told.stdout);
    }
}

async fn a_receiver_that_is_busy_twice_is_tried_three_times_spaced_by_the_policy(mut shop: Shop) {
    shop.receiver.answers("/busy", &[503, 503, 200]);
    let id = shop.send("/busy").await;
    let job = shop.http.job_in(&id, "succeeded").await;
    let attempts = job["attempts"].as_array().unwrap();
    let codes: Vec<_> = attempts.iter().map(|attempt| attempt["code"].as_str().unwrap()).collect();
    assert_eq!(codes, ["bad_status", "bad_status"]);
    assert!(attempts.iter().all(|attempt| attempt["error"].as_str().unwrap().contains("503")), "{attempts:?}");
    let requests = shop.receiver.requests("/busy");
    assert_eq!(requests.len(), 3);
    let at: Vec<_> = requests.iter().map(|request| request["at"].as_f64().unwrap()).collect();
    // 200 ms and 400 ms, each spread down to its half.
    assert!(at[1] - at[0] >= 0.1 && at[2] - at[1] >= 0.2, "{at:?}");
    assert!(requests.iter().all(|request| request["verified"] == true && request["headers"]["webhook-id"] == "evt_1"));
}

async fn a_receiver_that_always_fails_makes_a_dead_letter_that_can_be_replayed_once_it_is_mended(mut shop: Shop) {
    shop.receiver.answers("/broken", &[500]);
    let id = shop.send("/broken").await;
    shop.http.job_in(&id, "dead").await;
    let listed = shop.installation.run(&["dead", "list", "-o", "json"]).json();
    assert_eq!((listed[0]["id"].as_str(), listed[0]["reason"].as_str()), (Some(id.as_str()), Some("bad_status")));
    let told = shop.shown(&id);
    assert_eq!(told["attempts"].as_array().unwrap().len(), 3);
    // The body that went in, exactly.
    let sent = shop.message("/broken");
    assert_eq!(told["body"], sent);
    shop.receiver.answers("/broken", &[200]);
    let replayed = shop.installation.run(&["dead", "replay", &id]);
    assert_eq!(replayed.code, 0, "{replayed:?}");
    let job = shop.http.job_in(&id, "succeeded").await;
    assert_eq!(job["run"], 4);
    assert_eq!(job["attempts"].as_array().unwrap().len(), 3, "what happened before is kept");
    let again = shop.installation.run(&["dead", "replay", &id]);
    assert_eq!(again.code, 5, "it is no dead letter any more: {again:?}");
    assert!(again.stderr.contains("succeeded"), "{again:?}");
}

async fn a_receiver_that_is_gone_is_not_tried_again(mut shop: Shop) {
    shop.receiver.answers("/gone", &[410]);
    let id = shop.send("/gone").await;
    let job = shop.http.job_in(&id, "dead").await;
    assert_eq!((job["reason"].as_str(), job["attempts"].as_array().unwrap().len()), (Some("gone"), 1));
    assert_eq!(shop.receiver.requests("/gone").len(), 1);
    let discarded = shop.installation.run(&["dead", "discard", &id]);
    assert_eq!(discarded.code, 0, "{discarded:?}");
    shop.http.job_in(&id, "discarded").await;
}

async fn a_receiver_that_never_answers_is_timed_out_and_counted(mut shop: Shop) {
    shop.receiver.answers("/silent", &[0]);
    let id = shop.send("/silent").await;
    let job = shop.http.job_in(&id, "dead").await;
    assert_eq!((job["reason"].as_str(), job["attempts"].as_array().unwrap().len()), (Some("timed_out"), 3));
    assert_eq!(shop.receiver.requests("/silent").len(), 3);
}

async fn one_stuck_host_does_not_delay_the_others(mut shop: Shop) {
    const STUCK: usize = 500;
    shop.receiver.answers("/stuck", &[0]);
    let stuck: Vec<_> = futures_util::future::join_all((0..STUCK).map(|_| shop.send("/stuck"))).await;
    until("the stuck host has its share", async || (shop.receiver.requests("/stuck").len() >= 8).then_some(())).await;
    let began = Instant::now();
    let healthy = (1..=20).flat_map(|host| (0..5).map(move |_| host)).map(|host| {
        let mut message = shop.message("/healthy");
        message["url"] = json!(format!("http://127.0.1.{host}:{}/healthy", shop.receiver.port));
        let http = &shop.http;
        async move {
            let id = http.submit("webhook.deliver", &message).await;
            http.job_in(&id, "succeeded").await
        }
    });
    let jobs = futures_util::future::join_all(healthy).await;
    // A request to the stuck host takes 20 s. As if alone: long before the first of those has ended.
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    assert_eq!(jobs.len(), 100);
    assert_eq!(shop.receiver.requests("/stuck").len(), 8, "no more than one host's share at once");
    for id in &stuck[..20] {
        let job = shop.http.job(id).await;
        assert_ne!(job["state"], "dead", "{job}");
        assert_eq!(job["attempts"], Value::Null, "being put off costs no attempt: {job}");
    }
}

async fn a_private_target_is_refused_and_one_that_is_no_longer_allowed_is_a_dead_letter(shop: Shop) {
    let mut message = shop.message("/x");
    message["url"] = json!("http://169.254.169.254/latest/meta-data");
    let refused = shop.http.post("/v1/jobs/webhook.deliver").json(&message).send().await.unwrap();
    let (status, problem) = parts(refused).await;
    let error = &problem["errors"][0];
    assert_eq!(
        (status, error["pointer"].as_str(), error["code"].as_str()),
        (422, Some("/url"), Some("private_address"))
    );
    // Its worker judges anew, by the rules of its own time.
    let later = shop.http.post("/v1/jobs/webhook.deliver").header("warren-delay", "4s").json(&shop.message("/x"));
    let (status, accepted) = parts(later.send().await.unwrap()).await;
    assert_eq!(status, 202, "{accepted}");
    let Shop { installation, up, receiver, .. } = shop;
    up.kill();
    let before = std::fs::read_to_string(installation.file()).unwrap();
    let after = before.replace("[\"127.0.0.0/8\"]", "[]");
    assert_ne!(before, after);
    std::fs::write(installation.file(), after).unwrap();
    let up = installation.up(&[]);
    let job = Http::to(up.gateway()).job_in(accepted["id"].as_str().unwrap(), "dead").await;
    assert_eq!((job["reason"].as_str(), job["attempts"].as_array().unwrap().len()), (Some("private_address"), 1));
    assert_eq!(receiver.requests("/x").len(), 0, "nothing was sent");
}
