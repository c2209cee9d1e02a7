//! `warren key`, the keys that warren's own commands send, and those of the configuration.

use sqlx::{Connection as _, Executor as _, SqliteConnection};

use super::{code, created, forged, made, probe, with_keys};
use crate::harness::{
    http::Http,
    process::{Installation, bare, said},
    wait::until_equal,
};

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_sends_a_key_from_the_environment_or_a_file_and_says_what_is_missing() {
    let (installation, up, keys) = with_keys(&[("shop", &[])], "");
    let enqueue = ["job", "enqueue", "warren.probe", "--gateway", up.gateway()];
    let without = installation.run(&enqueue);
    assert_eq!(without.code, 5, "{without:?}");
    assert!(without.stderr.contains("WARREN_KEY") && without.stderr.contains("--key-file"), "{without:?}");
    let sent = said(installation.command(&enqueue).env("WARREN_KEY", &keys["shop"]));
    assert_eq!(sent.code, 0, "{sent:?}");
    let file = installation.folder.path().join("key");
    std::fs::write(&file, format!("{}\n", keys["shop"])).unwrap();
    let file = file.to_str().unwrap();
    let probed = installation.run(&["probe", "--gateway", up.gateway(), "--key-file", file]);
    assert!(probed.code == 0 && probed.stdout.contains("recorded"), "{probed:?}");
    let wrong = said(installation.command(&enqueue).env("WARREN_KEY", forged(&keys["shop"])));
    assert!(wrong.code == 5 && wrong.stderr.contains("not good"), "{wrong:?}");
    assert!(!wrong.stderr.contains(&keys["shop"][22..]));
    let nowhere = installation.run(&["probe", "--gateway", up.gateway(), "--key-file", "/nowhere"]);
    assert!(nowhere.code == 2 && nowhere.stderr.contains("/nowhere"), "{nowhere:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_made_listed_and_revoked_by_name_and_what_is_asked_wrongly_is_explained() {
    let installation = Installation::embedded("");
    let _up = installation.up(&[]);
    let made = installation.run(&["key", "create", "shop", "--kind", "warren.probe", "--env", "test"]);
    assert_eq!(made.code, 0, "{made:?}");
    let key = made.stdout.trim().to_owned();
    assert!(
        key.starts_with("wrn_test_") && made.stderr.contains("shown this once"),
        "standard output is the key alone"
    );
    let same = installation.run(&["key", "create", "shop"]);
    assert!(same.code == 5 && same.stderr.contains("there is a key shop already"), "{same:?}");
    for (arguments, says) in [
        (&["--scope", "jobs:wirte"][..], "did you mean jobs:write?"),
        (&["--rate", "many"], "a rate reads 100/s"),
        (&["--rate", "1/d", "--burst", "1000"], "a burst is at least 1"),
        (&["--network", "10.0.0.0/99"], "--network"),
        (&["--kind", "A B"], "a kind is"),
        (&["--tenant", "A"], "a tenant is"),
        (&["--env", "LIVE"], "live or test"),
        (&["--expires", "soon"], "a duration reads"),
    ] {
        let said = installation.run(&[&["key", "create", "x"], arguments].concat());
        assert!(said.code == 2 && said.stderr.contains(says), "{says}: {said:?}");
    }
    let table = installation.run(&["key", "list"]);
    for part in ["shop", "live", "jobs:write jobs:read", "database", &key[9..21]] {
        assert!(table.stdout.contains(part), "{part}: {table:?}");
    }
    assert!(!table.stdout.contains(&key[22..]));
    let unknown = installation.run(&["key", "revoke", "shpo"]);
    assert!(unknown.code == 3 && unknown.stderr.contains("did you mean shop?"), "{unknown:?}");
    assert_eq!(installation.run(&["key", "revoke", &key[9..21]]).code, 0, "by its id, too");
    let again = installation.run(&["key", "rotate", "shop"]);
    assert!(again.code == 5 && again.stderr.contains("is revoked, for good"), "{again:?}");
    assert!(installation.run(&["key", "list"]).stdout.contains("revoked"));
    // A whole key where a name belongs is not repeated.
    let pasted = installation.run(&["key", "revoke", &key]);
    assert!(pasted.code == 3 && !pasted.stderr.contains(&key[22..]), "{pasted:?}");
    // A key of the configuration is listed, and changed only there.
    let (_, section) = super::made(&installation, "fixed", &["--scope", "admin"]);
    installation.configure(&section);
    assert!(installation.run(&["key", "list"]).stdout.contains("configuration"));
    let fixed = installation.run(&["key", "revoke", "fixed"]);
    assert!(fixed.code == 5 && fixed.stderr.contains("stands in the configuration"), "{fixed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_a_newer_build_has_made_is_seen_and_can_be_revoked() {
    let installation = Installation::embedded("");
    let up = installation.up(&[]);
    let key = created(&installation, "newer", &[]);
    let (http, invalid) = (Http::with_key(up.gateway(), &key), (401, "invalid_key".to_owned()));
    until_equal("the key is known", 202, async || probe(&http).await.status().as_u16()).await;
    // As a build with one more rule would write it. A revision tells gateways that keys have changed.
    let url = format!("sqlite://{}/warren.db", installation.data().display());
    let mut database = SqliteConnection::connect(&url).await.unwrap();
    let grants = "UPDATE keys SET grants = '{\"scopes\": [\"jobs:write\"], \"hours\": \"9-17\"}' WHERE name = 'newer'";
    database.execute(grants).await.unwrap();
    database.execute("UPDATE installation SET value = value + 1 WHERE name = 'keys'").await.unwrap();
    database.close().await.unwrap();
    until_equal("nobody gets in with it", invalid.clone(), async || code(probe(&http).await).await).await;
    let listed = || installation.run(&["key", "list", "-o", "json"]).json()[0].clone();
    let shown = listed();
    assert_eq!((shown["name"].as_str(), shown["state"].as_str()), (Some("newer"), Some("not understood")), "{shown}");
    assert_eq!((shown["id"].as_str(), shown["tenant"].as_str()), (Some(&key[9..21]), Some("default")), "{shown}");
    let table = installation.run(&["key", "list"]);
    assert!(table.stdout.contains("newer") && table.stdout.contains("not understood"), "{table:?}");
    let rotated = installation.run(&["key", "rotate", "newer"]);
    assert!(rotated.code == 5 && rotated.stderr.contains("does not understand"), "{rotated:?}");
    let revoked = installation.run(&["key", "revoke", "newer", "-o", "json"]);
    assert_eq!((revoked.code, revoked.json()["id"].as_str()), (0, Some(&key[9..21])), "{revoked:?}");
    assert_eq!(listed()["state"], "revoked");
    let again = installation.run(&["key", "revoke", &key[9..21]]);
    assert!(again.code == 5 && again.stderr.contains("is revoked, for good"), "{again:?}");
    created(&installation, "newer", &[]);
    assert_eq!(code(probe(&http).await).await, invalid);
}

#[test]
fn a_configured_key_that_is_wrong_is_told_without_being_repeated() {
    let installation = Installation::embedded("");
    let (key, _) = made(&installation, "shop", &[]);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("key"), format!("{key}x")).unwrap();
    let text = format!(
        "[key.one]\nid = '{}'\nsha256 = ['{key}']\nscopes = ['jobs:wirte']\n[key.two]\nkey_file = '{}'\nscopes = ['admin']\n",
        &key[9..21],
        folder.path().join("key").display()
    );
    std::fs::write(folder.path().join("warren.toml"), text).unwrap();
    let said = said(bare(folder.path()).args(["config", "check"]));
    assert_eq!(said.code, 2, "{said:?}");
    for part in ["key.one.sha256", "did you mean jobs:write?", "key.two", "checksum"] {
        assert!(said.stderr.contains(part), "{part}: {said:?}");
    }
    assert!(!format!("{said:?}").contains(&key[22..]), "{said:?}");
}
