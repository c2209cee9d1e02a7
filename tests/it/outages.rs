//! Servers that fail under load. Each of these needs the servers for itself, so `tests/run` runs them last and one by one.

mod database;

use std::{
    process::Command,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use lapin::options::{ExchangeDeleteOptions, QueueDeleteOptions};
use serde_json::json;
use sqlx::{Connection as _, PgConnection, Row as _};

use crate::harness::{
    http::{Http, parts},
    load::{Load, Refusal},
    process::Installation,
    scale::sized,
    wait::{until, until_equal},
};

const KIND: &str = "[kind.'warren.probe']\nbackoff_base = '100ms'\nbackoff_cap = '200ms'\n";

/// What the gateway does while something is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meanwhile {
    Accepts,
    Refuses,
}

fn rabbitmqctl(arguments: &[&str]) {
    let program = std::env::var("WARREN_TEST_RABBITMQCTL").expect("a private broker");
    let done = Command::new(program).args(arguments).output().unwrap();
    assert!(done.status.success(), "{arguments:?}: {done:?}");
}

fn pg_ctl(arguments: &[&str]) {
    let program = std::env::var("WARREN_TEST_PG_CTL").expect("a private database");
    assert!(Command::new(program).args(arguments).status().unwrap().success(), "{arguments:?}");
}

/// Puts every process of the database to sleep, or wakes them.
fn signal_postgres(signal: &str) {
    let file = std::env::var("WARREN_TEST_PG_PID_FILE").expect("a private database");
    let pid = std::fs::read_to_string(file).unwrap().lines().next().unwrap().to_owned();
    let script = format!("kill {signal} {pid} $(pgrep -P {pid})");
    // A backend may end between the two.
    _ = Command::new("sh").args(["-c", &script]).output().unwrap();
}

async fn survives(
    installation: Installation,
    meanwhile: Meanwhile,
    breaks: impl AsyncFnOnce(&Installation),
    mends: impl AsyncFnOnce(&Installation),
) {
    let gateway = installation.up(&["gateway"]);
    let rest = installation.up(&["worker", "dispatcher", "keeper"]);
    let (http, admin) = (Http::to(gateway.gateway()), Http::to(&rest.admin));
    until_equal("all is ready", 200, async || parts(admin.get("/readyz").send().await.unwrap()).await.0).await;
    let load = Load::begin(Arc::new(Mutex::new(vec![gateway.gateway().to_owned()])), 4);
    until("the load is under way", async || (load.accepted() > 100).then_some(())).await;
    breaks(&installation).await;
    let before = load.accepted();
    tokio::time::sleep(Duration::from_secs(sized(4, 20))).await;
    let during = load.accepted() - before;
    mends(&installation).await;
    let mended = Instant::now();
    let id = until("a job is taken again", async || {
        let response = http.post("/v1/jobs/warren.probe").json(&json!({})).send().await.ok()?;
        let (status, answer) = parts(response).await;
        (status == 202).then(|| answer["id"].as_str().unwrap().to_owned())
    })
    .await;
    http.job_in(&id, "succeeded").await;
    assert!(mended.elapsed() < Duration::from_secs(sized(30, 10)), "it took {:?} until all went on", mended.elapsed());
    let answers = load.end().await;
    match meanwhile {
        Meanwhile::Accepts => assert!(during > 50, "only {during} were taken meanwhile"),
        Meanwhile::Refuses => assert!(during < 300, "{during} were taken meanwhile"),
    }
    assert_eq!(answers.broken, 0, "every client got an answer");
    for Refusal { status, code, retry_after, took } in &answers.refused {
        assert!(*status == 503 && *retry_after, "{status} {code}");
        // What is not known is known to be so when its confirm is late; what is refused is refused at once.
        let limit = if code == "outcome_unknown" { 10_000 } else { sized(5_000, 1_500) };
        assert!(took.as_millis() < limit, "{code} took {took:?}");
    }
    for id in &answers.accepted {
        http.job_in(id, "succeeded").await;
    }
    assert_eq!(installation.run(&["dead", "list", "-o", "json"]).json(), json!([]));
    until_equal("all is ready again", 200, async || parts(admin.get("/readyz").send().await.unwrap()).await.0).await;
    let connected = installation.logs().matches("connected to the broker").count();
    assert!(connected < 40, "{connected} connections were made: a storm");
    // No connection of the pool was left within a transaction.
    let (_, database) = installation.servers().unwrap();
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    until_equal("transactions that nobody ends", 0_i64, async || {
        let open =
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'warren' AND datname = current_database()
                    AND state LIKE 'idle in transaction%' AND now() - state_change > interval '1 second'";
        sqlx::query(open).fetch_one(&mut connection).await.unwrap().get(0)
    })
    .await;
}

