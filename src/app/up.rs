//! `warren up`: starts the roles of a process, and ends them in order.

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::{Engine, StartError, doors::Doors, engine::WayIn, establish, heartbeat::Heart, published::Counted};
use crate::{
    admin::{self, Admin},
    broker::{Leftovers, Observe, Publish, Subscribe},
    config::Config,
    dispatcher::Dispatcher,
    gateway::{self, Gateway, serve},
    health::{Condition, Health},
    id::Minter,
    job::{Kind, State},
    keeper::Keeper,
    pruner::{Pruner, longest_unkeyed},
    runtime::{self, Runtime, children::ChildCommand, registry::Registry},
    store::Store,
    telemetry::{BROKER_BLOCKED, BROKER_CONNECTED, DEAD_LETTERS, QUEUE_DEPTH},
};

/// How often the parts are asked how they are.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(2);
/// How often lines are measured.
const MEASURE_EVERY: Duration = Duration::from_secs(15);
/// How long that may take.
const MEASURE: Duration = Duration::from_secs(5);
/// Beyond this, dead letters are "many": counting more costs too much.
const COUNTED_DEAD: u32 = 10_000;

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "any set of them is one")]
pub struct Roles {
    /// Takes jobs over HTTP.
    pub gateway: bool,
    /// Runs jobs.
    pub worker: bool,
    /// Publishes jobs whose time has come.
    pub dispatcher: bool,
    /// Keeps order: removes what is kept no longer.
    pub keeper: bool,
}

impl Roles {
    /// All of them.
    pub const ALL: Self = Self { gateway: true, worker: true, dispatcher: true, keeper: true };

    /// What these roles do their work without.
    fn dispensable(self) -> &'static [&'static str] {
        match self {
            // It accepts what is due at once with no database, and must not be taken out of a load balancer for that.
            Self { gateway: true, worker: false, dispatcher: false, .. } => &["database", "schema"],
            _ => &[],
        }
    }

    fn names(self) -> Vec<&'static str> {
        let all = [
            (self.gateway, "gateway"),
            (self.worker, "worker"),
            (self.dispatcher, "dispatcher"),
            (self.keeper, "keeper"),
        ];
        all.into_iter().filter_map(|(has, name)| has.then_some(name)).collect()
    }

    /// Where health and metrics of these roles are, if nobody says otherwise: roles on one machine do not meet.
    pub fn admin_listen(self) -> SocketAddr {
        let port = match (self.gateway, self.worker, self.dispatcher, self.keeper) {
            (false, true, false, false) => 8082,
            (false, false, true, false) => 8083,
            (false, false, false, true) => 8084,
            _ => 8081,
        };
        SocketAddr::from(([127, 0, 0, 1], port))
    }
}

impl fmt::Display for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names().join(" "))
    }
}

/// A process that has started.
#[derive(Debug)]
pub struct Ready {
    /// Where jobs come in, if they do.
    pub gateway: Option<SocketAddr>,
    /// Where health and metrics are.
    pub admin: SocketAddr,
    /// Where everything is kept.
    pub engine: String,
}

