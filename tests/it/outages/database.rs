//! A gateway under load without its database: whatever is due at once goes on being taken, through every protocol, as
//! quickly as before; what needs the database is refused in seconds; and in the end all that was taken is done, once.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection, Row as _};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{pg_ctl, signal_postgres};
use crate::{
    harness::{
        canary,
        http::{Http, parts},
        process::Installation,
        scale::sized,
        wait::until_equal,
    },
    keys::created,
};

const TOKEN: &str = "canary-0123456789-door";
const CONFIGURATION: &str =
    "[source.door]\nscheme = 'bearer'\nsecrets = ['canary-0123456789-door']\n[worker]\nhold = '1m'\n";
/// Before it breaks, while it is broken, and after.
const PHASES: usize = 3;
const SENDERS: usize = 5;
/// From one request of a sender to its next.
const PAUSE: Duration = Duration::from_millis(20);
/// Two connections that are waited for, and a little more: whoever asks is answered before it gives up.
const AT_ONCE: Duration = Duration::from_secs(6);

/// What one sender was told.
#[derive(Default)]
struct Taken {
    jobs: Vec<Uuid>,
    /// Behaviour is answered without ids.
    tracked: usize,
    /// How long each answer took, by phase.
    took: [Vec<Duration>; PHASES],
}

/// Sends one of each in turn, every one of which must be taken.
async fn send(http: &Http, name: usize, number: usize, taken: &mut Taken, phase: &AtomicU8) {
    let unique = format!("{name}-{number}");
    let probe = || http.post("/v1/jobs/warren.probe").json(&json!({ "work_ms": 1 }));
    let turn = (name + number) % 5;
    let request = match turn {
        0 => probe(),
        1 => probe().header("idempotency-key", &unique),
        2 => http
            .post("/v1/hooks/door")
            .header("authorization", format!("Bearer {TOKEN}"))
            .header("x-event-id", &unique)
            .json(&json!({ "type": "rung" })),
        3 => {
            let event = json!({ "specversion": "1.0", "type": "seen", "source": "/load", "id": unique, "data": {} });
            let request = http.post("/v1/events").header("content-type", "application/cloudevents+json");
            request.body(event.to_string())
        }
        _ => http.post("/v1/track").json(&json!({ "userId": "u", "event": "e", "messageId": unique })),
    };
    let (began, phase) = (Instant::now(), usize::from(phase.load(SeqCst)));
    let (status, answer) = parts(request.send().await.expect("an answer")).await;
    taken.took[phase].push(began.elapsed());
    assert!(status == 202 || (turn == 4 && status == 200), "it is taken whatever the database does: {status} {answer}");
    let id = |job: &Value| job["id"].as_str().expect("an id").parse().expect("a UUID");
    match turn {
        0 | 1 => taken.jobs.push(id(&answer)),
        2 | 3 => taken.jobs.extend(answer["jobs"].as_array().expect("jobs").iter().map(id)),
        _ => taken.tracked += 1,
    }
}

fn p99(mut took: Vec<Duration>) -> Duration {
    took.sort_unstable();
    took[(took.len() - 1) * 99 / 100]
}

/// Sends jobs with a delay until told to stop; answers what they were told and how long that took.
async fn delayed(http: Http, stop: CancellationToken) -> Vec<(u16, Value, bool, Duration)> {
    let mut answers = Vec::new();
    while !stop.is_cancelled() {
        let began = Instant::now();
        let request = http.post("/v1/jobs/warren.probe").header("warren-delay", "1h").json(&json!({}));
        let response = request.send().await.expect("an answer");
        let retry = response.headers().contains_key("retry-after");
        let (status, answer) = parts(response).await;
        answers.push((status, answer, retry, began.elapsed()));
        tokio::time::sleep(PAUSE * 5).await;
    }
    answers
}

