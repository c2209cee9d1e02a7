//! The broker port: what every broker does alike.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use uuid::Uuid;
use warren::{
    broker::{
        Delivery, Observe, Outgoing, Publish, Receipt, Sink, Subscribe, Subscription,
        embedded::Embedded,
        rabbitmq::{Consumer, Producer},
    },
    job::{Envelope, Key, Kind},
    sqlite::Database,
};

use crate::harness::{
    engines::{LiteFile, RabbitPrefix},
    jobs::{BODY, envelope_of, full_envelope_of, kind},
    proxy::Proxy,
    wait::{until, until_equal},
};

/// What a line gave out, in order.
#[derive(Default)]
pub(crate) struct Basket {
    pub(super) deliveries: Mutex<Vec<Delivery>>,
}

impl Sink for Basket {
    fn deliver(&self, burst: Vec<Delivery>) {
        assert!(!burst.is_empty());
        self.deliveries.lock().unwrap().extend(burst);
    }
}

impl Basket {
    pub(super) fn count(&self) -> usize {
        self.deliveries.lock().unwrap().len()
    }

    /// Waits for so many and takes them.
    pub(crate) async fn take(&self, count: usize) -> Vec<Delivery> {
        until_equal("deliveries", true, async || self.count() >= count).await;
        self.deliveries.lock().unwrap().drain(..count).collect()
    }

    /// Fails if anything comes within a moment.
    pub(super) async fn stays_empty(&self) {
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(self.count(), 0, "nothing more should come");
    }
}

pub(super) fn ids(deliveries: &[Delivery]) -> Vec<Uuid> {
    deliveries.iter().map(|delivery| delivery.envelope.as_ref().unwrap().id).collect()
}

pub(super) fn receipts(deliveries: &[Delivery]) -> Vec<Receipt> {
    deliveries.iter().map(|delivery| delivery.receipt).collect()
}

/// A broker under test.
enum Fixture {
    Rabbit { prefix: Box<RabbitPrefix>, proxy: Proxy, producer: Producer, consumer: Consumer },
    Lite { file: LiteFile, database: Arc<Database>, broker: Box<Embedded> },
}

pub(super) fn first() -> Kind {
    kind("test.first")
}

pub(super) fn second() -> Kind {
    kind("test.second")
}

async fn on_rabbitmq() -> Option<Fixture> {
    let prefix = Box::new(RabbitPrefix::create(&[&first(), &second()]).await?);
    let proxy = Proxy::before(prefix.address()).await;
    let producer = Producer::open(&prefix.settings(), &[first(), second()]);
    let consumer = Consumer::open(&prefix.settings_through(&prefix.through(proxy.port)));
    Some(Fixture::Rabbit { prefix, proxy, producer, consumer })
}

async fn on_sqlite() -> Option<Fixture> {
    let file = LiteFile::create();
    let database = file.open().await;
    let broker = Box::new(Embedded::open(database.clone()).await.unwrap());
    Some(Fixture::Lite { file, database, broker })
}

impl Fixture {
    fn way_in(&self) -> &dyn Publish {
        match self {
            Self::Rabbit { producer, .. } => producer,
            Self::Lite { broker, .. } => broker.as_ref(),
        }
    }

    fn way_out(&self) -> &dyn Subscribe {
        match self {
            Self::Rabbit { consumer, .. } => consumer,
            Self::Lite { broker, .. } => broker.as_ref(),
        }
    }

    async fn publish(&self, envelope: &Envelope) {
        let job = Outgoing { envelope: envelope.clone(), body: BODY.to_vec() };
        self.way_in().publish(job).await.unwrap();
    }

    async fn publish_many(&self, kind: &Kind, count: usize) -> Vec<Envelope> {
        let jobs: Vec<_> = (0..count).map(|_| envelope_of(kind)).collect();
        let together = jobs.iter().map(|envelope| Outgoing { envelope: envelope.clone(), body: BODY.to_vec() });
        let told = self.way_in().publish_all(together.collect()).await;
        assert_eq!(told, vec![Ok(()); count]);
        jobs
    }

    fn subscribe(&self, kind: &Kind, prefetch: u16) -> (Arc<Basket>, Arc<dyn Subscription>) {
        let basket = Arc::<Basket>::default();
        let line = self.way_out().subscribe(kind, prefetch, basket.clone());
        (basket, line)
    }