/// Runs roles until told to stop. `ready` is called once everything has started.
pub async fn up(
    config: Config,
    registry: Registry,
    roles: Roles,
    child: ChildCommand,
    metrics: PrometheusHandle,
    stop: CancellationToken,
    ready: impl FnOnce(&Ready),
) -> Result<(), StartError> {
    let admin_listen = config.admin_listen.unwrap_or_else(|| roles.admin_listen());
    // Ports that are taken are known before anything is changed anywhere.
    let admin_listener = listen(admin_listen).await?;
    let gateway_listener = if roles.gateway { Some(listen(config.gateway_listen).await?) } else { None };
    let engine = Engine::open(&config).await?;
    if engine.is_embedded() && roles != Roles::ALL {
        let problem =
            "an embedded installation runs all roles in one process: name none, or set AMQP_URL and DATABASE_URL";
        return Err(StartError::Configuration(problem.into()));
    }
    let ids = engine.ids(&config)?;
    let minter = Minter::new(&ids.dedup_key, &ids.tag_keys);
    let minter = Arc::new(minter.map_err(|source| StartError::SetUp { what: "ids", source: source.into() })?);
    let health = Arc::new(Health::without(roles.dispensable()));
    let kinds = registry.kinds();
    establish(&engine, &config, kinds.clone(), minter.fingerprints().clone(), health.clone()).await?;

    let started = Ready {
        gateway: gateway_listener.as_ref().and_then(|listener| listener.local_addr().ok()),
        admin: admin_listener.local_addr().unwrap_or(admin_listen),
        engine: engine.describe(),
    };
    let mut process = Process { stop: CancellationToken::new(), http: CancellationToken::new(), tasks: JoinSet::new() };
    let store = engine.store();
    let doors = Doors::open(&config, &started, store.clone());
    if doors.are_used() {
        doors.keys.read_first().await;
        doors.warn_of_none();
        process.tasks.spawn(doors.keys.clone().keep(health.clone(), process.stop.clone()));
    }
    let way_in = (roles.gateway || roles.dispatcher).then(|| engine.way_in(&kinds));
    let mut watched =
        Watched { store: store.clone(), publish: None, subscribe: None, leftovers: None, observe: None, kinds };
    let mut heart = Heart { store: store.clone(), roles, published: None, at_work: None };
    let way_in = way_in.map(|WayIn { publish, observe }| {
        let counted = Arc::new(Counted::new(publish, &watched.kinds));
        heart.published = Some(counted.clone());
        WayIn { publish: counted, observe }
    });
    if let (Some(listener), Some(WayIn { publish, .. }), Some(door)) = (gateway_listener, &way_in, doors.gateway) {
        let gateway = Gateway::new(gateway::Parts {
            registry: registry.clone(),
            broker: publish.clone(),
            store: store.clone(),
            minter: minter.clone(),
            sources: config.sources,
            events: config.events.clone(),
            door,
            remembered: longest_unkeyed(&registry, config.retention),
        });
        process.tasks.spawn(serve::serve(listener, gateway.routes(), process.http.clone()));
    }
    if let Some(WayIn { publish, observe }) = way_in {
        if roles.dispatcher {
            let dispatcher = Dispatcher::new(store.clone(), publish.clone());
            process.tasks.spawn(dispatcher.run(process.stop.clone()));
            watched.observe = Some(observe);
        }
        watched.publish = Some(publish);
    }
    let mut runtime = None;
    if roles.worker {
        let way_out = engine.way_out();
        let settings =
            runtime::Settings { hold: config.hold, unknown_version: config.unknown_version, children: Some(child) };
        let started = Runtime::start(&registry, way_out.as_ref(), store.clone(), minter, health.clone(), settings);
        runtime =
            Some(started.map_err(|source| StartError::SetUp { what: "the runtime for jobs", source: source.into() })?);
        watched.subscribe = Some(way_out);
        heart.at_work = runtime.as_ref().map(|runtime| Box::new(runtime.at_work()) as Box<_>);
    }
    if roles.keeper {
        if let Some(leftovers) = engine.leftovers() {
            process.tasks.spawn(Keeper::new(store.as_ref(), leftovers.clone()).run(process.stop.clone()));
            watched.leftovers = Some(leftovers);
        }
        let pruner = Pruner::new(store.clone(), &registry, config.retention);
        process.tasks.spawn(pruner.run(process.stop.clone()));
    }
    process.tasks.spawn(heart.beat(process.stop.clone()));
    let pages = admin::routes(Admin { health: health.clone(), metrics: metrics.clone(), door: doors.admin });
    process.tasks.spawn(serve::serve(admin_listener, pages, process.stop.clone()));
    for task in [watched.watch(health.clone(), metrics).boxed(), feed_watchdog().boxed()] {
        let task = process.stop.clone().run_until_cancelled_owned(task);
        process.tasks.spawn(async move { _ = task.await });
    }

    ready(&started);
    tell_supervisor(sd_notify::NotifyState::Ready);
    let failure = tokio::select! {
        () = stop.cancelled() => None,
        failure = failed(runtime.as_ref()) => Some(failure),
    };
    tell_supervisor(sd_notify::NotifyState::Stopping);
    health.set("process", Condition::NotReady("it is ending".into()));
    // First nothing more comes in, then what has come in is worked off, then everything else ends.
    process.http.cancel();
    if let Some(runtime) = runtime {
        runtime.drain(config.drain).await;
    }
    process.stop.cancel();
    while process.tasks.join_next().await.is_some() {}
    engine.close().await;
    info!("ended");
    failure.map_or(Ok(()), |reason| Err(StartError::Failed(reason)))
}

