//! The keeper: what the broker could not deliver is kept.

use lapin::{
    BasicProperties,
    options::BasicPublishOptions,
    types::{AMQPValue, FieldTable},
};
use serde_json::json;
use uuid::Uuid;
use warren_messages::{codec, probe::Probe};

use crate::harness::{
    http::Http,
    process::Installation,
    wait::{until, until_equal},
};

fn id() -> String {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).unwrap();
    Uuid::new_v8(bytes).to_string()
}

fn depth(installation: &Installation, name: &str) -> Option<u64> {
    let queues = installation.run(&["queue", "list", "-o", "json"]).json();
    queues.as_array()?.iter().find(|queue| queue["name"] == name)?["waiting"].as_u64()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_queue_is_bound_for_and_what_is_no_job_become_dead_letters_with_their_bytes() {
    let Some(installation) = Installation::on_servers("").await else { return };
    let up = installation.up(&[]);
    let (rabbit, _) = installation.servers().unwrap();
    let (_connection, channel) = rabbit.channel().await;
    let body = codec::encode(&Probe::default()).unwrap();
    let (stray, nameless) = (id(), b"\xffno body".to_vec());
    let exchange = rabbit.names().jobs();
    for (key, properties, bytes) in [
        ("test.stray", BasicProperties::default().with_message_id(stray.as_str().into()), &body),
        ("test.stray", BasicProperties::default(), &nameless),
        ("NOT A KIND", BasicProperties::default().with_message_id(id().into()), &nameless),
    ] {
        let options = BasicPublishOptions::default();
        channel.basic_publish(exchange.as_str().into(), key.into(), options, bytes, properties).await.unwrap();
    }
    let letters = until("all are dead letters", async || {
        let letters = installation.run(&["dead", "list", "-o", "json"]).json();
        (letters.as_array().unwrap().len() == 3).then(|| letters.as_array().unwrap().clone())
    })
    .await;
    let reasons: Vec<_> = letters.iter().map(|letter| letter["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons.iter().filter(|reason| **reason == "undecodable").count(), 2, "{reasons:?}");
    let letter = installation.run(&["dead", "show", &stray, "-o", "json"]).json();
    assert_eq!((letter["reason"].as_str(), letter["kind"].as_str()), (Some("unroutable"), Some("test.stray")));
    assert_eq!(letter["body"], json!({}));
    for letter in letters.iter().filter(|letter| letter["reason"] == "undecodable") {
        let shown = installation.run(&["dead", "show", letter["id"].as_str().unwrap(), "-o", "json"]).json();
        assert_eq!(shown["body_base64"], "/25vIGJvZHk=", "the exact bytes: {shown}");
    }
    until_equal("nothing is left over", Some(0), async || depth(&installation, "unrouted")).await;
    drop(up);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_broker_has_given_up_is_put_off_and_runs_alone_the_next_time() {
    let Some(installation) = Installation::on_servers("").await else { return };
    let keeper = installation.up(&["keeper", "gateway"]);
    let (rabbit, _) = installation.servers().unwrap();
    let (_connection, channel) = rabbit.channel().await;
    let (job, names) = (id(), rabbit.names());
    // As the broker's own dead-lettering leaves it: its routing key is still its kind.
    let body = codec::encode(&Probe::default()).unwrap();
    let mut headers = FieldTable::default();
    headers.insert("x-first-death-reason".into(), AMQPValue::LongString("delivery_limit".into()));
    let properties = BasicProperties::default().with_message_id(job.as_str().into()).with_headers(headers);
    let options = BasicPublishOptions::default();
    channel
        .basic_publish(names.dead().as_str().into(), "warren.probe".into(), options, &body, properties)
        .await
        .unwrap();
    let http = Http::to(keeper.gateway());
    let parked = until("it is put off", async || {
        let shown = installation.run(&["job", "show", &job, "-o", "json"]);
        (shown.code == 0).then(|| shown.json())
    })
    .await;
    assert_eq!(
        (parked["state"].as_str(), parked["reason"].as_str()),
        (Some("retrying"), Some("delivery_limit")),
        "{parked}"
    );
    assert_eq!((parked["run"].as_u64(), parked["failed_attempts"].as_u64()), (Some(2), Some(0)), "no attempt is spent");
    until_equal("the broker is rid of it", Some(0), async || depth(&installation, "dead")).await;
    // Not in a minute but now.
    let requeued = installation.run(&["job", "requeue", &job]);
    assert_eq!(requeued.code, 0, "{requeued:?}");
    let _rest = installation.up(&["worker", "dispatcher"]);
    let done = until("it has run", async || {
        let shown = installation.run(&["job", "show", &job, "-o", "json"]).json();
        (shown["state"] == "succeeded").then_some(shown)
    })
    .await;
    assert_eq!(done["run"], 3);
    drop(http);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keeper_that_is_killed_before_it_has_settled_keeps_everything_once() {
    let Some(installation) = Installation::on_servers("").await else { return };
    assert_eq!((installation.run(&["migrate"]).code, installation.run(&["topology", "apply"]).code), (0, 0));
    let (rabbit, _) = installation.servers().unwrap();
    let (_connection, channel) = rabbit.channel().await;
    let exchange = rabbit.names().jobs();
    let body = codec::encode(&Probe::default()).unwrap();
    for _ in 0..10 {
        let properties = BasicProperties::default().with_message_id(id().into());
        let options = BasicPublishOptions::default();
        channel.basic_publish(exchange.as_str().into(), "test.stray".into(), options, &body, properties).await.unwrap();
    }
    let mut doomed = installation.up_to_crash(&["keeper"], "keeper: recorded, not settled", 4);
    assert!(doomed.ended().await.code().is_none(), "it was killed");
    let _next = installation.up(&["keeper"]);
    until_equal("nothing is left over", Some(0), async || depth(&installation, "unrouted")).await;
    let letters = installation.run(&["dead", "list", "-o", "json"]).json();
    assert_eq!(letters.as_array().unwrap().len(), 10, "each once: {letters}");
}
