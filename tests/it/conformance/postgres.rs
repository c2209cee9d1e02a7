//! Postgres: what only a store that several write to at the same time must answer.

use std::{ops::Range, sync::Arc};

use sqlx::{Connection as _, PgConnection, Row as _};
use warren::{
    clock,
    job::Micros,
    store::{Kinds, Prune as _, Pruned, Removable, postgres::Postgres},
};

use super::store::record;
use crate::harness::{
    engines::PgDatabase,
    jobs::{envelope, success},
    wait::until_equal,
};

/// Three jobs that are over, and a window that holds them.
async fn three_that_can_go(store: &Postgres) -> Range<Micros> {
    let started = clock::now();
    record(store, (0..3).map(|_| success(&envelope())).collect()).await;
    // A second more, should the database's clock be another one.
    started - 1_000_000..clock::now() + 1_000_000
}

/// How many statements of this database wait for another transaction.
async fn waiting(connection: &mut PgConnection) -> i64 {
    let count = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
    sqlx::query(count).fetch_one(connection).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pruner_learns_that_there_may_be_more_although_another_has_removed_what_it_found() {
    let Some(database) = PgDatabase::create().await else { return };
    let store = Arc::new(database.store().await);
    let which = || Removable { keyed: false, of: Kinds::AllBut(Vec::new()) };
    let (mut other, mut watching) = (database.connect().await, database.connect().await);
    for (at_most, is_kept, found, touched) in [(2, false, 2, 0), (3, true, 3, 3), (100, false, 3, 0)] {
        let window = three_that_can_go(&store).await;
        let mut transaction = other.begin().await.unwrap();
        sqlx::query("DELETE FROM jobs").execute(&mut *transaction).await.unwrap();
        let removing = {
            let (store, window) = (store.clone(), window.clone());
            tokio::spawn(async move { store.remove(&which(), window, at_most).await.unwrap() })
        };
        until_equal("it waits for the other one", 1, async || waiting(&mut watching).await).await;
        if is_kept {
            transaction.rollback().await.unwrap();
        } else {
            transaction.commit().await.unwrap();
        }
        assert_eq!(removing.await.unwrap(), Pruned { found, touched }, "{at_most} at most, kept: {is_kept}");
        assert_eq!(store.remove(&which(), window, 100).await.unwrap(), Pruned::all_of(0), "none is left");
    }
}