/// Waits for something with which a process cannot go on.
async fn failed(runtime: Option<&Runtime>) -> String {
    match runtime {
        Some(runtime) => runtime.failed().await,
        None => std::future::pending().await,
    }
}

struct Process {
    stop: CancellationToken,
    http: CancellationToken,
    tasks: JoinSet<()>,
}

async fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    serve::bind(address).await.map_err(|source| StartError::Listen { address, source })
}

fn tell_supervisor(state: sd_notify::NotifyState<'_>) {
    // Without a supervisor there is nobody to tell.
    _ = sd_notify::notify(&[state]);
}

/// Tells a supervisor's watchdog that this process gets on, whatever it may be waiting for.
async fn feed_watchdog() {
    let Some(patience) = sd_notify::watchdog_enabled() else { return };
    let mut ticks = tokio::time::interval(patience / 3);
    loop {
        ticks.tick().await;
        tell_supervisor(sd_notify::NotifyState::Watchdog);
    }
}

/// What is asked how it is.
struct Watched {
    store: Arc<dyn Store>,
    publish: Option<Arc<dyn Publish>>,
    subscribe: Option<Arc<dyn Subscribe>>,
    leftovers: Option<Arc<dyn Leftovers>>,
    observe: Option<Arc<dyn Observe>>,
    kinds: Vec<Kind>,
}

impl Watched {
    async fn watch(self, health: Arc<Health>, metrics: PrometheusHandle) {
        let mut ticks = tokio::time::interval(ASK_EVERY);
        let mut measured: Option<tokio::time::Instant> = None;
        loop {
            let now = ticks.tick().await;
            self.ask(&health).await;
            if measured.is_none_or(|measured| now - measured >= MEASURE_EVERY) {
                measured = Some(now);
                // What does not answer must not keep the rest from being asked.
                _ = tokio::time::timeout(MEASURE, self.measure(&health)).await;
                metrics.run_upkeep();
            }
        }
    }

    async fn ask(&self, health: &Health) {
        let database = match tokio::time::timeout(ANSWER, self.store.ping()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(crate::job::chain(&error)),
            Err(_) => Err(format!("no answer within {} s", ANSWER.as_secs())),
        };
        health.report("database", database);
        let mut connected = true;
        for (part, broker) in [
            ("broker in", self.publish.as_ref().map(|publish| publish.health())),
            ("broker out", self.subscribe.as_ref().map(|subscribe| subscribe.health())),
            ("broker leftovers", self.leftovers.as_ref().map(|leftovers| leftovers.health())),
        ] {
            if let Some(broker) = broker {
                connected &= broker.is_ok();
                health.report(part, broker);
            }
        }
        metrics::gauge!(BROKER_CONNECTED).set(f64::from(u8::from(connected)));
        let blocked = self.publish.as_ref().is_some_and(|publish| publish.is_blocked());
        metrics::gauge!(BROKER_BLOCKED).set(f64::from(u8::from(blocked)));
    }

    #[expect(clippy::cast_precision_loss, reason = "a gauge")]
    async fn measure(&self, health: &Health) {
        let Some(observe) = &self.observe else { return };
        // Lines that cannot be measured are those of a broker that is away, which is reported elsewhere.
        if let Ok(depths) = observe.depths(&self.kinds).await {
            for (kind, depth) in self.kinds.iter().zip(depths) {
                metrics::gauge!(QUEUE_DEPTH, "kind" => kind.to_string(), "state" => "ready").set(depth as f64);
            }
        }
        if let Ok(dead) = self.store.count(State::Dead, COUNTED_DEAD).await {
            metrics::gauge!(DEAD_LETTERS).set(f64::from(dead));
        }
        match observe.limits(&self.kinds).await {
            Ok(()) => health.set("queue limits", Condition::Ready),
            Err(warning) => health.set("queue limits", Condition::Warning(warning)),
        }
    }
}