async fn loses_nothing_and_is_as_quick_as_ever(breaks: fn(), mends: fn()) {
    let installation = Installation::on_servers(CONFIGURATION).await.expect("servers");
    canary::plant(TOKEN);
    let gateway = installation.up(&["gateway"]);
    let rest = installation.up(&["worker", "dispatcher", "keeper"]);
    let key = created(&installation, "load", &["--scope", "jobs:write", "--scope", "events:write"]);
    let http = || Http::with_key(gateway.gateway(), &key);
    let known = http();
    let warm = async || known.post("/v1/jobs/warren.probe").json(&json!({})).send().await.unwrap();
    // The first is one more that is taken.
    let mut first = None;
    until_equal("the key is known", 202, async || {
        let (status, answer) = parts(warm().await).await;
        first = answer["id"].as_str().map(|id| id.parse::<Uuid>().unwrap());
        status
    })
    .await;
    let anonymous = Http::to(gateway.gateway());
    until_equal("a request needs a key", 401, async || {
        anonymous.post("/v1/track").json(&json!({})).send().await.unwrap().status().as_u16()
    })
    .await;
    let (phase, stop) = (Arc::new(AtomicU8::new(0)), CancellationToken::new());
    let mut senders = JoinSet::new();
    for name in 0..SENDERS {
        let (http, phase, stop) = (http(), phase.clone(), stop.clone());
        senders.spawn(async move {
            let mut taken = Taken::default();
            for number in 0_usize.. {
                if stop.is_cancelled() {
                    break;
                }
                send(&http, name, number, &mut taken, &phase).await;
                tokio::time::sleep(PAUSE).await;
            }
            taken
        });
    }
    tokio::time::sleep(Duration::from_secs(sized(3, 60))).await;
    phase.store(1, SeqCst);
    breaks();
    let until_mended = CancellationToken::new();
    let (one, other) = (delayed(http(), until_mended.clone()), delayed(http(), until_mended.clone()));
    let broken = async {
        tokio::time::sleep(Duration::from_secs(sized(9, 300))).await;
        until_mended.cancel();
    };
    let (mut refused, more, ()) = tokio::join!(one, other, broken);
    refused.extend(more);
    phase.store(2, SeqCst);
    mends();
    tokio::time::sleep(Duration::from_secs(sized(2, 20))).await;
    stop.cancel();
    let (mut ids, mut tracked, mut took): (Vec<_>, _, [Vec<_>; PHASES]) =
        (Vec::from_iter(first), 0, Default::default());
    while let Some(taken) = senders.join_next().await {
        let taken = taken.expect("every sender got its answers");
        ids.extend(taken.jobs);
        tracked += taken.tracked;
        took.iter_mut().zip(taken.took).for_each(|(all, its)| all.extend(its));
    }
    for (status, answer, retry, took) in &refused {
        assert_eq!((*status, *retry), (503, true), "{answer}");
        assert!(*took < AT_ONCE, "{took:?} {answer}");
    }
    assert!(refused.len() >= 2 && took.iter().all(|took| took.len() > 100), "there was a load: {}", refused.len());

    let (_, database) = installation.servers().unwrap();
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    let began = Instant::now();
    let done = loop {
        let rows = sqlx::query("SELECT id, kind, state::text, run FROM jobs WHERE state::text <> 'scheduled'");
        let rows = rows.fetch_all(&mut connection).await.unwrap();
        let is_done = rows.iter().filter(|row| row.get::<String, _>("state") == "succeeded").count();
        if is_done >= ids.len() + tracked {
            break rows;
        }
        let patience = Duration::from_secs(sized(60, 300));
        assert!(began.elapsed() < patience, "{is_done} of {} are done after {patience:?}", ids.len() + tracked);
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let accepted: HashSet<Uuid> = ids.iter().copied().collect();
    assert_eq!(accepted.len(), ids.len(), "no two requests are one job");
    let found: HashSet<Uuid> = done.iter().map(|row| row.get("id")).collect();
    assert!(accepted.is_subset(&found), "nothing that was taken is lost");
    assert_eq!(done.len(), ids.len() + tracked, "and there is nothing beside it");
    let events = done.iter().filter(|row| row.get::<String, _>("kind") == "analytics.event").count();
    assert_eq!(events, tracked);
    for row in &done {
        assert_eq!(row.get::<i32, _>("run"), 1, "done at once, and once");
    }
    let admin = Http::to(&rest.admin);
    until_equal("all is ready again", 200, async || admin.get("/readyz").send().await.unwrap().status().as_u16()).await;
    let [before, during, after] = took;
    let counts = (before.len(), during.len(), after.len());
    let (before, during, after) = (p99(before), p99(during), p99(after));
    eprintln!("p99 before {before:?}, without the database {during:?}, after it {after:?}; answers: {counts:?}");
    let slowest = refused.iter().map(|(.., took)| took).max();
    eprintln!("{} jobs with a delay were refused, the slowest after {slowest:?}", refused.len());
    if sized(false, true) {
        assert!(during <= before * 2, "p99 is {during:?} without the database and {before:?} with it");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the servers for itself: tests/run runs it last"]
async fn a_gateway_whose_database_is_stopped_loses_nothing_and_is_as_quick_as_ever() {
    loses_nothing_and_is_as_quick_as_ever(|| pg_ctl(&["-m", "immediate", "stop"]), || pg_ctl(&["start"])).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the servers for itself: tests/run runs it last"]
async fn a_gateway_whose_database_sleeps_loses_nothing_and_is_as_quick_as_ever() {
    loses_nothing_and_is_as_quick_as_ever(|| signal_postgres("-STOP"), || signal_postgres("-CONT")).await;
}
