//! What single steps of a job's way cost: reading and writing bodies, ids, what may be acknowledged, and recording.
//!
//! `cargo bench`; the figures are of one thread and one machine, and are for telling two builds apart.

use std::{hint::black_box, sync::Arc};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use warren::{
    broker::rabbitmq::Window,
    clock,
    id::{Minter, Secret},
    job::{Completion, Envelope, Kind, Outcome, Tenant},
    sqlite::{Database, Use},
    store::{Installation as _, Store as _, sqlite::Sqlite},
};
use warren_messages::{codec, webhook::Deliver};

const BODY: &str = r#"{"url":"https://example.com/hook","event_type":"order.paid","event_id":"evt_1","body":{"to":"someone@example.com","subject":"hello hello hello hello hello hello hello hello","data":[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15]}}"#;
/// As much as one commit takes at most.
const BATCH: usize = 500;
/// A prefetch.
const TAGS: u64 = 1000;

fn kind() -> Kind {
    Kind::new("bench.step").expect("a good name")
}

fn minter() -> Minter {
    let secret = || Secret::generate().expect("randomness");
    Minter::new(&secret(), &[secret()]).expect("randomness")
}

fn bodies(criterion: &mut Criterion) {
    let message: Deliver = codec::from_json(BODY.as_bytes()).expect("a good body");
    let encoded = codec::encode(&message).expect("it fits");
    let mut group = criterion.benchmark_group("body");
    group.throughput(Throughput::Bytes(BODY.len() as u64));
    group.bench_function("from JSON", |bencher| {
        bencher.iter(|| codec::from_json::<Deliver>(black_box(BODY.as_bytes())));
    });
    group.bench_function("to MessagePack", |bencher| bencher.iter(|| codec::encode(black_box(&message))));
    group.bench_function("from MessagePack", |bencher| {
        bencher.iter(|| codec::decode::<Deliver>(1, black_box(&encoded)));
    });
    group.bench_function("to JSON", |bencher| bencher.iter(|| codec::to_json(black_box(&encoded))));
}

fn ids(criterion: &mut Criterion) {
    let (minter, tenant, kind) = (minter(), Tenant::DEFAULT, kind());
    let id = minter.mint(&tenant, clock::now());
    let mut group = criterion.benchmark_group("id");
    group.bench_function("mint", |bencher| bencher.iter(|| minter.mint(black_box(&tenant), 1_700_000_000_000_000)));
    group.bench_function("make from a key", |bencher| {
        bencher.iter(|| minter.keyed(black_box(&tenant), "bench", &kind, "order-117"));
    });
    group.bench_function("know again", |bencher| bencher.iter(|| minter.origin(black_box(&tenant), id)));
}

fn settling(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("settle");
    group.throughput(Throughput::Elements(TAGS));
    group.bench_function("a thousand tags in order", |bencher| {
        bencher.iter(|| {
            let mut window = Window::new();
            (1..=TAGS).for_each(|tag| _ = window.give_out(tag));
            (1..=TAGS).for_each(|tag| window.settle(tag));
            window.take_beginning()
        });
    });
    group.bench_function("a thousand tags, one of them slow", |bencher| {
        bencher.iter(|| {
            let mut window = Window::new();
            (1..=TAGS).for_each(|tag| _ = window.give_out(tag));
            (2..=TAGS).for_each(|tag| window.settle(tag));
            (window.take_beginning(), window.take_stragglers())
        });
    });
}

fn successes(minter: &Minter, kind: &Kind) -> Arc<Vec<Completion>> {
    let output = codec::encode(&serde_json::json!({ "ok": true })).expect("it fits");
    let success = |_| Completion {
        envelope: Envelope::new(minter.mint(&Tenant::DEFAULT, clock::now()), kind.clone(), 1, clock::now()).into(),
        body: None,
        outcome: Outcome::Succeeded { output: output.clone(), follow_ups: Vec::new() },
    };
    let mut batch: Vec<_> = (0..BATCH).map(success).collect();
    batch.sort_by_key(|completion| completion.envelope.id);
    Arc::new(batch)
}

fn recording(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let folder = tempfile::tempdir().expect("a folder");
    let (database, mut lane) = runtime.block_on(async {
        let database = Arc::new(Database::open(folder.path(), Use::Owner).await.expect("a file"));
        let store = Sqlite::new(database.clone());
        store.migrate().await.expect("a schema");
        (database, store.lane())
    });
    let (minter, kind) = (minter(), kind());
    let mut group = criterion.benchmark_group("record");
    group.throughput(Throughput::Elements(BATCH as u64)).sample_size(20);
    group.bench_function("a batch of successes on SQLite", |bencher| {
        bencher.iter_batched(
            || successes(&minter, &kind),
            |batch| runtime.block_on(lane.record(&batch, 0..BATCH)).expect("recorded"),
            BatchSize::PerIteration,
        );
    });
    drop(lane);
    runtime.block_on(database.close());
}

criterion_group!(steps, bodies, ids, settling, recording);
criterion_main!(steps);
