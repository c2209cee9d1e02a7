//! RabbitMQ: what only a broker behind a network must survive, and what other clients may do to it.

use std::{
    collections::HashSet,
    iter::repeat,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::future::join_all;
use lapin::{
    BasicProperties,
    options::{BasicPublishOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions},
    types::{AMQPValue, FieldTable},
};
use tokio::time::Instant;
use uuid::Uuid;
use warren::{
    broker::{
        Outgoing, Publish, PublishError, Subscribe,
        rabbitmq::{self, Consumer, Producer},
    },
    job::{Envelope, Kind},
};

use super::broker::{Basket, first, ids, receipts, second};
use crate::harness::{
    engines::RabbitPrefix,
    jobs::{BODY, envelope_of, kind},
    proxy::Proxy,
    wait::{until, until_equal},
};

/// RabbitMQ behind a proxy, and a way in through it.
async fn behind_a_proxy() -> Option<(RabbitPrefix, Proxy, Producer)> {
    let prefix = RabbitPrefix::create(&[&first(), &second()]).await?;
    let proxy = Proxy::before(prefix.address()).await;
    let producer = Producer::open(&prefix.settings_through(&prefix.through(proxy.port)), &[first(), second()]);
    until("connected", async || producer.health().ok()).await;
    Some((prefix, proxy, producer))
}

pub(super) fn outgoing(kind: &Kind) -> Outgoing {
    Outgoing { envelope: envelope_of(kind), body: BODY.to_vec() }
}

pub(super) async fn depth(prefix: &RabbitPrefix, kind: &Kind) -> u32 {
    let (_connection, channel) = prefix.channel().await;
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let queue = prefix.names().queue(kind);
    channel.queue_declare(queue.as_str().into(), options, FieldTable::default()).await.unwrap().message_count()
}

#[tokio::test(flavor = "multi_thread")]
async fn publishes_that_the_broker_refuses_are_told_so_among_thousands_that_it_takes() {
    let Some(prefix) = RabbitPrefix::create(&[&first(), &second()]).await else { return };
    // In place of the second kind's queue, one that is full from the beginning.
    let (_connection, channel) = prefix.channel().await;
    let queue = prefix.names().queue(&second());
    channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    let mut full = FieldTable::default();
    full.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    full.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    full.insert("x-max-length".into(), AMQPValue::LongLongInt(0));
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.as_str().into(), durable, full).await.unwrap();
    let (exchange, key) = (prefix.names().jobs(), second().to_string());
    let bind = QueueBindOptions::default();
    channel
        .queue_bind(queue.as_str().into(), exchange.as_str().into(), key.as_str().into(), bind, FieldTable::default())
        .await
        .unwrap();
    let producer = Arc::new(Producer::open(&prefix.settings(), &[first(), second()]));
    until("it is full", async || {
        (producer.publish(outgoing(&second())).await == Err(PublishError::Refused)).then_some(())
    })
    .await;

    let tasks: Vec<_> = (0..30)
        .map(|task| {
            let producer = producer.clone();
            tokio::spawn(async move {
                let refused: Vec<_> = (0..100).map(|number| number % 10 == 3).collect();
                let job = |refused: &bool| outgoing(&if *refused { second() } else { first() });
                // Those that are published together are answered in their order.
                let told = if task % 2 == 0 {
                    producer.publish_all(refused.iter().map(job).collect()).await
                } else {
                    join_all(refused.iter().map(job).map(|job| producer.publish(job))).await
                };
                refused.into_iter().zip(told).collect::<Vec<_>>()
            })
        })
        .collect();
    let (mut accepted, mut refused) = (0, 0);
    for task in tasks {
        for (should_be_refused, answer) in task.await.unwrap() {
            match answer {
                Ok(()) if !should_be_refused => accepted += 1,
                Err(PublishError::Refused) if should_be_refused => refused += 1,
                other => panic!("{should_be_refused}: {other:?}"),
            }
        }
    }
    assert_eq!((accepted, refused), (2700, 300));
    assert_eq!(depth(&prefix, &first()).await, 2700);
}