    async fn waiting(&self, kind: &Kind) -> u64 {
        let depths = match self {
            Self::Rabbit { producer, .. } => producer.depths(std::slice::from_ref(kind)).await,
            Self::Lite { broker, .. } => broker.depths(std::slice::from_ref(kind)).await,
        };
        depths.unwrap()[0]
    }

    /// What happens to a worker's side of the broker when its process dies: connections end, or the file is opened by
    /// the next process. Lines that were open are replaced by the caller's new ones.
    async fn crash(self, lines: Vec<Arc<dyn Subscription>>) -> Self {
        drop(lines);
        match self {
            Self::Rabbit { prefix, proxy, producer, consumer } => {
                proxy.cut();
                drop(consumer);
                let consumer = Consumer::open(&prefix.settings_through(&prefix.through(proxy.port)));
                Self::Rabbit { prefix, proxy, producer, consumer }
            }
            Self::Lite { file, database, broker } => {
                // Nothing is closed: the bytes that are on the disk now are all that the next process gets.
                let copy = LiteFile::create();
                for entry in std::fs::read_dir(file.folder.path()).unwrap() {
                    let entry = entry.unwrap();
                    std::fs::copy(entry.path(), copy.folder.path().join(entry.file_name())).unwrap();
                }
                drop((broker, database, file));
                let database = copy.open().await;
                let broker = Box::new(Embedded::open(database.clone()).await.unwrap());
                Self::Lite { file: copy, database, broker }
            }
        }
    }
}

/// Every case over every broker.
macro_rules! conformance {
    ($($case:ident),* $(,)?) => {
        mod rabbitmq_does {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                if let Some(fixture) = super::on_rabbitmq().await {
                    super::$case(fixture).await;
                }
            })*
        }
        mod embedded_does {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                if let Some(fixture) = super::on_sqlite().await {
                    super::$case(fixture).await;
                }
            })*
        }
    };
}

conformance!(
    what_was_published_comes_out_as_it_went_in,
    jobs_of_one_kind_come_in_order_and_those_of_another_do_not_come,
    jobs_that_are_published_together_come_in_their_order_however_many,
    jobs_come_once_and_in_their_order_however_publishing_and_giving_out_alternate,
    a_job_that_was_confirmed_survives_a_crash,
    what_was_not_settled_comes_again_after_a_crash_and_is_counted,
    many_of_several_kinds_that_were_out_are_all_counted_after_a_crash,
    what_was_settled_does_not_come_again,
    what_is_settled_around_others_leaves_them_and_other_kinds,
    no_more_than_the_prefetch_is_out_at_a_time,
    a_prefetch_can_be_changed_while_jobs_are_out,
    jobs_are_settled_in_any_order_around_a_slow_one,
    a_receipt_of_an_older_life_settles_nothing,
    what_is_given_back_goes_to_someone_else_and_is_counted,
    a_line_that_is_stopped_gives_nothing_more_and_can_still_settle,
    a_line_that_is_closed_leaves_what_is_out_to_others,
    lines_of_one_kind_share_its_jobs,
    publishes_of_many_tasks_at_once_are_each_confirmed,
);

async fn what_was_published_comes_out_as_it_went_in(fixture: Fixture) {
    let plain = envelope_of(&first());
    let full = Envelope { suspicion: warren::job::Suspicion::Crashed, ..full_envelope_of(&first()) };
    let keyed = Envelope { key: Key::Keyed, ..envelope_of(&first()) };
    let large = vec![7; 1 << 20];
    for (envelope, body) in [(&plain, BODY), (&full, &[]), (&keyed, &large)] {
        let job = Outgoing { envelope: envelope.clone(), body: body.to_vec() };
        fixture.way_in().publish(job).await.unwrap();
    }
    let (basket, _line) = fixture.subscribe(&first(), 10);
    let came = basket.take(3).await;
    assert_eq!(came[0].envelope.as_deref(), Ok(&plain));
    assert_eq!(came[1].envelope.as_deref(), Ok(&full));
    assert_eq!(came[2].envelope.as_deref(), Ok(&keyed));
    assert_eq!((&came[0].body[..], came[1].body.len(), &came[2].body[..]), (BODY, 0, &large[..]));
    assert!(came.iter().all(|delivery| delivery.given_before == 0));
}

