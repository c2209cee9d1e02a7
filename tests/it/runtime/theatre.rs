//! An engine with a worker and a dispatcher on it, and a job that does what a test tells it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use uuid::Uuid;
use warren::{
    broker::{
        Observe, Outgoing, Publish, Subscribe,
        embedded::Embedded,
        rabbitmq::{Consumer, Producer},
    },
    dispatcher::Dispatcher,
    id::{Minter, Secret},
    job::{Envelope, Kind, Tenant},
    runtime::{Drained, Runtime, Settings, registry::Registry},
    store::{JobRecord, Store, postgres::Postgres, sqlite::Sqlite},
};
use warren_messages::{DecodeError, Message, codec};
use warren_workers::{Backoff, Context, Disposition, Job, Policy, WorkError, Worker};

use crate::harness::{
    engines::{LiteFile, PgDatabase, RabbitPrefix},
    jobs::{envelope_of, kind},
    proxy::Proxy,
    wait::{until, until_equal},
};

/// What a job of these tests does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Act {
    Succeed,
    /// Waits until the test lets it go on.
    Wait,
    FailOnce,
    Fail,
    Die,
    /// Dies the first time that it is run at all.
    DieOnce,
    Snooze,
    Panic,
    Hang,
    Block,
    /// Asks for a follow-up job that succeeds.
    Emit,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Play {
    pub(super) act: Act,
}

impl Message for Play {
    const KIND: &'static str = "test.play";
    const VERSION: u16 = 2;

    /// Version 1 called it `do`.
    fn upcast(version: u16, mut body: serde_json::Value) -> Result<serde_json::Value, DecodeError> {
        match body.as_object_mut().and_then(|map| map.remove("do")) {
            Some(act) if version == 1 => Ok(serde_json::json!({ "act": act })),
            _ => Err(DecodeError::UnknownVersion { version, reads: Self::VERSION }),
        }
    }
}

/// What the next build makes of it.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(super) struct PlayNext {
    pub(super) acts: Vec<Act>,
}

impl Message for PlayNext {
    const KIND: &'static str = "test.play";
    const VERSION: u16 = 3;
}

pub(super) struct PlayerNext;

impl Worker for PlayerNext {
    type Message = PlayNext;
    type Output = usize;
    type Error = Told;

    async fn perform(&self, job: Job<PlayNext>, _: &mut Context) -> Result<usize, Told> {
        Ok(job.message.acts.len())
    }
}

/// What the test and its worker share.
#[derive(Default)]
pub(super) struct Stage {
    pub(super) started: Mutex<HashMap<Uuid, u32>>,
    pub(super) running: AtomicUsize,
    pub(super) most: AtomicUsize,
    curtain: Option<Semaphore>,
}

impl Stage {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { curtain: Some(Semaphore::new(0)), ..Self::default() })
    }

    pub(super) fn starts(&self, id: Uuid) -> u32 {
        self.started.lock().unwrap().get(&id).copied().unwrap_or(0)
    }

    pub(super) fn let_go(&self, count: usize) {
        self.curtain.as_ref().unwrap().add_permits(count);
    }
}

pub(super) struct Player {
    pub(super) stage: Arc<Stage>,
    policy: Policy,
}

#[derive(Debug, thiserror::Error)]
#[error("it was told to")]
pub(super) struct Told(Disposition);

impl WorkError for Told {
    fn disposition(&self) -> Disposition {
        self.0
    }

    fn code(&self) -> &'static str {
        "told"
    }
}

impl Worker for Player {
    type Message = Play;
    type Output = u16;
    type Error = Told;

    async fn perform(&self, job: Job<Play>, cx: &mut Context) -> Result<u16, Told> {
        let starts = {
            let mut started = self.stage.started.lock().unwrap();
            let starts = started.entry(job.id).or_default();
            *starts += 1;
            *starts
        };
        let running = self.stage.running.fetch_add(1, SeqCst) + 1;
        self.stage.most.fetch_max(running, SeqCst);
        let _running = OnDrop(|| _ = self.stage.running.fetch_sub(1, SeqCst));
        match job.message.act {
            Act::Succeed => {}
            Act::Wait => self.stage.curtain.as_ref().unwrap().acquire().await.unwrap().forget(),
            Act::FailOnce if cx.attempt() > 1 => {}
            Act::FailOnce | Act::Fail => return Err(Told(Disposition::Retry)),
            Act::Die => return Err(Told(Disposition::DeadLetter)),
            Act::DieOnce if starts > 1 => {}
            Act::DieOnce => return Err(Told(Disposition::DeadLetter)),
            Act::Snooze if starts > 2 => {}
            Act::Snooze => return Err(Told(Disposition::Snooze(Duration::from_millis(10)))),
            Act::Panic => panic!("told to"),
            Act::Hang => std::future::pending().await,
            Act::Block => block(),
            Act::Emit => cx.emit(&Play { act: Act::Succeed }).unwrap(),
        }
        Ok(cx.attempt())
    }

    fn policy(&self) -> Policy {
        self.policy
    }
}

struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Keeps its thread for longer than any test waits.
fn block() {
    let until = std::time::Instant::now() + Duration::from_mins(2);
    while std::time::Instant::now() < until {
        std::thread::park_timeout(Duration::from_secs(1));
    }
}