macro_rules! outages {
    ($($name:ident: $meanwhile:ident, $breaks:expr, $mends:expr;)*) => {
        $(#[tokio::test(flavor = "multi_thread")]
        #[ignore = "needs the servers for itself: tests/run runs it last"]
        async fn $name() {
            let installation = Installation::on_servers(KIND).await.expect("servers");
            survives(installation, Meanwhile::$meanwhile, $breaks, $mends).await;
        })*
    };
}

outages! {
    a_broker_that_is_stopped_and_started_again: Refuses,
        async |_| rabbitmqctl(&["stop_app"]),
        async |_| rabbitmqctl(&["start_app"]);
    a_broker_that_is_short_of_memory: Refuses,
        async |_| rabbitmqctl(&["set_vm_memory_high_watermark", "0.0000001"]),
        async |_| rabbitmqctl(&["set_vm_memory_high_watermark", "0.4"]);
    connections_that_the_broker_closes: Accepts,
        async |_| rabbitmqctl(&["close_all_connections", "a test"]),
        async |_| {};
    a_database_that_is_stopped_and_started_again: Accepts,
        async |_| pg_ctl(&["-m", "immediate", "stop"]),
        async |_| pg_ctl(&["start"]);
    a_database_that_sleeps: Accepts,
        async |_| signal_postgres("-STOP"),
        async |_| signal_postgres("-CONT");
    the_loss_of_the_queue_and_exchange_for_unroutable_jobs: Refuses,
        async |installation: &Installation| {
            let (rabbit, _) = installation.servers().unwrap();
            let (_connection, channel) = rabbit.channel().await;
            let name = rabbit.names().unrouted();
            channel.queue_delete(name.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
            channel.exchange_delete(name.as_str().into(), ExchangeDeleteOptions::default()).await.unwrap();
            // The gateway looks every few seconds.
            tokio::time::sleep(Duration::from_secs(6)).await;
        },
        async |installation: &Installation| assert_eq!(installation.run(&["topology", "apply"]).code, 0);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the servers for itself: tests/run runs it last"]
async fn once_many_have_met_a_broker_that_is_short_of_memory_all_others_are_refused_at_once() {
    let installation = Installation::on_servers(KIND).await.expect("servers");
    let gateway = installation.up(&["gateway"]);
    let (http, admin) = (Http::to(gateway.gateway()), Http::to(&gateway.admin));
    until_equal("it is ready", 200, async || parts(admin.get("/readyz").send().await.unwrap()).await.0).await;
    let many = vec![json!({ "kind": "warren.probe" }); 100];
    // The codes of what was refused.
    let send_many = async || {
        let (_, answer) = parts(http.post("/v1/jobs").json(&many).send().await.unwrap()).await;
        let results = answer["results"].as_array().unwrap().iter();
        results.filter_map(|result| Some(result["code"].as_str()?.to_owned())).collect::<Vec<_>>()
    };
    until("many have a connection of their own", async || {
        assert_eq!(send_many().await, Vec::<String>::new());
        installation.logs().contains(" publish in bulk\"").then_some(())
    })
    .await;
    // Whichever of the two connections meets it first.
    for _ in 0..4 {
        rabbitmqctl(&["set_vm_memory_high_watermark", "0.0000001"]);
        until("the broker has said so", async || send_many().await.contains(&"broker_blocked".into()).then_some(()))
            .await;
        for _ in 0..2 {
            let (status, answer) =
                parts(http.post("/v1/jobs/warren.probe").json(&json!({})).send().await.unwrap()).await;
            assert_eq!((status, answer["code"].as_str()), (503, Some("broker_blocked")), "{answer}");
        }
        assert_eq!(send_many().await, vec!["broker_blocked"; 100]);
        assert_eq!(parts(admin.get("/readyz").send().await.unwrap()).await.0, 503);
        rabbitmqctl(&["set_vm_memory_high_watermark", "0.4"]);
        // They take turns: an odd number, so that the next meet it on the other one.
        until("all are taken again", async || send_many().await.is_empty().then_some(())).await;
        assert_eq!(send_many().await, Vec::<String>::new());
    }
}
