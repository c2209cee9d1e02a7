//! What grows: retries by the million, rows that are kept no longer. By correctness alone within `tests/run`; within
//! `tests/prove growth` with the bounds that must hold.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection, Row as _};
use warren::{clock, store::SINCE};

use crate::harness::{
    counted::{ENDED, counted, until_counted},
    http::Http,
    process::{Installation, Up},
    scale::sized,
};

/// How many jobs one request holds.
const TOGETHER: usize = 1000;
/// How often each job fails.
const FAILURES: u64 = 5;

async fn send(up: &Up, jobs: usize, body: &Value) {
    let http = Http::to(up.gateway());
    let item = json!({ "kind": "warren.probe", "body": body });
    for begin in (0..jobs).step_by(TOGETHER) {
        let items = vec![&item; TOGETHER.min(jobs - begin)];
        let answer = http.post("/v1/jobs").json(&items).send().await.unwrap();
        let answer: Value = answer.json().await.unwrap();
        assert_eq!(answer["accepted"].as_u64(), Some(items.len() as u64), "{answer}");
    }
}

/// About how many rows there are, and how often what they hold would fit into the table. From a sample: whoever reads a
/// whole table keeps its dead rows from being passed over, and so makes slow what is looked at.
async fn bloat(connection: &mut PgConnection) -> (i64, f64) {
    let row = sqlx::query(
        "SELECT pg_relation_size('jobs')::float8 AS size, n_live_tup AS rows,
                (SELECT avg(pg_column_size(jobs.*) + 4)::float8 FROM jobs TABLESAMPLE SYSTEM (1)) AS row
         FROM pg_stat_user_tables WHERE relname = 'jobs'",
    );
    let row = row.fetch_one(connection).await.unwrap();
    let (size, rows, length) = (row.get::<f64, _>("size"), row.get("rows"), row.get::<Option<f64>, _>("row"));
    #[expect(clippy::cast_precision_loss, reason = "about")]
    let live = length.unwrap_or(f64::INFINITY) * rows as f64;
    (rows, size / live)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the servers for itself: tests/run runs it last"]
async fn a_storm_of_retries_is_claimed_in_short_steps_and_does_not_swell_the_table() {
    let backoff = "[log]\nlevel = 'warn'\n[kind.'warren.probe']\nattempts = 6\n\
                   backoff_base = '1s'\nbackoff_factor = 1.0\nbackoff_cap = '1s'\n";
    let Some(installation) = Installation::on_servers(backoff).await else { return };
    let jobs = sized(1000, 1_000_000);
    let up = installation.up(&[]);
    let began = Instant::now();
    send(&up, jobs, &json!({ "fail_attempts": FAILURES })).await;
    let mut connection = installation.servers().unwrap().1.connect().await;
    let (mut most, mut looked) = (0.0_f64, Instant::now());
    until_counted(&up, ENDED, jobs as u64, async |ended| {
        if looked.elapsed() > Duration::from_secs(20) {
            let (rows, times) = bloat(&mut connection).await;
            println!("{:?}: {ended} ended, {rows} rows, {times:.2} times their size", began.elapsed());
            if rows >= i64::try_from(jobs / 2).unwrap() {
                most = most.max(times);
            }
            looked = Instant::now();
        }
    })
    .await;
    let took = began.elapsed();
    let row = sqlx::query(
        "SELECT (SELECT count(*) FROM jobs WHERE state = 'succeeded') AS jobs, (SELECT count(*) FROM attempts) AS attempts",
    );
    let row = row.fetch_one(&mut connection).await.unwrap();
    let (ended, attempts) = (row.get::<i64, _>("jobs").cast_unsigned(), row.get::<i64, _>("attempts").cast_unsigned());
    assert_eq!((ended, attempts), (jobs as u64, jobs as u64 * FAILURES), "each failed five times and then did not");
    let claims = counted(&up, ("warren_claim_seconds_count", &[])).await;
    let short = counted(&up, ("warren_claim_seconds_bucket", &[("le", "0.05")])).await;
    println!(
        "{jobs} jobs and {attempts} failures in {took:?}; {short} of {claims} claims within 50 ms; at most {most:.2}"
    );
    assert!(claims > 0);
    if sized(false, true) {
        assert!(short * 1000 >= claims * 999, "{short} of {claims} claims took less than 50 ms");
        assert!(most < 2.0, "the table was {most:.2} times as large as what it holds");
    }
}

/// The CPU time that processes have used, and those that they have waited for, in ticks.
fn ticks(is_meant: impl Fn(u32, &str) -> bool) -> u64 {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let used = pids.filter_map(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
        let fields = rest.split_whitespace().skip(11).take(4);
        is_meant(pid, name).then(|| fields.filter_map(|field| field.parse::<u64>().ok()).sum::<u64>())
    });
    used.sum()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the servers for itself: tests/run runs it last"]
async fn what_is_kept_no_longer_goes_for_a_fraction_of_what_it_cost_to_come() {
    let Some(installation) = Installation::on_servers("[log]\nlevel = 'warn'\n").await else { return };
    let rows = sized(3000, 1_000_000);
    let gateway = installation.up(&["gateway"]);
    send(&gateway, rows, &json!({})).await;
    drop(gateway);
    let worker = installation.up(&["worker"]);
    let cost = |pid: u32| ticks(|other, name| other == pid || name == "postgres");
    let (before, began) = (cost(worker.pid()), Instant::now());
    until_counted(&worker, ENDED, rows as u64, async |_| {}).await;
    let (coming, came) = (cost(worker.pid()) - before, began.elapsed());
    drop(worker);
    // As if all of it had been two days ago, and the installation were older than that.
    let mut connection = PgConnection::connect(&installation.servers().unwrap().1.url).await.unwrap();
    let earlier = (clock::now() - 72 * 3600 * 1_000_000).to_string();
    let since = "INSERT INTO installation (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = $2";
    sqlx::query(since).bind(SINCE).bind(earlier).execute(&mut connection).await.unwrap();
    let age = "UPDATE jobs SET finished_at = finished_at - interval '48 hours'";
    let aged = sqlx::query(age).execute(&mut connection).await.unwrap().rows_affected();
    assert_eq!(aged, rows as u64);
    // In real life they grow old where they lie; here each has moved, one after the other, and the index over time covers both
    // of its places. So they are written anew, in the order in which they came.
    sqlx::query("VACUUM (FULL, ANALYZE) jobs").execute(&mut connection).await.unwrap();
    sqlx::query("VACUUM jobs").execute(&mut connection).await.unwrap();
    let keeper = installation.up(&["keeper"]);
    let (before, began) = (cost(keeper.pid()), Instant::now());
    until_counted(&keeper, ("warren_pruned_total", &[]), rows as u64, async |_| {}).await;
    let (going, went) = (cost(keeper.pid()) - before, began.elapsed());
    let left: i64 = sqlx::query("SELECT count(*) FROM jobs").fetch_one(&mut connection).await.unwrap().get(0);
    assert_eq!(left, 0);
    println!("{rows} rows came in {came:?} for {coming} ticks of CPU, and went in {went:?} for {going}");
    if sized(false, true) {
        assert!(going * 100 < coming * 15, "{going} ticks to remove what took {coming} to make");
        assert!(went < came, "they came faster than they go");
    }
}
