//! The store port, continued: what the dispatcher asks of it.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout};
use warren::{
    clock,
    job::{Due, Envelope, Kind, NewJob, State},
    store::{Store, Transition},
};

use super::store::{Fixture, LATER, LEASE, NOW, claim_ids, get, record};
use crate::harness::{
    jobs::{dead, envelope, envelope_of, kind, new_job, retry, success, success_with},
    wait::until,
};

pub(super) async fn a_job_with_a_delay_is_claimed_when_it_is_due_and_not_before(Fixture { store, .. }: &Fixture) {
    let (soon, late, past) = (envelope(), envelope(), envelope());
    let delay = Duration::from_millis(300);
    let at_past = NewJob { due: Due::At(clock::now() - 5_000_000), ..new_job(&past, NOW) };
    let began = Instant::now();
    store.insert(&[new_job(&soon, delay), new_job(&late, LATER), at_past]).await.unwrap();
    assert_eq!(claim_ids(store.as_ref()).await, HashSet::from([past.id]));
    let next = store.next_due(&[]).await.unwrap().expect("something is due");
    assert!(next <= delay, "{next:?}");
    let claimed = until("the one that is due soon", async || {
        Some(claim_ids(store.as_ref()).await).filter(|claimed| !claimed.is_empty())
    });
    assert_eq!(claimed.await, HashSet::from([soon.id]));
    assert!(began.elapsed() >= delay, "not early");
}

pub(super) async fn two_claimers_never_take_one_row(Fixture { store, second, .. }: &Fixture) {
    let jobs: Vec<_> = (0..600).map(|_| new_job(&envelope(), NOW)).collect();
    store.insert(&jobs).await.unwrap();
    let claimers: Vec<_> = (0..6)
        .map(|number| {
            let store = if number % 2 == 0 { store.clone() } else { second.clone() };
            tokio::spawn(async move {
                let mut taken = Vec::new();
                loop {
                    let claim = store.claim(37, LEASE, &[]).await.unwrap();
                    if claim.jobs.is_empty() {
                        return taken;
                    }
                    taken.extend(claim.jobs.into_iter().map(|job| job.envelope.id));
                }
            })
        })
        .collect();
    let mut taken = Vec::new();
    for claimer in claimers {
        taken.extend(claimer.await.unwrap());
    }
    // One that met the others' locks may have found nothing and left; the rest is still there.
    taken.extend(claim_ids(store.as_ref()).await);
    assert_eq!(taken.len(), 600);
    assert_eq!(taken.into_iter().collect::<HashSet<_>>().len(), 600);
}

pub(super) async fn a_lease_that_lapses_is_taken_by_another_and_its_own_late_confirm_is_nothing(
    Fixture { store, second, .. }: &Fixture,
) {
    let job = envelope();
    store.insert(&[new_job(&job, NOW)]).await.unwrap();
    let first = store.claim(10, Duration::from_millis(100), &[]).await.unwrap();
    assert_eq!(first.jobs.len(), 1);
    assert!(second.claim(10, LEASE, &[]).await.unwrap().jobs.is_empty(), "it is held");
    let other = until("the lease lapses", async || {
        let claim = second.claim(10, LEASE, &[]).await.unwrap();
        (!claim.jobs.is_empty()).then_some(claim)
    })
    .await;
    assert_eq!(store.published(first.token, &[job.id]).await.unwrap(), 0);
    store.release(first.token, &[job.id]).await.unwrap();
    assert!(claim_ids(store.as_ref()).await.is_empty(), "the other still holds it");
    assert_eq!(second.published(other.token, &[job.id]).await.unwrap(), 1);
    let row = get(store.as_ref(), job.id).await;
    assert_eq!((row.state, row.due_at), (State::Queued, None));
}

pub(super) async fn a_confirm_after_the_job_has_finished_changes_nothing(Fixture { store, .. }: &Fixture) {
    let (done, again) = (envelope(), envelope());
    store.insert(&[new_job(&done, NOW), new_job(&again, NOW)]).await.unwrap();
    let claim = store.claim(10, LEASE, &[]).await.unwrap();
    record(store.as_ref(), vec![success(&done), retry(&again, LATER)]).await;
    assert_eq!(store.published(claim.token, &[done.id, again.id]).await.unwrap(), 0);
    assert_eq!(get(store.as_ref(), done.id).await.state, State::Succeeded);
    let row = get(store.as_ref(), again.id).await;
    assert_eq!((row.state, row.envelope.run), (State::Retrying, 2));
    assert!(row.due_at.is_some(), "it is still to be published");
}

pub(super) async fn what_is_released_is_due_at_once(Fixture { store, .. }: &Fixture) {
    let job = envelope();
    store.insert(&[new_job(&job, NOW)]).await.unwrap();
    let claim = store.claim(10, LEASE, &[]).await.unwrap();
    assert_eq!(store.next_due(&[]).await.unwrap(), None, "nothing that no one holds");
    store.release(claim.token, &[job.id]).await.unwrap();
    assert_eq!(store.next_due(&[]).await.unwrap(), Some(Duration::ZERO));
    assert_eq!(claim_ids(store.as_ref()).await, HashSet::from([job.id]));
}

