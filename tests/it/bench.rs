//! Each mode of `warren bench` for a moment, so that none of them rots. What it measures here is worth nothing.

use serde_json::Value;

use crate::harness::process::Installation;

/// `nearby`: the servers that run on this machine.
fn measures(installation: &Installation, nearby: &[&str]) {
    for mode in [
        &["accept", "--seconds", "1", "--connections", "8"][..],
        &["accept", "--seconds", "1", "--connections", "2", "--batch", "50"],
        &["drain", "--jobs", "2000"],
        &["latency", "--seconds", "1"],
        &["mixed", "--seconds", "1", "--rate", "50", "--connections", "8"],
    ] {
        let said = installation.run(&[&["bench"], mode, &["-o", "json"]].concat());
        assert_eq!(said.code, 0, "{mode:?}: {said:?}");
        let report: Value = said.json();
        assert!(report["jobs"].as_u64().unwrap() > 20, "{mode:?}: {report}");
        assert!(report["durability"].as_str().unwrap().contains("synchronous"), "{mode:?}: {report}");
        let processes = report["cpu_us_a_job"].as_object().unwrap();
        assert!(processes.len() >= nearby.len() + 2, "{mode:?}: {report}");
        // A gateway alone may leave the database idle.
        let least = if mode[0] == "drain" { f64::MIN_POSITIVE } else { 0.0 };
        assert!(nearby.iter().all(|server| processes[*server].as_f64().unwrap() >= least), "{mode:?}: {report}");
        assert_eq!(report["refused"], Value::Null, "{mode:?}: {report}");
    }
    let table = installation.run(&["bench", "latency", "--seconds", "1"]);
    assert!(
        ["due to sent", "sent to started", "accepted to recorded", "p99"].iter().all(|row| table.stdout.contains(row)),
        "{table:?}"
    );
}

#[test]
fn every_mode_measures_the_embedded_engine() {
    measures(&Installation::embedded(""), &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_mode_measures_servers_and_leaves_nothing_behind() {
    let Some(installation) = Installation::on_servers("").await else { return };
    // Those that were started for the tests. The database has a user of its own, whose processes not every root may look at.
    let may_look = |pid: &str| std::fs::read_dir(format!("/proc/{pid}/fd")).is_ok();
    let postmaster = std::env::var("WARREN_TEST_PG_PID_FILE").ok().and_then(|file| std::fs::read_to_string(file).ok());
    let postgres = postmaster.is_some_and(|file| file.lines().next().is_some_and(may_look)).then_some("(Postgres)");
    let rabbitmq = std::env::var_os("WARREN_TEST_RABBITMQCTL").map(|_| "(RabbitMQ)");
    let nearby: Vec<_> = rabbitmq.into_iter().chain(postgres).collect();
    measures(&installation, &nearby);
    let (_, database) = installation.servers().unwrap();
    let mut connection = <sqlx::PgConnection as sqlx::Connection>::connect(&database.url).await.unwrap();
    let schemas = "SELECT count(*) FROM information_schema.schemata WHERE schema_name LIKE 'warren_bench%'";
    let left: i64 = sqlx::Row::get(&sqlx::query(schemas).fetch_one(&mut connection).await.unwrap(), 0);
    assert_eq!(left, 0);
}