async fn jobs_of_one_kind_come_in_order_and_those_of_another_do_not_come(fixture: Fixture) {
    let mut expected = Vec::new();
    for _ in 0..50 {
        fixture.publish(&envelope_of(&second())).await;
        let job = envelope_of(&first());
        fixture.publish(&job).await;
        expected.push(job.id);
    }
    let (basket, _line) = fixture.subscribe(&first(), 100);
    assert_eq!(ids(&basket.take(50).await), expected);
    basket.stays_empty().await;
    assert_eq!(fixture.waiting(&second()).await, 50);
}

async fn jobs_that_are_published_together_come_in_their_order_however_many(fixture: Fixture) {
    let (one, other) = (first(), second());
    let (jobs, others) = tokio::join!(fixture.publish_many(&one, 1500), fixture.publish_many(&other, 700));
    for (kind, jobs) in [(one, jobs), (other, others)] {
        let (basket, _line) = fixture.subscribe(&kind, 2000);
        assert_eq!(ids(&basket.take(jobs.len()).await), jobs.iter().map(|job| job.id).collect::<Vec<_>>());
    }
}

async fn jobs_come_once_and_in_their_order_however_publishing_and_giving_out_alternate(fixture: Fixture) {
    let (mut published, mut came) = (Vec::new(), Vec::new());
    let (basket, line) = fixture.subscribe(&first(), 8);
    for round in 0..40_usize {
        // More at once than there is room for, and fewer; large ones among them.
        for number in 0..[1, 20, 3, 9, 2][round % 5] {
            let job = envelope_of(&first());
            let length = if number % 4 == 3 { 200 << 10 } else { 10 };
            fixture.publish(&envelope_of(&second())).await;
            let publishing = fixture.way_in().publish(Outgoing { envelope: job.clone(), body: vec![7; length] });
            published.push(job.id);
            publishing.await.unwrap();
        }
        if round % 7 == 3 {
            line.stop().await;
        }
        if round % 7 == 5 {
            line.resume();
        }
        let now: Vec<_> = basket.deliveries.lock().unwrap().drain(..).collect();
        line.settle(&receipts(&now));
        came.extend(now);
    }
    line.resume();
    while came.len() < published.len() {
        let some = basket.take(1).await;
        line.settle(&receipts(&some));
        came.extend(some);
    }
    assert_eq!(ids(&came), published);
    assert!(came.iter().all(|delivery| delivery.given_before == 0));
    basket.stays_empty().await;
    line.close().await;
    assert_eq!(fixture.waiting(&first()).await, 0);
}

async fn a_job_that_was_confirmed_survives_a_crash(fixture: Fixture) {
    let jobs = fixture.publish_many(&first(), 20).await;
    let fixture = fixture.crash(Vec::new()).await;
    let (basket, _line) = fixture.subscribe(&first(), 100);
    let came = basket.take(20).await;
    let expected: HashSet<_> = jobs.iter().map(|job| job.id).collect();
    assert_eq!(ids(&came).into_iter().collect::<HashSet<_>>(), expected);
    assert!(came.iter().all(|delivery| delivery.given_before == 0), "none of them was ever given out");
}

async fn what_was_not_settled_comes_again_after_a_crash_and_is_counted(mut fixture: Fixture) {
    let jobs = fixture.publish_many(&first(), 3).await;
    for crashes in 0..3 {
        let (basket, line) = fixture.subscribe(&first(), 10);
        let came = basket.take(3).await;
        assert!(came.iter().all(|delivery| delivery.given_before == crashes), "{crashes}: {came:?}");
        fixture = fixture.crash(vec![line]).await;
    }
    let (basket, line) = fixture.subscribe(&first(), 10);
    let came = basket.take(3).await;
    assert_eq!(ids(&came).into_iter().collect::<HashSet<_>>(), jobs.iter().map(|job| job.id).collect());
    line.settle(&receipts(&came));
    line.close().await;
}

async fn many_of_several_kinds_that_were_out_are_all_counted_after_a_crash(fixture: Fixture) {
    let (one, other) = (first(), second());
    for _ in 0..6 {
        tokio::join!(fixture.publish_many(&one, 300), fixture.publish_many(&other, 200));
    }
    let mut lines = Vec::new();
    for (kind, count) in [(&one, 1700), (&other, 1100)] {
        // A few of each are not given out.
        let (basket, line) = fixture.subscribe(kind, count);
        assert!(basket.take(count.into()).await.iter().all(|delivery| delivery.given_before == 0));
        lines.push(line);
    }
    let fixture = fixture.crash(lines).await;
    for (kind, count, all) in [(&one, 1700, 1800), (&other, 1100, 1200)] {
        let (basket, _line) = fixture.subscribe(kind, 2000);
        let came = basket.take(all).await;
        let counted = came.iter().filter(|delivery| delivery.given_before == 1).count();
        // Those that were not given out may count too: the mark is ahead.
        assert!(counted >= count, "{counted} of {all}");
    }
}

