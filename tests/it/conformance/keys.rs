//! The store port, continued: API keys.

use sqlx::{Connection as _, Executor as _, SqliteConnection};
use warren::{
    clock,
    job::{Kind, Tenant},
    keys::{Burst, Digest, Env, Grants, Key, KeyText, Scope, verify},
};

use super::store::{Fixture, LATER, NOW};
use crate::harness::engines::{LiteFile, PgDatabase};

impl Fixture {
    /// Does to the database what no build of ours does.
    async fn execute(&self, statement: &'static str) {
        if let Some(database) = self.keep.downcast_ref::<PgDatabase>() {
            database.connect().await.execute(statement).await.unwrap();
        } else if let Some(file) = self.keep.downcast_ref::<LiteFile>() {
            let url = format!("sqlite://{}/warren.db", file.folder.path().display());
            SqliteConnection::connect(&url).await.unwrap().execute(statement).await.unwrap();
        }
    }
}

fn key(name: &str) -> (Key, KeyText) {
    let env: Env = "test".parse().unwrap();
    let (id, text) = KeyText::mint(&env).unwrap();
    let grants = Grants { scopes: [Scope::JobsWrite].into_iter().collect(), ..Grants::default() };
    let (name, tenant, digest) = (name.to_owned(), Tenant::DEFAULT, text.digest());
    let (previous, created_at, expires_at, revoked_at, last_used_at) = (None, None, None, None, None);
    (Key { id, env, name, tenant, grants, digest, previous, created_at, expires_at, revoked_at, last_used_at }, text)
}

async fn only(fixture: &Fixture) -> (i64, Key) {
    let stored = fixture.second.keys(None).await.unwrap().expect("whatever is there");
    assert_eq!((stored.keys.len(), stored.not_understood.len()), (1, 0));
    (stored.revision, stored.keys.into_iter().next().unwrap())
}

pub(super) async fn a_key_is_kept_as_it_was_made_and_its_name_is_taken_until_it_is_revoked(fixture: &Fixture) {
    let Fixture { store, second, .. } = fixture;
    let none = store.keys(None).await.unwrap().expect("never read before");
    assert_eq!((none.revision, none.keys.len()), (0, 0));
    assert_eq!(store.keys(Some(0)).await.unwrap(), None, "nothing has changed");
    let before = clock::now();
    let expires_at = Some(before + 3_600_000_000);
    let grants = Grants {
        scopes: [Scope::JobsRead, Scope::EventsWrite].into_iter().collect(),
        kinds: vec![Kind::new("a.b").unwrap(), Kind::new("c").unwrap()],
        networks: vec!["10.0.0.0/8".parse().unwrap()],
        rate: Some(Burst::new("5/s".parse().unwrap(), Some(9)).unwrap()),
        quota: Some("100/d".parse().unwrap()),
    };
    let (plain, _) = key("shop");
    let whole = Key { tenant: Tenant::new("acme").unwrap(), grants, expires_at, ..plain };
    assert!(store.create_key(&whole).await.unwrap());
    let (revision, kept) = only(fixture).await;
    let created = kept.created_at.unwrap();
    assert!((before - 1_000_000..=clock::now() + 1_000_000).contains(&created), "by the store's clock, about now");
    assert_eq!(kept, Key { created_at: kept.created_at, ..whole.clone() });
    assert_eq!(second.keys(Some(revision)).await.unwrap(), None);
    let (same_name, _) = key("shop");
    assert!(!store.create_key(&same_name).await.unwrap(), "its name is taken");
    let same_id = Key { name: "other".into(), ..whole.clone() };
    assert!(!store.create_key(&same_id).await.unwrap(), "its id is taken");
    assert_eq!(only(fixture).await.1, kept, "the one that is there stays as it was");
    assert!(!store.revoke_key(same_name.id.as_str()).await.unwrap(), "there is none");
    let (revision, _) = only(fixture).await;
    assert!(store.revoke_key(whole.id.as_str()).await.unwrap());
    let changed = second.keys(Some(revision)).await.unwrap().expect("a revocation is a change");
    assert!(changed.revision > revision && changed.keys[0].revoked_at.is_some());
    assert!(!store.revoke_key(whole.id.as_str()).await.unwrap(), "once is enough");
    assert!(!store.rotate_key(whole.id, Digest::of("x"), LATER).await.unwrap(), "a revoked key has no other secret");
    assert!(store.create_key(&same_name).await.unwrap(), "its name is free");
    assert!(!store.create_key(&same_id).await.unwrap(), "its id never is");
}

