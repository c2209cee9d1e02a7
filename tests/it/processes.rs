//! Processes: how they start, what they refuse to start on, and how they end.

use std::{collections::BTreeSet, net::TcpListener, path::Path, time::Duration};

use serde_json::{Value, json};

use crate::harness::{
    counted::{ENDED, counted, until_a_probe_runs},
    http::{Http, parts},
    process::{Installation, bare, said},
    wait::{until, until_equal},
};

#[tokio::test(flavor = "multi_thread")]
async fn roles_in_processes_of_their_own_do_the_main_job_together() {
    let Some(installation) = Installation::on_servers("").await else { return };
    let gateway = installation.up(&["gateway"]);
    let http = Http::to(gateway.gateway());
    let id = http.submit("warren.probe", &json!({ "fail_attempts": 1, "payload_bytes": 1000 })).await;
    // Nobody is there to run it.
    let waiting = http.job(&id).await;
    assert_eq!((waiting["state"].as_str(), waiting["recorded"].as_bool()), (Some("queued"), Some(false)));
    let worker = installation.up(&["worker"]);
    http.job_in(&id, "retrying").await;
    let dispatcher = installation.up(&["dispatcher"]);
    let keeper = installation.up(&["keeper"]);
    let job = http.job_in(&id, "succeeded").await;
    assert_eq!((job["run"].as_u64(), job["output"]["attempt"].as_u64()), (Some(2), Some(2)));
    for up in [&gateway, &worker, &dispatcher, &keeper] {
        let admin = Http::to(&up.admin);
        until("it is ready", async || (parts(admin.get("/readyz").send().await.unwrap()).await.0 == 200).then_some(()))
            .await;
        assert_eq!(parts(admin.get("/livez").send().await.unwrap()).await.0, 200);
    }
    assert_eq!(counted(&worker, ENDED).await, 1);
    let retries = [("kind", "warren.probe"), ("outcome", "retry")];
    assert_eq!(counted(&worker, ("warren_jobs_finished_total", &retries)).await, 1);
    let metrics = parts(Http::to(&worker.admin).get("/metrics").send().await.unwrap()).await.1;
    let metrics = metrics.as_str().unwrap();
    for line in ["# TYPE warren_execution_seconds histogram", "warren_concurrency_limit{kind=\"warren.probe\"} 100"] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
}

async fn a_kind_like_another_is_one_of_its_own(installation: Option<Installation>) {
    let Some(installation) = installation else { return };
    let up = installation.up(&[]);
    let http = Http::to(up.gateway());
    let failing = json!({ "fail_attempts": 5 });
    let (other, own) = (http.submit("probe.bulk", &failing).await, http.submit("warren.probe", &failing).await);
    let job = http.job_in(&other, "dead").await;
    assert_eq!((job["kind"].as_str(), job["failed_attempts"].as_u64()), (Some("probe.bulk"), Some(1)), "{job}");
    http.job_in(&own, "retrying").await;
    let schema = parts(http.get("/v1/schemas/probe.bulk/1").send().await.unwrap()).await;
    assert_eq!((schema.0, schema.1["$id"].as_str()), (200, Some("urn:warren:schema:probe.bulk:1")));
    let queues = installation.run(&["queue", "list", "-o", "json"]).json();
    assert!(queues.as_array().unwrap().iter().any(|queue| queue["name"] == "probe.bulk"), "{queues}");
}