async fn what_was_settled_does_not_come_again(fixture: Fixture) {
    fixture.publish_many(&first(), 10).await;
    let (basket, line) = fixture.subscribe(&first(), 10);
    let came = basket.take(10).await;
    line.settle(&receipts(&came[..7]));
    // Closing is what says that all that was settled has reached the broker.
    line.close().await;
    let expected: HashSet<_> = ids(&came[7..]).into_iter().collect();
    let (basket, line) = fixture.subscribe(&first(), 10);
    let left = basket.take(3).await;
    assert_eq!(ids(&left).into_iter().collect::<HashSet<_>>(), expected);
    basket.stays_empty().await;
    line.settle(&receipts(&left));
    line.close().await;
    assert_eq!(fixture.waiting(&first()).await, 0);
}

async fn what_is_settled_around_others_leaves_them_and_other_kinds(fixture: Fixture) {
    for _ in 0..9 {
        fixture.publish(&envelope_of(&second())).await;
        fixture.publish(&envelope_of(&first())).await;
    }
    let (basket, line) = fixture.subscribe(&first(), 10);
    let came = basket.take(9).await;
    line.stop().await;
    line.give_back(&[came[4].receipt]);
    let others = [0, 1, 3, 5, 6, 8].map(|number| came[number].receipt);
    line.settle(&others);
    line.close().await;
    let fixture = fixture.crash(Vec::new()).await;
    let (basket, _line) = fixture.subscribe(&first(), 10);
    let left: HashSet<_> = ids(&basket.take(3).await).into_iter().collect();
    assert_eq!(left, [2, 4, 7].map(|number| came[number].envelope.as_ref().unwrap().id).into());
    basket.stays_empty().await;
    assert_eq!(fixture.waiting(&second()).await, 9);
}

async fn no_more_than_the_prefetch_is_out_at_a_time(fixture: Fixture) {
    fixture.publish_many(&first(), 20).await;
    let (basket, line) = fixture.subscribe(&first(), 4);
    let came = basket.take(4).await;
    basket.stays_empty().await;
    line.settle(&receipts(&came[..3]));
    basket.take(3).await;
    basket.stays_empty().await;
}

async fn a_prefetch_can_be_changed_while_jobs_are_out(fixture: Fixture) {
    fixture.publish_many(&first(), 40).await;
    let (basket, line) = fixture.subscribe(&first(), 4);
    let mut came = basket.take(4).await;
    line.set_prefetch(20);
    came.extend(basket.take(16).await);
    // To RabbitMQ this is another consumer, against which what was out before does not count.
    tokio::time::sleep(Duration::from_millis(200)).await;
    came.extend(basket.deliveries.lock().unwrap().drain(..));
    assert!(came.len() <= 24, "{}", came.len());
    line.set_prefetch(2);
    tokio::time::sleep(Duration::from_millis(200)).await;
    came.extend(basket.deliveries.lock().unwrap().drain(..));
    // What was out before is settled under the very same receipts.
    line.settle(&receipts(&came));
    let more = basket.take(2).await;
    basket.stays_empty().await;
    line.settle(&receipts(&more));
    came.extend(basket.take(2).await);
    assert_eq!(ids(&came).into_iter().collect::<HashSet<_>>().len(), came.len(), "each came once");
}

async fn jobs_are_settled_in_any_order_around_a_slow_one(fixture: Fixture) {
    fixture.publish_many(&first(), 300).await;
    let (basket, line) = fixture.subscribe(&first(), 100);
    let mut came = basket.take(100).await;
    let slow = came.remove(0);
    // Backwards, one at a time, with a pause in which those behind the slow one go singly.
    for delivery in came.iter().rev() {
        line.settle(&[delivery.receipt]);
    }
    let more = basket.take(99).await;
    tokio::time::sleep(Duration::from_millis(60)).await;
    line.settle(&[slow.receipt]);
    line.settle(&receipts(&more));
    let mut last = basket.take(100).await;
    line.settle(&receipts(&last));
    last.extend(basket.take(1).await);
    line.settle(&receipts(&last[100..]));
    let epochs: HashSet<_> = last.iter().chain(&more).map(|delivery| delivery.receipt.epoch).collect();
    assert_eq!(epochs, HashSet::from([slow.receipt.epoch]), "the line was never lost");
    line.close().await;
    assert_eq!(fixture.waiting(&first()).await, 0, "nothing was left behind");
}

