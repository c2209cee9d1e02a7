//! What lies in `deploy/`: checked by those who will read it.

use std::{path::Path, process::Command};

use serde_json::Value;
use warren::broker::rabbitmq::{self, Management, topology::Plan};

use crate::harness::process::{bare, built_in_kinds, said};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_definitions_for_rabbitmq_are_what_this_build_exports() {
    let file = std::fs::read_to_string(root().join("deploy/rabbitmq/definitions.json")).unwrap();
    let exported = said(bare(root()).args(["topology", "export"]));
    assert_eq!(exported.code, 0, "{exported:?}");
    let (file, exported): (Value, Value) = (serde_json::from_str(&file).unwrap(), exported.json());
    assert_eq!(file, exported, "write it anew: warren topology export > deploy/rabbitmq/definitions.json");
}

#[tokio::test]
async fn rabbitmq_imports_the_definitions_and_then_everything_stands_and_is_bounded() {
    // Only in a broker that is ours alone: the definitions have the names of a real installation.
    let (Ok(rabbitmqctl), Ok(management), Ok(url)) = (
        std::env::var("WARREN_TEST_RABBITMQCTL"),
        std::env::var("WARREN_TEST_MANAGEMENT_URL"),
        std::env::var("AMQP_URL"),
    ) else {
        eprintln!("left out: the broker is not a private one");
        return;
    };
    let imported = Command::new(rabbitmqctl)
        .arg("import_definitions")
        .arg(root().join("deploy/rabbitmq/definitions.json"))
        .output()
        .unwrap();
    assert!(imported.status.success(), "{imported:?}");
    let settings = rabbitmq::Settings {
        url: url.parse().unwrap(),
        prefix: "warren".into(),
        client: "warren test".into(),
        management: None,
    };
    let kinds = built_in_kinds();
    for (piece, plan) in rabbitmq::plan_topology(&settings, &kinds).await.unwrap() {
        assert!(matches!(plan, Plan::Stands | Plan::Ensure), "{}: {plan:?}", piece.title());
    }
    let management = Management::new(management.parse().unwrap(), settings.url.vhost()).unwrap();
    crate::harness::wait::until_equal("what has no bound", vec![], async || {
        management.unbounded(&settings.names(), &kinds).await.unwrap()
    })
    .await;
}

#[tokio::test]
async fn applying_the_topology_bounds_the_queues_where_the_management_api_is_known() {
    let Ok(management) = std::env::var("WARREN_TEST_MANAGEMENT_URL") else {
        eprintln!("left out: there is no management API");
        return;
    };
    let kind = crate::harness::jobs::kind("test.bounded");
    let Some(prefix) = crate::harness::engines::RabbitPrefix::create(&[&kind]).await else { return };
    let settings = rabbitmq::Settings { management: Some(management.parse().unwrap()), ..prefix.settings() };
    let api = settings.management().unwrap();
    let kinds = [kind];
    assert_eq!(api.unbounded(&settings.names(), &kinds).await.unwrap(), kinds, "not yet");
    rabbitmq::apply_topology(&settings, &kinds).await.unwrap();
    crate::harness::wait::until("the broker has applied the policy", async || {
        api.unbounded(&settings.names(), &kinds).await.unwrap().is_empty().then_some(())
    })
    .await;
}

#[test]
fn systemd_understands_the_units() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        eprintln!("left out: there is no systemd-analyze");
        return;
    }
    // The units name a program that is not installed here; everything else is theirs.
    let folder = tempfile::tempdir().unwrap();
    let mut units = Vec::new();
    for entry in std::fs::read_dir(root().join("deploy/systemd")).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let name = path.file_name().unwrap().to_string_lossy().replace("@.service", "@worker.service");
        let unit = folder.path().join(name);
        std::fs::write(&unit, text.replace("/usr/bin/warren", env!("CARGO_BIN_EXE_warren"))).unwrap();
        units.push(unit);
    }
    assert!(units.len() >= 2, "{units:?}");
    let output = Command::new("systemd-analyze").arg("verify").arg("--man=no").args(&units).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let about_ours: Vec<_> = said.lines().filter(|line| line.contains("warren")).collect();
    assert!(output.status.success() && about_ours.is_empty(), "{said}");
}