const LIKE: &str = "[kind.'probe.bulk']\nlike = 'warren.probe'\nattempts = 1\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_like_another_has_its_own_queue_settings_and_schema_on_servers() {
    a_kind_like_another_is_one_of_its_own(Installation::on_servers_with(&["probe.bulk"], LIKE).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_like_another_has_its_own_queue_settings_and_schema_embedded() {
    a_kind_like_another_is_one_of_its_own(Some(Installation::embedded(LIKE))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_killed_leaves_its_job_to_the_next() {
    let Some(installation) = Installation::on_servers("").await else { return };
    let gateway = installation.up(&["gateway"]);
    let http = Http::to(gateway.gateway());
    let worker = installation.up(&["worker"]);
    let id = http.submit("warren.probe", &json!({ "work_ms": 2000 })).await;
    until_a_probe_runs(&worker).await;
    worker.kill();
    let _next = installation.up(&["worker"]);
    let job = http.job_in(&id, "succeeded").await;
    assert_eq!((job["run"].as_u64(), job["attempts"].clone()), (Some(1), Value::Null), "a crash is no failed attempt");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_embedded_installation_that_is_killed_goes_on_where_it_was() {
    let installation = Installation::embedded("");
    let up = installation.up(&[]);
    let http = Http::to(up.gateway());
    let running = http.submit("warren.probe", &json!({ "work_ms": 1500 })).await;
    let mut waiting = Vec::new();
    for _ in 0..300 {
        waiting.push(http.submit("warren.probe", &json!({ "work_ms": 100 })).await);
    }
    let delayed =
        http.post("/v1/jobs/warren.probe").header("warren-delay", "1s").json(&json!({})).send().await.unwrap();
    let delayed = parts(delayed).await.1["id"].as_str().unwrap().to_owned();
    up.kill();
    let up = installation.up(&[]);
    let http = Http::to(up.gateway());
    for id in waiting.iter().chain([&running, &delayed]) {
        http.job_in(id, "succeeded").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_asked_to_end_finishes_what_runs() {
    let installation = Installation::embedded("");
    let mut up = installation.up(&[]);
    let http = Http::to(up.gateway());
    let id = http.submit("warren.probe", &json!({ "work_ms": 800 })).await;
    until_a_probe_runs(&up).await;
    up.terminate();
    assert_eq!(up.ended().await.code(), Some(0));
    let told = installation.run(&["job", "show", &id, "-o", "json"]).json();
    assert_eq!(told["state"], "succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_a_process_at_once() {
    let installation = Installation::embedded("");
    let mut up = installation.up(&[]);
    let http = Http::to(up.gateway());
    http.submit("warren.probe", &json!({ "fate": "hang" })).await;
    until_a_probe_runs(&up).await;
    up.terminate();
    until("it drains", async || installation.logs().contains("draining").then_some(())).await;
    up.terminate();
    assert_eq!(up.ended().await.code(), Some(130));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_on_the_same_file_says_whose_it_is() {
    let installation = Installation::embedded("");
    let up = installation.up(&[]);
    let second = installation.run(&["up", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
    assert_eq!(second.code, 1, "{second:?}");
    assert!(second.stderr.contains(&format!("in use by process {}", up.pid())), "{second:?}");
}

#[test]
fn a_port_that_is_taken_is_told_before_anything_starts() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let installation = Installation::embedded("");
    let refused = installation.run(&["up", "--listen", &address, "--admin-listen", "127.0.0.1:0"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains(&address), "{refused:?}");
    assert!(!installation.data().exists(), "nothing was made");
}

#[test]
fn an_embedded_installation_is_one_process() {
    let refused = Installation::embedded("").run(&["up", "worker", "--admin-listen", "127.0.0.1:0"]);
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(refused.stderr.contains("all roles in one process"), "{refused:?}");
}

#[tokio::test]
async fn servers_without_secrets_for_ids_are_refused_with_the_command_that_makes_them() {
    let Some(installation) = Installation::on_servers("").await else { return };
    installation.configure("");
    let refused = installation.run(&["up", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(refused.stderr.contains("warren config keys"), "{refused:?}");
}

#[tokio::test]
async fn a_database_without_its_schema_is_refused_where_it_may_not_be_changed() {
    let Some(installation) = Installation::on_servers("").await else { return };
    let keys = installation.run(&["config", "keys"]).stdout;
    let ports = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
    let (_, database) = installation.servers().unwrap();
    let mut command = bare(installation.folder.path());
    command.arg("up").args(ports).arg("--config").arg(installation.file()).env("WARREN__DATABASE__MIGRATE", "false");
    installation.configure(&keys);
    let refused = said(&mut command);
    assert_eq!(refused.code, 6, "{refused:?}");
    assert!(refused.stderr.contains("warren migrate"), "{refused:?}");
    let migrated = installation.run(&["migrate"]);
    assert!(
        migrated.code == 0 && migrated.stdout.contains("0001_jobs") && migrated.stdout.contains("0002_keys"),
        "{migrated:?}"
    );
    let again = installation.run(&["migrate"]);
    assert!(again.stdout.contains("up to date"), "{again:?}");
    // A newer build has been here.
    sqlx::Executor::execute(
        &mut database.connect().await,
        "INSERT INTO schema_steps (version, description, success, checksum, execution_time)
         VALUES (99, 'later', true, ''::bytea, 0)",
    )
    .await
    .unwrap();
    let refused = said(&mut command);
    assert_eq!(refused.code, 6, "{refused:?}");
    assert!(refused.stderr.contains("newer"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_makes_other_ids_is_not_ready_and_says_why() {
    let Some(installation) = Installation::on_servers("").await else { return };
    let first = installation.up(&["gateway"]);
    let admin = Http::to(&first.admin);
    until_equal("the first is ready", 200, async || parts(admin.get("/readyz").send().await.unwrap()).await.0).await;
    let other_keys = installation.run(&["config", "keys"]).stdout;
    installation.configure(&other_keys);
    let second = installation.up(&["gateway"]);
    let admin = Http::to(&second.admin);
    let (status, ready) = parts(admin.get("/readyz").send().await.unwrap()).await;
    assert_eq!((status, ready["ready"].as_bool()), (503, Some(false)), "{ready}");
    assert!(ready["parts"]["ids"]["detail"].as_str().unwrap().contains("id.dedup_key"), "{ready}");
}

/// A gateway that cannot ask the database whether there are keys.
const NO_KEYS: &str = "[gateway]\nassume_no_keys = true\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_is_ready_without_a_database_and_warns() {
    let Some(installation) = Installation::on_servers("").await else { return };
    let (_, database) = installation.servers().unwrap();
    let nowhere = crate::harness::proxy::Proxy::before(database.address()).await;
    nowhere.refuse(true);
    installation.configure_behind(NO_KEYS, None, Some(&nowhere));
    let gateway = installation.up(&["gateway"]);
    let admin = Http::to(&gateway.admin);
    let ready = until("it is ready", async || {
        let (status, ready) = parts(admin.get("/readyz").send().await.unwrap()).await;
        (status == 200 && ready["parts"]["database"]["state"] == "warning").then_some(ready)
    })
    .await;
    assert_eq!(ready["parts"]["schema"]["state"], "warning", "{ready}");
    let http = Http::to(gateway.gateway());
    http.submit("warren.probe", &json!({})).await;
    let delayed =
        http.post("/v1/jobs/warren.probe").header("warren-delay", "1h").json(&json!({})).send().await.unwrap();
    let (status, answer) = parts(delayed).await;
    assert_eq!((status, answer["code"].as_str()), (503, Some("store_unavailable")), "{answer}");
    assert!(answer["detail"].as_str().unwrap().contains("was not accepted"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_starts_without_servers_and_works_when_they_come() {
    let Some(installation) = Installation::on_servers("").await else { return };
    let (rabbit, database) = installation.servers().unwrap();
    let to_broker = crate::harness::proxy::Proxy::before(rabbit.address()).await;
    let to_database = crate::harness::proxy::Proxy::before(database.address()).await;
    to_broker.refuse(true);
    to_database.refuse(true);
    installation.configure_behind(NO_KEYS, Some(&to_broker), Some(&to_database));
    let up = installation.up(&[]);
    let (http, admin) = (Http::to(up.gateway()), Http::to(&up.admin));
    let (status, ready) = parts(admin.get("/readyz").send().await.unwrap()).await;
    assert_eq!(status, 503, "{ready}");
    let began = std::time::Instant::now();
    let (status, refused) = parts(http.post("/v1/jobs/warren.probe").json(&json!({})).send().await.unwrap()).await;
    assert_eq!((status, refused["code"].as_str()), (503, Some("broker_unavailable")));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    // The broker alone is enough to take a job that is due at once.
    to_broker.refuse(false);
    let id = until("it is taken", async || {
        let (status, answer) = parts(http.post("/v1/jobs/warren.probe").json(&json!({})).send().await.unwrap()).await;
        (status == 202).then(|| answer["id"].as_str().unwrap().to_owned())
    })
    .await;
    let (status, answer) = parts(http.get(&format!("/v1/jobs/{id}")).send().await.unwrap()).await;
    assert_eq!((status, answer["code"].as_str()), (503, Some("store_unavailable")));
    to_database.refuse(false);
    http.job_in(&id, "succeeded").await;
    until_equal("all is ready", 200, async || parts(admin.get("/readyz").send().await.unwrap()).await.0).await;
}

/// A small disk of its own. `None` where none can be mounted.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=6m", "tmpfs"])
            .arg(folder.path())
            .output()
            .is_ok_and(|done| done.status.success());
        mounted.then_some(Self(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).output();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_jobs_loses_none_and_goes_on_when_there_is_room() {
    let Some(disk) = SmallDisk::mount() else {
        eprintln!("left out: no disk can be mounted here");
        return;
    };
    let installation = Installation::embedded("");
    let data = disk.0.path().join("data");
    std::os::unix::fs::symlink(&data, installation.data()).unwrap();
    std::fs::create_dir(&data).unwrap();
    let up = installation.up(&[]);
    let http = Http::to(up.gateway());
    let ballast = disk.0.path().join("ballast");
    std::fs::write(&ballast, vec![0; 3 << 20]).unwrap();
    let (mut taken, mut refused) = (Vec::new(), Vec::new());
    for number in 0..2000 {
        let delay = if number % 2 == 0 { "1h" } else { "0s" };
        let request = http.post("/v1/jobs/warren.probe").header("warren-delay", delay);
        let body = json!({ "payload_bytes": 20_000, "work_ms": 1 });
        let (status, answer) = parts(request.json(&body).send().await.unwrap()).await;
        match status {
            202 => taken.push((answer["id"].as_str().unwrap().to_owned(), number % 2 == 0)),
            _ => refused.push((status, answer["code"].as_str().unwrap_or_default().to_owned())),
        }
        if refused.len() > 20 {
            break;
        }
    }
    assert!(refused.len() > 20, "it was never full: {} were taken", taken.len());
    assert!(refused.iter().all(|(status, code)| *status == 507 && code == "disk_full"), "{refused:?}");
    std::fs::remove_file(&ballast).unwrap();
    until("a job is taken again", async || {
        let response = http.post("/v1/jobs/warren.probe").json(&json!({})).send().await.unwrap();
        (response.status() == 202).then_some(())
    })
    .await;
    for (id, delayed) in &taken {
        http.job_in(id, if *delayed { "scheduled" } else { "succeeded" }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_told_and_a_right_one_works_without_a_restart() {
    let Some(installation) = Installation::on_servers("").await else { return };
    let Ok(rabbitmqctl) = std::env::var("WARREN_TEST_RABBITMQCTL") else {
        eprintln!("left out: the broker is not a private one");
        return;
    };
    let ctl = |arguments: &[&str]| {
        let done = std::process::Command::new(&rabbitmqctl).args(arguments).output().unwrap();
        assert!(done.status.success(), "{arguments:?}: {done:?}");
    };
    let (rabbit, database) = installation.servers().unwrap();
    let user = format!("user-{}", rabbit.prefix);
    ctl(&["add_user", &user, "another"]);
    ctl(&["set_permissions", "-p", "/", &user, ".*", ".*", ".*"]);
    let keys = installation.run(&["config", "keys"]).stdout;
    let mut url = url::Url::parse(&rabbit.url).unwrap();
    url.set_username(&user).unwrap();
    url.set_password(Some("hunter2")).unwrap();
    let text = format!(
        "{keys}\n[broker]\nurl = \"{url}\"\nprefix = \"{}\"\n[database]\nurl = \"{}\"\n",
        rabbit.prefix, database.url
    );
    std::fs::write(installation.file(), text).unwrap();
    let up = installation.up(&[]);
    let (http, admin) = (Http::to(up.gateway()), Http::to(&up.admin));
    let ready = until("it tells", async || {
        let (status, ready) = parts(admin.get("/readyz").send().await.unwrap()).await;
        (status == 503 && ready.to_string().contains("ACCESS_REFUSED")).then_some(ready)
    })
    .await;
    assert!(!ready.to_string().contains("hunter2"), "{ready}");
    let (status, answer) = parts(http.post("/v1/jobs/warren.probe").json(&json!({})).send().await.unwrap()).await;
    assert_eq!((status, answer["code"].as_str()), (503, Some("broker_unavailable")), "{answer}");
    ctl(&["change_password", &user, "hunter2"]);
    let id = until("a job is taken", async || {
        let (status, answer) = parts(http.post("/v1/jobs/warren.probe").json(&json!({})).send().await.unwrap()).await;
        (status == 202).then(|| answer["id"].as_str().unwrap().to_owned())
    })
    .await;
    http.job_in(&id, "succeeded").await;
    assert!(!installation.logs().contains("hunter2"));
    ctl(&["delete_user", &user]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_told_at_once_loses_nothing_and_takes_jobs_again_when_there_is_room() {
    let Some(installation) = Installation::on_servers("").await else { return };
    let Ok(rabbitmqctl) = std::env::var("WARREN_TEST_RABBITMQCTL") else {
        eprintln!("left out: the broker is not a private one");
        return;
    };
    let gateway = installation.up(&["gateway"]);
    let http = Http::to(gateway.gateway());
    let (rabbit, _) = installation.servers().unwrap();
    let pattern = format!("^{}\\.warren\\.probe$", rabbit.prefix);
    let policy = ["set_policy", "--apply-to", "queues", &rabbit.prefix, &pattern, "{\"max-length\":5}"];
    let done = std::process::Command::new(&rabbitmqctl).args(policy).output().unwrap();
    assert!(done.status.success(), "{done:?}");
    let mut taken = Vec::new();
    let refused = until("it is full", async || {
        let began = std::time::Instant::now();
        let response = http.post("/v1/jobs/warren.probe").json(&json!({})).send().await.unwrap();
        let retry_after = response.headers().contains_key("retry-after");
        let (status, answer) = parts(response).await;
        if status == 202 {
            taken.push(answer["id"].as_str().unwrap().to_owned());
            return None;
        }
        Some((status, answer, retry_after, began.elapsed()))
    })
    .await;
    let (status, answer, retry_after, took) = refused;
    assert_eq!((status, answer["code"].as_str(), retry_after), (503, Some("queue_full"), true), "{answer}");
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(taken.len() >= 5, "{}", taken.len());
    let _rest = installation.up(&["worker"]);
    for id in &taken {
        http.job_in(id, "succeeded").await;
    }
    let again = until("there is room", async || {
        let (status, answer) = parts(http.post("/v1/jobs/warren.probe").json(&json!({})).send().await.unwrap()).await;
        (status == 202).then(|| answer["id"].as_str().unwrap().to_owned())
    })
    .await;
    http.job_in(&again, "succeeded").await;
    let cleared = std::process::Command::new(&rabbitmqctl).args(["clear_policy", &rabbit.prefix]).output().unwrap();
    assert!(cleared.status.success(), "{cleared:?}");
}

/// How the kernel schedules the threads of a process, and how many those are: fields 41 of their `stat`, proc(5), where
/// sched(7) has the numbers.
fn policies(pid: u32) -> (BTreeSet<u32>, usize) {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let policy = |thread: &Path| {
        let stat = std::fs::read_to_string(thread.join("stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(38)?.parse().ok()
    };
    let policies: Vec<_> = threads.filter_map(|thread| policy(&thread.unwrap().path())).collect();
    (policies.iter().copied().collect(), policies.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_takes_its_turn_and_a_gateway_is_prompt() {
    const SCHED_OTHER: u32 = 0;
    const SCHED_BATCH: u32 = 3;
    let Some(installation) = Installation::on_servers("").await else { return };
    for (roles, policy) in [
        (&["worker", "keeper"][..], SCHED_BATCH),
        (&["gateway"], SCHED_OTHER),
        (&["dispatcher"], SCHED_OTHER),
        (&[], SCHED_OTHER),
    ] {
        assert_eq!(policies(installation.up(roles).pid()).0, BTreeSet::from([policy]), "{roles:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_started_under_another_policy_keeps_it() {
    const SCHED_IDLE: u32 = 5;
    let Some(installation) = Installation::on_servers("").await else { return };
    let worker = installation.command(&["up", "worker", "--admin-listen", "127.0.0.1:0"]);
    let mut idle = std::process::Command::new("chrt");
    idle.args(["--idle", "0"]).arg(worker.get_program()).args(worker.get_args());
    for (name, value) in worker.get_envs() {
        match value {
            Some(value) => idle.env(name, value),
            None => idle.env_remove(name),
        };
    }
    let output = std::process::Stdio::null;
    let mut child = idle.stdout(output()).stderr(output()).spawn().unwrap();
    // It has others once it has decided on how they are scheduled.
    let threads = until("it has threads", async || Some(policies(child.id())).filter(|(_, count)| *count > 1)).await;
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(threads.0, BTreeSet::from([SCHED_IDLE]));
}
