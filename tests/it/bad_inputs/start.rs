//! Configurations, databases and brokers that a process must not start on.

use lapin::{options::QueueDeclareOptions, types::FieldTable};
use sqlx::{Connection as _, Executor as _, SqliteConnection};

use crate::harness::{
    jobs::kind,
    process::{Installation, Said},
};

fn up(installation: &Installation) -> Said {
    installation.run(&["up", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
}

#[test]
fn every_mistake_is_told_at_once_and_no_secret_is() {
    let installation = Installation::embedded(
        r#"
            [gateway]
            listen = "127.0.0.1:70000"
            colour = "hunter2"
            [gateway.tls]
            certificate = "/no/such/certificate.pem"
            key = "/no/such/key.pem"
            [broker]
            url = "amqp://guest:hunter2@127.0.0.1:1/%2f"
            [id]
            dedup_key = "hunter2"
            [key.shop]
            id = "0aZ3kq81PmXw"
            sha256 = ["hunter2"]
            [webhook.secrets]
            shop = ["whsec_hunter2!"]
            [kind."warren.probe"]
            attempts = -1
            backoff_base = "0s"
            [kind."webhook.deliver"]
            backoff_factor = nan
            backoff_base = "2h"
            backoff_cap = "1h"
            [kind."event.received"]
            attempts = 1000000000
            backoff_factor = 0.0
        "#,
    );
    for said in [installation.run(&["config", "check"]), installation.run(&["up"])] {
        assert_eq!((said.code, said.stdout.as_str()), (2, ""), "{said:?}");
        assert!(!said.stderr.contains("hunter2"), "{said:?}");
        for part in [
            "gateway.listen",
            "gateway.colour",
            "gateway.tls.certificate",
            "gateway.tls.key",
            "DATABASE_URL",
            "id.dedup_key",
            "key.shop.sha256",
            "webhook.secrets.shop",
            "kind.warren.probe.attempts",
            "kind.warren.probe.backoff_base",
            "backoff.factor is NaN",
            "is less than backoff.base",
            "kind.event.received.attempts",
            "backoff.factor is 0",
        ] {
            assert!(said.stderr.contains(part), "{part}: {}", said.stderr);
        }
    }
    assert!(!installation.data().exists(), "nothing was made");
}

#[tokio::test]
async fn a_file_that_a_newer_build_has_changed_is_refused() {
    let installation = Installation::embedded("");
    assert_eq!(installation.run(&["migrate"]).code, 0);
    let url = format!("sqlite://{}/warren.db", installation.data().display());
    let later = "INSERT INTO schema_steps (version, description, success, checksum, execution_time)
                 VALUES (99, 'later', true, x'', 0)";
    let mut file = SqliteConnection::connect(&url).await.unwrap();
    file.execute(later).await.unwrap();
    file.close().await.unwrap();
    let refused = up(&installation);
    assert_eq!(refused.code, 6, "{refused:?}");
    assert!(refused.stderr.contains("version 99") && refused.stderr.contains("run a newer warren"), "{refused:?}");
}

#[tokio::test]
async fn a_queue_that_stands_otherwise_is_named_with_the_difference_and_what_to_do() {
    let Some(installation) = Installation::on_servers("").await else { return };
    let (rabbit, _) = installation.servers().unwrap();
    let (_connection, channel) = rabbit.channel().await;
    let queue = rabbit.names().queue(&kind("warren.probe"));
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.as_str().into(), durable, FieldTable::default()).await.unwrap();
    for refused in [up(&installation), installation.run(&["topology", "apply"])] {
        assert_eq!(refused.code, 6, "{refused:?}");
        for part in [queue.as_str(), "x-", "warren topology plan", "warren topology apply"] {
            assert!(refused.stderr.contains(part), "{part}: {refused:?}");
        }
    }
    let plan = installation.run(&["topology", "plan"]);
    assert!(plan.code == 6 && plan.stdout.contains(&queue) && plan.stdout.contains("STANDS OTHERWISE"), "{plan:?}");
}
