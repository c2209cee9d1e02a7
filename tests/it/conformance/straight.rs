//! RabbitMQ: jobs that go straight to their queue, and what becomes of them when it is gone.

use std::{
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use lapin::{
    options::{QueueDeclareOptions, QueueDeleteOptions},
    types::FieldTable,
};
use warren::{
    broker::{
        Publish, PublishError,
        rabbitmq::{self, Producer},
    },
    job::Kind,
};

use super::{
    broker::{first, second},
    rabbitmq::{depth, outgoing},
};
use crate::harness::{
    engines::RabbitPrefix,
    wait::{until, until_equal},
};

async fn open(prefix: &RabbitPrefix) -> Arc<Producer> {
    let producer = Arc::new(Producer::open(&prefix.settings(), &[first(), second()]));
    until("connected", async || producer.health().ok()).await;
    producer
}

/// How many messages lie where what is unroutable lies.
async fn unrouted(prefix: &RabbitPrefix) -> u32 {
    let (_connection, channel) = prefix.channel().await;
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let queue = prefix.names().unrouted();
    channel.queue_declare(queue.as_str().into(), options, FieldTable::default()).await.unwrap().message_count()
}

async fn unbind(prefix: &RabbitPrefix, kind: &Kind) {
    let (_connection, channel) = prefix.channel().await;
    let (names, key) = (prefix.names(), kind.as_str().into());
    let (queue, exchange) = (names.queue(kind).as_str().into(), names.jobs().as_str().into());
    channel.queue_unbind(queue, exchange, key, FieldTable::default()).await.unwrap();
}

async fn delete(prefix: &RabbitPrefix, kind: &Kind) {
    let (_connection, channel) = prefix.channel().await;
    let queue = prefix.names().queue(kind);
    channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_reaches_a_queue_that_stands_without_a_binding() {
    let Some(prefix) = RabbitPrefix::create(&[&first(), &second()]).await else { return };
    let producer = open(&prefix).await;
    unbind(&prefix, &first()).await;
    producer.publish(outgoing(&first())).await.unwrap();
    assert_eq!((depth(&prefix, &first()).await, unrouted(&prefix).await), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_thousands_those_whose_queue_is_gone_are_caught_and_no_answer_is_another_jobs() {
    let Some(prefix) = RabbitPrefix::create(&[&first(), &second()]).await else { return };
    let producer = open(&prefix).await;
    producer.publish(outgoing(&second())).await.unwrap();
    delete(&prefix, &second()).await;
    let tasks = (0..30).map(|task| {
        let producer = producer.clone();
        tokio::spawn(async move {
            let job = |number: &u32| outgoing(&if number % 10 == 3 { second() } else { first() });
            let jobs: Vec<_> = (0..100).collect();
            if task % 2 == 0 {
                producer.publish_all(jobs.iter().map(job).collect()).await
            } else {
                join_all(jobs.iter().map(job).map(|job| producer.publish(job))).await
            }
        })
    });
    let answers: Vec<_> = join_all(tasks).await.into_iter().flat_map(Result::unwrap).collect();
    assert_eq!(answers, vec![Ok(()); 3000]);
    assert_eq!(
        (depth(&prefix, &first()).await, unrouted(&prefix).await),
        (2700, 300),
        "each is where it must be, once"
    );
    assert_eq!(producer.health(), Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_that_come_back_together_each_is_caught_before_it_is_told_to_be_safe() {
    let kinds: Vec<_> = (0..20).map(|number| Kind::new(&format!("test.gone-{number}")).unwrap()).collect();
    let Some(prefix) = RabbitPrefix::create(&kinds.iter().collect::<Vec<_>>()).await else { return };
    let producer = Arc::new(Producer::open(&prefix.settings(), &kinds));
    until("connected", async || producer.health().ok()).await;
    for kind in &kinds {
        // To a queue that stands, so that nothing is left of the time before it was looked for.
        producer.publish(outgoing(kind)).await.unwrap();
    }
    for kind in &kinds {
        delete(&prefix, kind).await;
    }
    let tasks = kinds.into_iter().map(|kind| {
        let producer = producer.clone();
        tokio::spawn(async move { join_all((0..100).map(|_| producer.publish(outgoing(&kind)))).await })
    });
    let answers: Vec<_> = join_all(tasks).await.into_iter().flat_map(Result::unwrap).collect();
    assert_eq!(answers, vec![Ok(()); 2000]);
    assert_eq!(unrouted(&prefix).await, 2000, "each is there, once");
    assert_eq!(producer.health(), Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_go_straight_again_when_their_queue_stands_again() {
    let Some(prefix) = RabbitPrefix::create(&[&first(), &second()]).await else { return };
    let producer = open(&prefix).await;
    delete(&prefix, &first()).await;
    producer.publish(outgoing(&first())).await.unwrap();
    until_equal("caught", 1, async || unrouted(&prefix).await).await;
    rabbitmq::apply_topology(&prefix.settings(), &[first(), second()]).await.unwrap();
    unbind(&prefix, &first()).await;
    until("one reaches it without a binding", async || {
        producer.publish(outgoing(&first())).await.unwrap();
        (depth(&prefix, &first()).await > 0).then_some(())
    })
    .await;
}

/// A user of the broker who may do no more than is said, for as long as this is held.
struct User {
    rabbitmqctl: String,
    name: String,
    /// As a pattern.
    exchange: String,
}

impl User {
    /// One who may publish to the exchange for jobs, and straight to their queues.
    fn create(prefix: &RabbitPrefix) -> Option<Self> {
        let Ok(rabbitmqctl) = std::env::var("WARREN_TEST_RABBITMQCTL") else {
            eprintln!("left out: the broker is not a private one");
            return None;
        };
        let this =
            Self { rabbitmqctl, name: prefix.prefix.clone(), exchange: prefix.names().jobs().replace('.', r"\.") };
        this.run(&["add_user", &this.name, "secret"]);
        this.may_write(&format!("^({}|amq\\.default)$", this.exchange));
        Some(this)
    }

    /// From now on he may only do the first.
    fn may_no_longer_go_straight(&self) {
        self.may_write(&format!("^{}$", self.exchange));
    }

    fn may_write(&self, to: &str) {
        self.run(&["set_permissions", "-p", "/", &self.name, "", to, ".*"]);
    }

    fn url(&self, prefix: &RabbitPrefix) -> String {
        format!("amqp://{}:secret@{}/%2f", self.name, prefix.address())
    }

    fn run(&self, arguments: &[&str]) {
        let done = Command::new(&self.rabbitmqctl).args(arguments).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    }
}

impl Drop for User {
    fn drop(&mut self) {
        _ = Command::new(&self.rabbitmqctl).args(["delete_user", &self.name]).output();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_may_publish_to_the_exchange_alone_goes_through_it() {
    let Some(prefix) = RabbitPrefix::create(&[&first(), &second()]).await else { return };
    let Some(user) = User::create(&prefix) else { return };
    let producer = Producer::open(&prefix.settings_through(&user.url(&prefix)), &[first(), second()]);
    until("connected", async || producer.health().ok()).await;
    unbind(&prefix, &second()).await;
    producer.publish(outgoing(&second())).await.unwrap();
    assert_eq!((depth(&prefix, &second()).await, unrouted(&prefix).await), (1, 0), "straight");

    user.may_no_longer_go_straight();
    let narrow = Producer::open(&prefix.settings_through(&user.url(&prefix)), &[first(), second()]);
    until("connected", async || narrow.health().ok()).await;
    narrow.publish(outgoing(&second())).await.unwrap();
    assert_eq!((depth(&prefix, &second()).await, unrouted(&prefix).await), (1, 1), "through the exchange");
    assert_eq!(narrow.publish_all(vec![outgoing(&first()); 10]).await, vec![Ok(()); 10]);
    assert_eq!(depth(&prefix, &first()).await, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_no_longer_publish_straight_loses_a_moment_and_nothing_else() {
    let Some(prefix) = RabbitPrefix::create(&[&first(), &second()]).await else { return };
    let Some(user) = User::create(&prefix) else { return };
    let proxy = crate::harness::proxy::Proxy::before(prefix.address()).await;
    let through = user.url(&prefix).replace(&prefix.address(), &format!("127.0.0.1:{}", proxy.port));
    let producer = Producer::open(&prefix.settings_through(&through), &[first(), second()]);
    until("connected", async || producer.health().ok()).await;
    producer.publish(outgoing(&first())).await.unwrap();
    user.may_no_longer_go_straight();
    proxy.cut();
    let mut told = Vec::new();
    until("it is taken", async || {
        told.push(producer.publish(outgoing(&first())).await);
        told.last().unwrap().is_ok().then_some(())
    })
    .await;
    let unknown = told.iter().filter(|told| **told == Err(PublishError::OutcomeUnknown)).count();
    assert!(unknown <= 2, "{told:?}");
    // Also while it is looked at again, a second after it was found out.
    let since = Instant::now();
    while since.elapsed() < Duration::from_millis(2500) {
        let answers = join_all((0..50).map(|_| producer.publish(outgoing(&first())))).await;
        assert_eq!(answers, vec![Ok(()); 50], "it stays so");
    }
}