pub(super) fn policy() -> Policy {
    let backoff = Backoff { base: Duration::from_millis(20), factor: 1.0, cap: Duration::from_millis(20) };
    Policy { concurrency: 10, timeout: Duration::from_secs(30), attempts: 3, backoff, ..Policy::default() }
}

/// An engine with a worker and a dispatcher on it.
pub(super) struct Theatre {
    pub(super) stage: Arc<Stage>,
    pub(super) way_in: Arc<dyn Publish>,
    pub(super) observe: Arc<dyn Observe>,
    pub(super) way_out: Arc<dyn Subscribe>,
    pub(super) store: Arc<dyn Store>,
    /// The same data, past the proxy.
    pub(super) observer: Arc<dyn Store>,
    pub(super) minter: Arc<Minter>,
    pub(super) runtime: Option<Runtime>,
    stop: tokio_util::sync::CancellationToken,
    /// In front of the database, where it is behind a network.
    pub(super) proxy: Option<Proxy>,
    _keep: Box<dyn std::any::Any + Send>,
}

pub(super) fn play() -> Kind {
    kind(Play::KIND)
}

impl Theatre {
    pub(super) fn open(
        way_in: (Arc<dyn Publish>, Arc<dyn Observe>),
        way_out: Arc<dyn Subscribe>,
        (store, observer): (Arc<dyn Store>, Arc<dyn Store>),
        proxy: Option<Proxy>,
        keep: Box<dyn std::any::Any + Send>,
    ) -> Self {
        let minter = Minter::new(&Secret::generate().unwrap(), &[Secret::generate().unwrap()]).unwrap();
        let stop = tokio_util::sync::CancellationToken::new();
        tokio::spawn(Dispatcher::new(store.clone(), way_in.0.clone()).run(stop.clone()));
        Self {
            stage: Stage::new(),
            way_in: way_in.0,
            observe: way_in.1,
            way_out,
            store,
            observer,
            minter: Arc::new(minter),
            runtime: None,
            stop,
            proxy,
            _keep: keep,
        }
    }

    pub(super) async fn on_servers() -> Option<Self> {
        let prefix = RabbitPrefix::create(&[&play()]).await?;
        let database = PgDatabase::create().await?;
        let observer = Arc::new(database.store().await);
        let proxy = Proxy::before(database.address()).await;
        let store = Arc::new(Postgres::new(database.through(proxy.port).parse().unwrap()));
        let producer = Arc::new(Producer::open(&prefix.settings(), &[play()]));
        let consumer = Arc::new(Consumer::open(&prefix.settings()));
        Some(Self::open(
            (producer.clone(), producer),
            consumer,
            (store, observer),
            Some(proxy),
            Box::new((prefix, database)),
        ))
    }

    pub(super) async fn embedded() -> Option<Self> {
        let file = LiteFile::create();
        let database = file.open().await;
        let store = Arc::new(Sqlite::new(database.clone()));
        let broker = Arc::new(Embedded::open(database).await.unwrap());
        Some(Self::open((broker.clone(), broker.clone()), broker, (store.clone(), store), None, Box::new(file)))
    }

    pub(super) fn begin(&mut self, policy: Policy) {
        self.begin_with(policy, Settings::default());
    }

    pub(super) fn begin_with(&mut self, policy: Policy, settings: Settings) {
        let worker = Player { stage: self.stage.clone(), policy };
        self.begin_as(&Registry::default().register(worker).unwrap(), settings);
    }

    pub(super) fn begin_as(&mut self, registry: &Registry, settings: Settings) {
        let runtime = Runtime::start(
            registry,
            self.way_out.as_ref(),
            self.store.clone(),
            self.minter.clone(),
            Arc::default(),
            settings,
        );
        self.runtime = Some(runtime.unwrap());
    }

    pub(super) async fn end(&mut self, within: Duration) -> Drained {
        self.runtime.take().unwrap().drain(within).await
    }

    pub(super) async fn publish_as(&self, envelope: &Envelope, act: Act) {
        let body = codec::encode(&Play { act }).unwrap();
        let job = Outgoing { envelope: Envelope { version: 2, ..envelope.clone() }, body };
        self.way_in.publish(job).await.unwrap();
    }

    pub(super) async fn publish(&self, act: Act) -> Uuid {
        let envelope = envelope_of(&play());
        self.publish_as(&envelope, act).await;
        envelope.id
    }

    pub(super) async fn row(&self, id: Uuid) -> Option<JobRecord> {
        self.observer.get(Some(&Tenant::DEFAULT), id).await.unwrap()
    }

    pub(super) async fn ends(&self, id: Uuid) -> JobRecord {
        until("a job ends", async || self.row(id).await.filter(|row| row.state.is_terminal())).await
    }

    /// Everything that was published is settled.
    pub(super) async fn is_empty(&self) {
        until_equal("jobs that wait", vec![0], async || self.observe.depths(&[play()]).await.unwrap_or_default()).await;
    }
}

impl Drop for Theatre {
    fn drop(&mut self) {
        self.stop.cancel();
        // Lets blocked jobs' threads be abandoned together with the runtime.
        self.stage.let_go(1000);
    }
}
