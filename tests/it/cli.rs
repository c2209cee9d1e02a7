//! The command line: what it prints and what it exits with.

use serde_json::json;

use crate::harness::{
    http::Http,
    process::{Installation, bare, said},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_job_can_be_sent_shown_listed_and_probed() {
    let installation = Installation::embedded("");
    let up = installation.up(&[]);
    let gateway = up.gateway();
    let sent =
        installation.run(&["job", "enqueue", "warren.probe", "--body", "{\"payload_bytes\": 3}", "--gateway", gateway]);
    assert_eq!(sent.code, 0, "{sent:?}");
    let id = sent.stdout.split_whitespace().next().unwrap();
    Http::to(gateway).job_in(id, "succeeded").await;
    let shown = installation.run(&["job", "show", id, "-o", "json"]).json();
    assert_eq!((shown["state"].as_str(), shown["kind"].as_str()), (Some("succeeded"), Some("warren.probe")));
    let delayed =
        ["job", "enqueue", "warren.probe", "--delay", "1h", "--key", "k1", "--gateway", gateway, "-o", "json"];
    let later = installation.run(&delayed).json();
    assert_eq!(later["state"], "scheduled");
    let again = installation.run(&delayed);
    assert_eq!((again.json()["id"].clone(), again.json()["replayed"].as_bool()), (later["id"].clone(), Some(true)));
    let listed = installation.run(&["job", "list"]);
    assert!(listed.stdout.contains("scheduled") && !listed.stdout.contains(id), "{listed:?}");
    let listed =
        installation.run(&["job", "list", "--state", "succeeded", "--kind", "warren.probe", "-o", "json"]).json();
    assert_eq!(listed[0]["id"], id);
    let probe = installation.run(&["probe", "--gateway", gateway, "-o", "json"]).json();
    let millis: Vec<_> =
        ["accepted_ms", "started_ms", "recorded_ms", "seen_ms"].iter().map(|name| probe[name].as_f64()).collect();
    assert!(millis.iter().all(Option::is_some), "{probe}");
    assert!(millis[1] <= millis[2], "recorded after it started: {probe}");
}

#[test]
fn exit_codes_tell_failures_apart() {
    let installation = Installation::embedded("");
    let nobody = "0190aaaa-bbbb-8ccc-8ddd-eeeeffff0000";
    // The file has to be there before anything can be looked up in it.
    installation.run(&["migrate"]);
    let cases: [(&[&str], i32, &str); 8] = [
        (&["job", "show", nobody], 3, "no row of job"),
        (&["dead", "replay", nobody], 3, "there is no job"),
        (&["job", "show", "7"], 2, "invalid value"),
        (&["job", "list", "--state", "lost"], 2, "a state is one of"),
        (&["job", "list", "--kind", "Bad Kind"], 2, "parts joined by single dots"),
        (&["job", "enqueue", "warren.probe", "--gateway", "http://127.0.0.1:1"], 4, "warren up"),
        (&["topology", "plan"], 2, "AMQP_URL"),
        (&["nonsense"], 2, "unrecognized subcommand"),
    ];
    for (arguments, code, says) in cases {
        let said = installation.run(arguments);
        assert_eq!(said.code, code, "{arguments:?}: {said:?}");
        assert!(said.stderr.contains(says), "{arguments:?}: {said:?}");
        assert_eq!(said.stdout, "", "{arguments:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_job_is_explained_field_by_field() {
    let installation = Installation::embedded("");
    let up = installation.up(&[]);
    let body = json!({ "url": "ftp://x", "event_type": "", "event_id": "a.b" }).to_string();
    let refused = installation.run(&["job", "enqueue", "webhook.deliver", "--body", &body, "--gateway", up.gateway()]);
    assert_eq!(refused.code, 5, "{refused:?}");
    for field in ["/url", "/event_type", "/event_id"] {
        assert!(refused.stderr.contains(field), "{refused:?}");
    }
    let unknown = installation.run(&["job", "enqueue", "warren.prob", "--gateway", up.gateway()]);
    assert_eq!(unknown.code, 3, "{unknown:?}");
    assert!(unknown.stderr.contains("did you mean warren.probe"), "{unknown:?}");
}

#[test]
fn every_mistake_in_the_configuration_is_reported_at_once() {
    let installation = Installation::embedded(
        "[gateway]\nlisten = 'x'\n[worker]\ndrian = '1s'\n[kind.'warren.probe']\ntimeout = '3h'\n",
    );
    let said_ = installation.run(&["config", "check"]);
    assert_eq!(said_.code, 2, "{said_:?}");
    for part in ["3 places", "gateway.listen", "worker.drian", "did you mean worker.drain", "kind.warren.probe.timeout"]
    {
        assert!(said_.stderr.contains(part), "{part}: {said_:?}");
    }
    let installation = Installation::embedded("[kind.'warren.porbe']\nconcurrency = 5\n");
    let unknown = installation.run(&["config", "check"]);
    assert!(unknown.code == 2 && unknown.stderr.contains("warren.probe"), "{unknown:?}");
    let installation = Installation::embedded("[kind.'warren.probe']\nbackoff_factor = 0.5\n");
    let spins = installation.run(&["config", "check"]);
    assert!(spins.code == 2 && spins.stderr.contains("backoff.factor is 0.5"), "{spins:?}");
    let like = "[kind.new]\nlike = 'warren.prob'\n[kind.'Bad Name']\nlike = 'warren.probe'\n\
                [kind.'warren.probe']\nlike = 'webhook.deliver'\n[kind.newer]\nlike = 'new'\n";
    let unlike = Installation::embedded(like).run(&["config", "check"]);
    assert_eq!(unlike.code, 2, "{unlike:?}");
    let own = "kind.warren.probe (all in all): it has a worker of its own";
    for part in
        ["4 places", "kind.new (all in all): like: there is no such kind; did you mean warren.probe", own, "newer"]
    {
        assert!(unlike.stderr.contains(part), "{part}: {unlike:?}");
    }
    // Each of these is right by itself, or of another part.
    let installation = Installation::embedded(
        "[broker]\nurl = 'amqp://127.0.0.1'\n[database]\nurl = 'postgres://127.0.0.1/x'\n[gateway]\nlisten = '0.0.0.0:1'\n\
         assume_no_keys = true\n[log]\nlevel = 'a=b=c'\n[kind.one]\nattempts = 1\n[kind.two]\nattempts = 1\n",
    );
    for verb in [&["config", "check"][..], &["up"]] {
        let all = installation.run(verb);
        assert_eq!(all.code, 2, "{all:?}");
        for part in ["5 places", "config keys", "gateway.assume_no_keys", "log.level", "kind.one", "kind.two"] {
            assert!(all.stderr.contains(part), "{part}: {all:?}");
        }
    }
    let right = Installation::embedded("").run(&["config", "check", "-o", "json"]);
    let kinds = json!(["analytics.event", "event.received", "warren.probe", "webhook.deliver"]);
    assert_eq!(right.json()["kinds"], kinds);
}

#[test]
fn a_setting_that_is_empty_takes_no_default_away() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("warren.toml"), "[broker]\nprefix = ''\nurl = 'amqp://127.0.0.1'\n").unwrap();
    let mut command = bare(folder.path());
    command.args(["config", "check"]).env("AMQP_URL", "").env("WARREN__GATEWAY__LISTEN", "");
    let said = said(&mut command);
    // The file's broker stands, and is alone.
    assert!(said.code == 2 && said.stderr.contains("1 places") && said.stderr.contains("DATABASE_URL"), "{said:?}");
}

#[test]
fn a_password_is_never_printed() {
    let folder = tempfile::tempdir().unwrap();
    for (broker, database) in [
        ("amqp://guest:hunter2@127.0.0.1:1/%2f", "postgres://warren:hunter2@127.0.0.1:1/x"),
        ("http://guest:hunter2@127.0.0.1", "mysql://warren:hunter2@127.0.0.1:1/x"),
    ] {
        for arguments in [&["config", "check"][..], &["migrate"], &["topology", "plan"], &["job", "list"]] {
            let mut command = bare(folder.path());
            command.args(arguments).env("AMQP_URL", broker).env("DATABASE_URL", database).env("RUST_LOG", "debug");
            let said = said(&mut command);
            assert!(!format!("{said:?}").contains("hunter2"), "{arguments:?}: {said:?}");
        }
    }
}

#[test]
fn what_could_steer_a_terminal_is_shown_as_what_it_is() {
    let installation = Installation::embedded("");
    let up = installation.up(&[]);
    let body = json!({
        "url": "https://example.com/\u{1b}[31m", "event_type": "x", "event_id": "1", "deadline": "2020-01-01T00:00:00Z",
        "body": { "text": "\u{1b}]0;owned\u{7}\u{202e}" },
    });
    let sent = installation.run(&[
        "job",
        "enqueue",
        "webhook.deliver",
        "--body",
        &body.to_string(),
        "--gateway",
        up.gateway(),
    ]);
    let id = sent.stdout.split_whitespace().next().unwrap_or_else(|| panic!("{sent:?}"));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(Http::to(up.gateway()).job_in(id, "dead"));
    let shown = installation.run(&["job", "show", id]).stdout;
    assert!(!shown.contains(['\u{1b}', '\u{7}', '\u{202e}']), "{shown:?}");
    assert!(shown.contains("owned"));
}