/// What is told to a job that comes alone, and to two that come together, at once.
async fn alone_and_two(producer: &Producer) -> (Result<(), PublishError>, Vec<Result<(), PublishError>>) {
    let two = vec![outgoing(&first()), outgoing(&first())];
    tokio::join!(producer.publish(outgoing(&first())), producer.publish_all(two))
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_broker_a_publish_is_turned_away_within_a_second_and_later_goes_through() {
    let Some((_prefix, proxy, producer)) = behind_a_proxy().await else { return };
    producer.publish(outgoing(&first())).await.unwrap();
    proxy.refuse(true);
    until("the loss is noticed", async || producer.health().err()).await;
    let began = Instant::now();
    let (alone, two) = alone_and_two(&producer).await;
    assert_eq!((alone, two), (Err(PublishError::Unavailable), vec![Err(PublishError::Unavailable); 2]));
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    proxy.refuse(false);
    until("it is back", async || producer.publish(outgoing(&first())).await.ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_confirm_that_does_not_come_is_an_unknown_outcome_and_the_job_may_well_be_there() {
    let Some((prefix, proxy, producer)) = behind_a_proxy().await else { return };
    producer.publish(outgoing(&first())).await.unwrap();
    proxy.mute_server(true);
    let began = Instant::now();
    let (alone, two) = alone_and_two(&producer).await;
    assert_eq!((alone, two), (Err(PublishError::OutcomeUnknown), vec![Err(PublishError::OutcomeUnknown); 2]));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    proxy.mute_server(false);
    until_equal("they were accepted all the same", 4, async || depth(&prefix, &first()).await).await;
    until("a new channel works", async || producer.publish(outgoing(&first())).await.ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_under_load_confuses_no_answer() {
    let Some((prefix, proxy, producer)) = behind_a_proxy().await else { return };
    let producer = Arc::new(producer);
    let publishers: Vec<_> = (0..4)
        .map(|publisher| {
            let producer = producer.clone();
            tokio::spawn(async move {
                let (mut confirmed, mut unknown) = (Vec::new(), Vec::new());
                for _ in 0..300 {
                    let mut jobs: Vec<_> = (0..=publisher % 2).map(|_| outgoing(&first())).collect();
                    let ids: Vec<_> = jobs.iter().map(|job| job.envelope.id).collect();
                    let told = match jobs.len() {
                        1 => vec![producer.publish(jobs.pop().unwrap()).await],
                        _ => producer.publish_all(jobs).await,
                    };
                    for (id, told) in ids.into_iter().zip(told) {
                        match told {
                            Ok(()) => confirmed.push(id),
                            Err(PublishError::OutcomeUnknown) => unknown.push(id),
                            Err(_) => {}
                        }
                    }
                }
                (confirmed, unknown)
            })
        })
        .collect();
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(40)).await;
        proxy.cut();
    }
    let (mut confirmed, mut unknown) = (HashSet::new(), HashSet::new());
    for publisher in publishers {
        let (yes, perhaps) = publisher.await.unwrap();
        confirmed.extend(yes);
        unknown.extend(perhaps);
    }
    let consumer = Consumer::open(&prefix.settings());
    let basket = Arc::<Basket>::default();
    let line = consumer.subscribe(&first(), 2000, basket.clone());
    basket.take(confirmed.len()).await.iter().for_each(|delivery| {
        let id = delivery.envelope.as_ref().unwrap().id;
        assert!(confirmed.remove(&id) || unknown.remove(&id), "one that was said not to be accepted came");
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    for id in ids(&basket.deliveries.lock().unwrap().drain(..).collect::<Vec<_>>()) {
        assert!(confirmed.remove(&id) || unknown.remove(&id), "one that was said not to be accepted came");
    }
    assert_eq!(confirmed, HashSet::new(), "one that was confirmed is lost");
    line.close().await;
}

/// How many that come together take two connections.
const MANY: usize = 100;

/// Publishes so many together, of which each is taken, and answers which connections have carried as much.
async fn carried(proxy: &Proxy, producer: &Producer, jobs: usize) -> Option<Vec<bool>> {
    // A job's id, its type and its routing key take more.
    const AT_LEAST: usize = 60;
    let before = proxy.said();
    let told = producer.publish_all((0..jobs).map(|_| outgoing(&first())).collect()).await;
    let said = proxy.said().into_iter().zip(before.into_iter().chain(repeat(0)));
    let carried = said.map(|(now, before)| now - before >= jobs * AT_LEAST).collect();
    (told == vec![Ok(()); jobs]).then_some(carried)
}

#[tokio::test(flavor = "multi_thread")]
async fn many_that_come_together_take_two_connections_in_turn_while_there_are_two() {
    let Some((prefix, proxy, producer)) = behind_a_proxy().await else { return };
    let taken = AtomicUsize::new(0);
    let carried = async |jobs| {
        let carried = carried(&proxy, &producer, jobs).await;
        taken.fetch_add(carried.as_ref().map_or(0, |_| jobs), SeqCst);
        carried
    };
    assert_eq!(carried(1).await, Some(vec![true]));
    assert_eq!(carried(10).await, Some(vec![true]), "few need no second one");
    until("the second one carries some", async || (carried(MANY).await? == [false, true]).then_some(())).await;
    assert_eq!(carried(MANY).await, Some(vec![true, false]));
    assert_eq!(carried(MANY).await, Some(vec![false, true]));
    for few in [1, 10] {
        assert_eq!(carried(few).await, Some(vec![true, false]), "few keep to the first");
    }

    proxy.refuse_new(true);
    proxy.cut_only(1);
    until("its loss is noticed", async || carried(MANY).await.and(carried(MANY).await)).await;
    for _ in 0..4 {
        assert_eq!(carried(MANY).await, Some(vec![true, false]));
    }
    proxy.refuse_new(false);
    until("it is there again", async || (carried(MANY).await? == [false, false, true]).then_some(())).await;

    proxy.refuse_new(true);
    proxy.cut_only(0);
    until("the loss of the first is noticed", async || producer.health().err()).await;
    for jobs in [1, MANY, MANY] {
        let told = producer.publish_all((0..jobs).map(|_| outgoing(&first())).collect()).await;
        assert_eq!(told, vec![Err(PublishError::Unavailable); jobs], "the second one only helps");
    }
    proxy.refuse_new(false);
    until("all is well", async || carried(1).await).await;
    let arrived = depth(&prefix, &first()).await as usize;
    // Of those that were on their way when a connection went, nobody knows.
    assert!(arrived >= taken.load(SeqCst), "{arrived} of {taken:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_with_nothing_to_catch_what_is_unroutable_takes_nothing_until_it_is_mended() {
    let Some((prefix, _proxy, producer)) = behind_a_proxy().await else { return };
    let (_connection, channel) = prefix.channel().await;
    let names = prefix.names();
    // The queue of the second kind and the net under the exchange.
    channel.queue_delete(names.queue(&second()).as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    channel.exchange_delete(names.unrouted().as_str().into(), ExchangeDeleteOptions::default()).await.unwrap();
    assert_eq!(producer.publish(outgoing(&second())).await, Err(PublishError::OutcomeUnknown));
    let broken = producer.health().unwrap_err();
    assert!(broken.contains("unroutable"), "{broken}");
    let began = Instant::now();
    let answer = producer.publish(outgoing(&first())).await;
    assert!(matches!(answer, Err(PublishError::Broken(_))), "{answer:?}");
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    rabbitmq::apply_topology(&prefix.settings(), &[first(), second()]).await.unwrap();
    until("mended", async || producer.publish(outgoing(&second())).await.ok()).await;
    assert_eq!(producer.health(), Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_loss_of_the_queue_for_unroutable_jobs_is_noticed_without_a_publish() {
    let Some((prefix, _proxy, producer)) = behind_a_proxy().await else { return };
    let (_connection, channel) = prefix.channel().await;
    let queue = prefix.names().unrouted();
    channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    let broken = until("noticed", async || producer.health().err()).await;
    assert!(broken.contains(&queue) && broken.contains("warren topology apply"), "{broken}");
    rabbitmq::apply_topology(&prefix.settings(), &[first()]).await.unwrap();
    until("mended", async || producer.health().ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_without_a_queue_is_caught_and_not_lost() {
    let Some((prefix, _proxy, producer)) = behind_a_proxy().await else { return };
    let stray = kind("test.stray");
    producer.publish(outgoing(&stray)).await.unwrap();
    let (_connection, channel) = prefix.channel().await;
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let queue = prefix.names().unrouted();
    let caught = channel.queue_declare(queue.as_str().into(), options, FieldTable::default()).await.unwrap();
    assert_eq!(caught.message_count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_deleted_and_declared_again_is_consumed_again() {
    let Some((prefix, _proxy, producer)) = behind_a_proxy().await else { return };
    let consumer = Consumer::open(&prefix.settings());
    let basket = Arc::<Basket>::default();
    let line = consumer.subscribe(&first(), 10, basket.clone());
    producer.publish(outgoing(&first())).await.unwrap();
    line.settle(&receipts(&basket.take(1).await));
    let (_connection, channel) = prefix.channel().await;
    let queue = prefix.names().queue(&first());
    channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    // The broker tells consumers of it after it has answered, and only as long as there is no new queue of that name.
    tokio::time::sleep(Duration::from_millis(500)).await;
    rabbitmq::apply_topology(&prefix.settings(), &[first()]).await.unwrap();
    producer.publish(outgoing(&first())).await.unwrap();
    let again = basket.take(1).await;
    assert!(again[0].receipt.epoch > 1, "another life of the line");
    line.settle(&receipts(&again));
    line.close().await;
    assert_eq!(depth(&prefix, &first()).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_settled_one_after_the_other_is_acknowledged_together() {
    // A frame with `basic.ack` in it: 7 and 1 bytes around it, 4 for its name, 8 for the tag, 1 for `multiple`.
    const ACK: usize = 21;
    let Some((prefix, proxy, producer)) = behind_a_proxy().await else { return };
    let consumer = Consumer::open(&prefix.settings_through(&prefix.through(proxy.port)));
    let basket = Arc::<Basket>::default();
    let line = consumer.subscribe(&first(), 1000, basket.clone());
    for _ in 0..100 {
        assert_eq!(producer.publish(outgoing(&first())).await, Ok(()));
    }
    let given = receipts(&basket.take(100).await);
    // The first connection is the producer's, who needs no other for jobs that come alone.
    let said = || proxy.said()[1];
    let (before, began) = (said(), Instant::now());
    for receipt in given {
        line.settle(&[receipt]);
        // Not all at once, which would be one acknowledgement anyhow.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    until("acknowledged", async || (said() > before).then_some(())).await;
    line.close().await;
    let (acknowledged, most) = ((said() - before) / ACK, began.elapsed().as_millis() / 20);
    // The end of the channel takes no more than two.
    assert!(acknowledged as u128 <= most + 3, "{acknowledged}, where {most} would do");
    assert_eq!(depth(&prefix, &first()).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_no_job_has_an_id_of_its_own_that_is_the_same_each_time() {
    let Some(prefix) = RabbitPrefix::create(&[&first()]).await else { return };
    let (_connection, channel) = prefix.channel().await;
    let exchange = prefix.names().jobs();
    let header = |name: &str, value: AMQPValue| {
        let mut headers = FieldTable::default();
        headers.insert(name.into(), value);
        BasicProperties::default().with_message_id("0190aaaa-bbbb-7ccc-8ddd-eeeeffff0000".into()).with_headers(headers)
    };
    let messages = [
        (BasicProperties::default(), "message_id"),
        (BasicProperties::default().with_message_id("not-a-uuid".into()), "message_id"),
        (header("x-warren-run", AMQPValue::LongString("two".into())), "x-warren-run"),
        (header("x-warren-run", AMQPValue::LongLongInt(-1)), "x-warren-run"),
        (header("x-warren-attempt", AMQPValue::LongLongInt(99_999)), "x-warren-attempt"),
        (header("x-warren-tenant", AMQPValue::LongString("Not A Tenant".into())), "tenant"),
    ];
    for (properties, _) in &messages {
        let options = BasicPublishOptions::default();
        let key = first().to_string();
        channel
            .basic_publish(exchange.as_str().into(), key.as_str().into(), options, b"raw", properties.clone())
            .await
            .unwrap();
    }
    let consumer = Consumer::open(&prefix.settings());
    let mut ids = Vec::new();
    for _ in 0..2 {
        let basket = Arc::<Basket>::default();
        let line = consumer.subscribe(&first(), 10, basket.clone());
        let came = basket.take(messages.len()).await;
        let bad: Vec<_> = came.iter().map(|delivery| delivery.envelope.clone().unwrap_err()).collect();
        for ((_, names), bad) in messages.iter().zip(&bad) {
            assert!(bad.problem.contains(names), "{}", bad.problem);
        }
        assert!(came.iter().all(|delivery| &delivery.body[..] == b"raw"), "its exact bytes");
        ids.push(bad.into_iter().map(|bad| bad.id).collect::<HashSet<_>>());
        // Not settled: they come once more.
        line.close().await;
    }
    assert_eq!(ids[0].len(), messages.len(), "each has its own");
    assert_eq!(ids[0], ids[1], "the same each time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_another_client_needs_no_header_of_ours() {
    let Some(prefix) = RabbitPrefix::create(&[&first()]).await else { return };
    let (_connection, channel) = prefix.channel().await;
    let id = Uuid::from_u128(0x0190_aaaa_bbbb_7ccc_8ddd_eeee_ffff_0000);
    let properties = BasicProperties::default().with_message_id(id.to_string().to_uppercase().into());
    let (exchange, key) = (prefix.names().jobs(), first().to_string());
    let options = BasicPublishOptions::default();
    channel.basic_publish(exchange.as_str().into(), key.as_str().into(), options, BODY, properties).await.unwrap();
    let consumer = Consumer::open(&prefix.settings());
    let basket = Arc::<Basket>::default();
    let _line = consumer.subscribe(&first(), 10, basket.clone());
    let came = basket.take(1).await;
    assert_eq!(came[0].envelope.as_deref(), Ok(&Envelope::new(id, first(), 1, 0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topology_that_stands_otherwise_is_an_error_that_names_the_difference() {
    let Some(prefix) = RabbitPrefix::create(&[&first()]).await else { return };
    let (_connection, channel) = prefix.channel().await;
    let queue = prefix.names().queue(&second());
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.as_str().into(), durable, FieldTable::default()).await.unwrap();
    let kinds = [first(), second()];
    let error = rabbitmq::apply_topology(&prefix.settings(), &kinds).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&queue) && text.contains("x-"), "{text}");
    let plans = rabbitmq::plan_topology(&prefix.settings(), &kinds).await.unwrap();
    let plan = |title: String| plans.iter().find(|(piece, _)| piece.title() == title).unwrap().1.clone();
    assert!(matches!(plan(format!("queue {queue}")), rabbitmq::topology::Plan::Differs(_)));
    assert_eq!(plan(format!("exchange {}", prefix.names().jobs())), rabbitmq::topology::Plan::Stands);
    channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    let plans = rabbitmq::plan_topology(&prefix.settings(), &kinds).await.unwrap();
    let plan = |title: String| plans.iter().find(|(piece, _)| piece.title() == title).unwrap().1.clone();
    assert_eq!(plan(format!("queue {queue}")), rabbitmq::topology::Plan::Make);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_taken_before_the_queues_of_all_kinds_stand() {
    let Some(prefix) = RabbitPrefix::reserve(vec![first(), second()]) else { return };
    let kinds = [first(), second()];
    rabbitmq::apply_topology(&prefix.settings(), &kinds[..1]).await.unwrap();
    let missing = rabbitmq::missing_topology(&prefix.settings(), &kinds).await.unwrap().unwrap();
    assert_eq!(missing.title(), format!("queue {}", prefix.names().queue(&second())));
    // The net for unroutable jobs stands, and would take it.
    let producer = Producer::open(&prefix.settings(), &kinds);
    let refused = producer.publish(outgoing(&second())).await.unwrap_err();
    assert!(matches!(refused, PublishError::Broken(_)), "{refused:?}");
    rabbitmq::apply_topology(&prefix.settings(), &kinds).await.unwrap();
    assert_eq!(rabbitmq::missing_topology(&prefix.settings(), &kinds).await.unwrap(), None);
    until("it is taken", async || producer.publish(outgoing(&second())).await.ok()).await;
    assert_eq!(depth(&prefix, &second()).await, 1);
}

/// Stops the process behind a queue in a broker that is ours alone, or lets it go on: as good as a queue that has lost its
/// majority.
fn hang(queue: &str, hangs: bool) -> Option<()> {
    let rabbitmqctl = std::env::var("WARREN_TEST_RABBITMQCTL").ok()?;
    let what = if hangs { "suspend" } else { "resume" };
    let code = format!("sys:{what}(binary_to_existing_atom(<<\"%2F_{queue}\">>, utf8)).");
    let done = std::process::Command::new(rabbitmqctl).args(["eval", &code]).output().unwrap();
    assert!(done.status.success(), "{done:?}");
    Some(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_hangs_takes_no_jobs_and_holds_up_no_other() {
    let Some((prefix, _proxy, producer)) = behind_a_proxy().await else { return };
    // A channel that meets a queue for the first time waits for it, and so do all others on that channel.
    for kind in [first(), second()] {
        until("it takes jobs", async || producer.publish(outgoing(&kind)).await.ok()).await;
    }
    let queue = prefix.names().queue(&first());
    if hang(&queue, true).is_none() {
        eprintln!("left out: the broker is not a private one");
        return;
    }
    let producer = Arc::new(producer);
    let first_one = tokio::spawn({
        let producer = producer.clone();
        async move { producer.publish(outgoing(&first())).await }
    });
    let until_then = Instant::now() + Duration::from_secs(12);
    let mut stuck = 0;
    while Instant::now() < until_then {
        assert_eq!(
            producer.publish(outgoing(&second())).await,
            Ok(()),
            "jobs of another kind go through all the while"
        );
        if first_one.is_finished() {
            let began = Instant::now();
            assert_eq!(producer.publish(outgoing(&first())).await, Err(PublishError::Stuck));
            assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
            stuck += 1;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(first_one.await.unwrap(), Err(PublishError::OutcomeUnknown));
    assert!(stuck > 10, "{stuck}");
    hang(&queue, false);
    until("it takes jobs again", async || producer.publish(outgoing(&first())).await.ok()).await;
    assert_eq!(depth(&prefix, &first()).await, 3, "the first, the one of which nothing was known, and the last");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_hangs_holds_up_no_other_job_of_many_that_come_together() {
    let Some((prefix, proxy, producer)) = behind_a_proxy().await else { return };
    // With one of the first kind among many of the second.
    let mixed = || (0..MANY).map(|number| outgoing(&if number == MANY / 2 { first() } else { second() })).collect();
    let expected = |told: Result<(), PublishError>| {
        let mut all = vec![Ok(()); MANY];
        all[MANY / 2] = told;
        all
    };
    until("both connections carry some", async || {
        (carried(&proxy, &producer, MANY).await? == [false, true]).then_some(())
    })
    .await;
    for _ in 0..2 {
        assert_eq!(producer.publish_all(mixed()).await, expected(Ok(())), "both channels have met both queues");
    }
    let queue = prefix.names().queue(&first());
    if hang(&queue, true).is_none() {
        eprintln!("left out: the broker is not a private one");
        return;
    }
    let others = async || {
        let told = producer.publish_all((0..MANY).map(|_| outgoing(&second())).collect()).await;
        assert_eq!(told, vec![Ok(()); MANY], "jobs of another kind go through all the while");
    };
    let mut one = std::pin::pin!(producer.publish_all(mixed()));
    let told = loop {
        tokio::select! {
            told = &mut one => break told,
            () = others() => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    };
    assert_eq!(told, expected(Err(PublishError::OutcomeUnknown)));
    for _ in 0..10 {
        let began = Instant::now();
        assert_eq!(producer.publish_all(mixed()).await, expected(Err(PublishError::Stuck)), "both have learned of it");
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        others().await;
    }
    hang(&queue, false);
    until("it takes jobs again", async || producer.publish(outgoing(&first())).await.ok()).await;
    assert_eq!(producer.publish_all(mixed()).await, expected(Ok(())));
}