pub(super) async fn a_claim_is_fair_between_kinds_and_passes_over_those_it_is_told_to(Fixture { store, .. }: &Fixture) {
    let (many, few, none) = (kind("a.many"), kind("b.few"), kind("c.none"));
    let jobs = |kind: &Kind, count| (0..count).map(|_| new_job(&envelope_of(kind), NOW)).collect::<Vec<_>>();
    store.insert(&[jobs(&many, 300), jobs(&few, 5), jobs(&none, 5)].concat()).await.unwrap();
    let claim = store.claim(20, LEASE, std::slice::from_ref(&none)).await.unwrap();
    let count = |kind: &Kind| claim.jobs.iter().filter(|job| job.envelope.kind == *kind).count();
    assert_eq!((count(&many), count(&few), count(&none)), (10, 5, 0));
    store.release(claim.token, &claim.jobs.iter().map(|job| job.envelope.id).collect::<Vec<_>>()).await.unwrap();
    let all_others = [many, few, none];
    assert_eq!(store.next_due(&all_others).await.unwrap(), None);
    assert!(store.claim(20, LEASE, &all_others).await.unwrap().jobs.is_empty());
}

pub(super) async fn whoever_waits_is_woken_by_what_becomes_due_soon(Fixture { store, .. }: &Fixture) {
    let wakes = async |make_due: &dyn Fn(Arc<dyn Store>) -> tokio::task::JoinHandle<()>| {
        // A wake-up that is left from before ends the first wait; the second begins with none.
        let waiting = store.clone();
        timeout(Duration::from_millis(50), async {
            loop {
                waiting.wait(LATER).await;
            }
        })
        .await
        .unwrap_err();
        let began = Instant::now();
        let made = make_due(store.clone());
        store.wait(LATER).await;
        made.await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(5), "woken, and not by the clock");
    };
    // Until the first notification has come through, nobody knows that somebody listens.
    until("somebody listens", async || {
        store.insert(&[new_job(&envelope(), NOW)]).await.unwrap();
        timeout(Duration::from_millis(100), store.wait(LATER)).await.ok()
    })
    .await;
    wakes(&|store| tokio::spawn(async move { _ = store.insert(&[new_job(&envelope(), NOW)]).await.unwrap() })).await;
    wakes(&|store| tokio::spawn(async move { _ = record(store.as_ref(), vec![retry(&envelope(), NOW)]).await })).await;
    wakes(&|store| {
        let follow_up = success_with(&envelope(), vec![new_job(&envelope(), NOW)]);
        tokio::spawn(async move { _ = record(store.as_ref(), vec![follow_up]).await })
    })
    .await;
    let job = envelope();
    record(store.as_ref(), vec![dead(&job)]).await;
    wakes(&|store| tokio::spawn(async move { assert_eq!(store.replay(job.id).await.unwrap(), Transition::Done) }))
        .await;
    // A plain success, and what is due much later, wake nobody.
    record(store.as_ref(), vec![success(&envelope()), retry(&envelope(), LATER)]).await;
    timeout(Duration::from_millis(200), store.wait(LATER)).await.unwrap_err();
}

fn due_before(seconds: i64, job: &Envelope) -> NewJob {
    NewJob { due: Due::At(clock::now() - seconds * 1_000_000), ..new_job(job, NOW) }
}

pub(super) async fn what_is_released_is_claimed_first_while_there_is_more(Fixture { store, .. }: &Fixture) {
    let jobs: Vec<_> = (1..=100).rev().map(|seconds| due_before(seconds, &envelope())).collect();
    store.insert(&jobs).await.unwrap();
    let claim = async || {
        let claim = store.claim(10, LEASE, &[]).await.unwrap();
        (claim.token, claim.jobs.iter().map(|job| job.envelope.id).collect::<Vec<_>>())
    };
    let ((first_token, first), (second_token, second)) = (claim().await, claim().await);
    store.release(second_token, &second).await.unwrap();
    store.release(first_token, &first).await.unwrap();
    assert_eq!((claim().await.1, claim().await.1), (first, second));
}

pub(super) async fn what_comes_up_behind_a_claim_is_claimed_while_there_is_more_before_it(
    Fixture { store, second, .. }: &Fixture,
) {
    let jobs: Vec<_> = (1..=2000).rev().map(|seconds| due_before(seconds, &envelope())).collect();
    store.insert(&jobs).await.unwrap();
    let lapsing = second.claim(10, Duration::from_millis(100), &[]).await.unwrap();
    let first = store.claim(10, LEASE, &[]).await.unwrap();
    assert_eq!((lapsing.jobs.len(), first.jobs.len()), (10, 10));
    let (past, other) = (envelope(), envelope_of(&kind("a.other")));
    store.insert(&[due_before(9000, &past), new_job(&other, NOW)]).await.unwrap();
    let mut missing: HashSet<_> = lapsing.jobs.iter().map(|job| job.envelope.id).chain([past.id, other.id]).collect();
    let claimed = until("what lies behind", async || {
        // One at a time, so that there is more to claim all the while.
        let claim = store.claim(1, LEASE, &[]).await.unwrap();
        claim.jobs.iter().for_each(|job| _ = missing.remove(&job.envelope.id));
        missing.is_empty().then_some(())
    });
    claimed.await;
    let before_it = store.next_due(&[]).await.unwrap();
    assert_eq!(before_it, Some(Duration::ZERO), "it did not have to come to the end first");
}