pub(super) async fn a_rotation_keeps_the_former_secret_for_a_while_and_one_before_that_no_longer(fixture: &Fixture) {
    let Fixture { store, .. } = fixture;
    let (made, first) = key("shop");
    assert!(store.create_key(&made).await.unwrap());
    let secrets: Vec<_> = (0..3).map(|_| KeyText::mint_for(&made.env, made.id).unwrap()).collect();
    let good = async || {
        let (_, key) = only(fixture).await;
        let all = [&first, &secrets[0], &secrets[1], &secrets[2]];
        all.map(|text| verify(Some(&key), &text.digest(), clock::now()))
    };
    assert_eq!(good().await, [true, false, false, false]);
    assert!(store.rotate_key(made.id, secrets[0].digest(), LATER).await.unwrap());
    assert_eq!(good().await, [true, true, false, false]);
    assert!(store.rotate_key(made.id, secrets[1].digest(), LATER).await.unwrap());
    assert_eq!(good().await, [false, true, true, false], "there are never more than two");
    assert!(store.rotate_key(made.id, secrets[2].digest(), NOW).await.unwrap());
    assert_eq!(good().await, [false, false, false, true], "without an overlap there is one");
    let (unknown, _) = key("none");
    assert!(!store.rotate_key(unknown.id, unknown.digest, NOW).await.unwrap());
}

pub(super) async fn the_last_use_of_a_key_is_noted_and_changes_nothing_else(fixture: &Fixture) {
    let Fixture { store, second, .. } = fixture;
    let ((made, _), (unknown, _)) = (key("shop"), key("none"));
    assert!(store.create_key(&made).await.unwrap());
    let (revision, before) = only(fixture).await;
    let used = clock::now() / 1_000 * 1_000;
    store.touch_keys(&[(made.id, used), (unknown.id, used)]).await.unwrap();
    assert_eq!(second.keys(Some(revision)).await.unwrap(), None, "use is no change");
    assert_eq!(only(fixture).await.1, Key { last_used_at: Some(used), ..before.clone() });
    store.touch_keys(&[(made.id, used - 5_000_000)]).await.unwrap();
    assert_eq!(only(fixture).await.1.last_used_at, Some(used), "another process was later");
    store.touch_keys(&[]).await.unwrap();
}

pub(super) async fn a_key_that_this_build_does_not_understand_lets_nobody_in_and_can_be_revoked(fixture: &Fixture) {
    let Fixture { store, .. } = fixture;
    let (made, _) = key("shop");
    let (other, _) = key("other");
    assert!(store.create_key(&made).await.unwrap() && store.create_key(&other).await.unwrap());
    fixture
        .execute("UPDATE keys SET grants = '{\"scopes\": [\"jobs:write\"], \"hours\": \"9-17\"}' WHERE name = 'shop'")
        .await;
    let stored = store.keys(None).await.unwrap().unwrap();
    assert_eq!((stored.keys.len(), stored.not_understood.len()), (1, 1));
    assert_eq!(stored.keys[0].id, other.id);
    let strange = &stored.not_understood[0];
    assert_eq!((strange.id.as_str(), strange.name.as_str(), strange.revoked_at), (made.id.as_str(), "shop", None));
    // It can be revoked all the same, and then its name is free.
    assert!(store.revoke_key(&strange.id).await.unwrap() && !store.revoke_key(&strange.id).await.unwrap());
    let revoked = store.keys(Some(stored.revision)).await.unwrap().expect("a revocation is a change");
    assert!(revoked.not_understood[0].revoked_at.is_some());
    assert!(store.create_key(&key("shop").0).await.unwrap());
}