async fn a_receipt_of_an_older_life_settles_nothing(fixture: Fixture) {
    fixture.publish_many(&first(), 2).await;
    let (basket, line) = fixture.subscribe(&first(), 10);
    let came = basket.take(2).await;
    let older = came.iter().map(|delivery| Receipt { epoch: delivery.receipt.epoch + 1, ..delivery.receipt });
    line.settle(&older.collect::<Vec<_>>());
    line.settle(&[Receipt { tag: 10_000, ..came[0].receipt }]);
    line.close().await;
    let (basket, _line) = fixture.subscribe(&first(), 10);
    basket.take(2).await;
}

async fn what_is_given_back_goes_to_someone_else_and_is_counted(fixture: Fixture) {
    fixture.publish_many(&first(), 2).await;
    let (basket, line) = fixture.subscribe(&first(), 10);
    let came = basket.take(2).await;
    line.stop().await;
    let (other_basket, _other) = fixture.subscribe(&first(), 10);
    line.give_back(&[came[0].receipt]);
    let again = other_basket.take(1).await;
    assert_eq!(ids(&again), ids(&came[..1]));
    assert_eq!(again[0].given_before, 1);
    other_basket.stays_empty().await;
}

async fn a_line_that_is_stopped_gives_nothing_more_and_can_still_settle(fixture: Fixture) {
    fixture.publish_many(&first(), 20).await;
    let (basket, line) = fixture.subscribe(&first(), 5);
    basket.take(5).await;
    line.stop().await;
    let out = basket.deliveries.lock().unwrap().drain(..).collect::<Vec<_>>();
    assert_eq!(out.len(), 0);
    fixture.publish_many(&first(), 5).await;
    basket.stays_empty().await;
    line.close().await;
    until_equal("all of them wait", 25, async || fixture.waiting(&first()).await).await;
}

async fn a_line_that_is_closed_leaves_what_is_out_to_others(fixture: Fixture) {
    fixture.publish_many(&first(), 6).await;
    let (basket, line) = fixture.subscribe(&first(), 6);
    let came = basket.take(6).await;
    line.settle(&receipts(&came[..2]));
    line.close().await;
    let (basket, _line) = fixture.subscribe(&first(), 10);
    let left = basket.take(4).await;
    assert_eq!(ids(&left).into_iter().collect::<HashSet<_>>(), ids(&came[2..]).into_iter().collect());
    assert!(left.iter().all(|delivery| delivery.given_before == 1));
}

async fn lines_of_one_kind_share_its_jobs(fixture: Fixture) {
    let (left, one) = fixture.subscribe(&first(), 10);
    let (right, two) = fixture.subscribe(&first(), 10);
    let jobs = fixture.publish_many(&first(), 200).await;
    let mut came = BTreeMap::new();
    until("all have come", async || {
        for (side, (basket, line)) in [(&left, &one), (&right, &two)].into_iter().enumerate() {
            let deliveries: Vec<_> = basket.deliveries.lock().unwrap().drain(..).collect();
            line.settle(&receipts(&deliveries));
            for id in ids(&deliveries) {
                assert_eq!(came.insert(id, side), None, "each goes to one line");
            }
        }
        (came.len() == jobs.len()).then_some(())
    })
    .await;
    let sides: HashSet<_> = came.values().collect();
    assert_eq!(sides.len(), 2, "both lines have worked");
}

async fn publishes_of_many_tasks_at_once_are_each_confirmed(fixture: Fixture) {
    let fixture = Arc::new(fixture);
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let fixture = fixture.clone();
            tokio::spawn(async move { fixture.publish_many(&first(), 250).await.len() })
        })
        .collect();
    let mut confirmed = 0;
    for task in tasks {
        confirmed += task.await.unwrap();
    }
    assert_eq!(confirmed, 2000);
    assert_eq!(fixture.waiting(&first()).await, 2000);
}

// What only a broker behind a network must survive.
