//! The store port, continued: what operators, the pruner and the watch over processes ask of it.

use std::time::Duration;

use warren::{
    clock,
    job::{CANCELLED, Completion, Envelope, Key, Kind, Outcome, Parking, State, Suspicion, Tenant},
    store::{Cancelled, Filter, Instance, JobRecord, Keepsake, Kinds, Pruned, Removable, Transition, Work},
};

use super::store::{Fixture, LATER, NOW, get, record, run};
use crate::harness::jobs::{BODY, dead, envelope, failure, kind, new_job, retry, success, success_with};

pub(super) async fn jobs_are_listed_newest_first_and_page_by_page(Fixture { store, .. }: &Fixture) {
    let aged = |age: i64| Envelope { created_at: clock::now() - age * 1_000_000, ..envelope() };
    let jobs: Vec<_> = (0..30).map(aged).collect();
    let other = Envelope { kind: kind("z.other"), ..aged(5) };
    let mut batch: Vec<_> = jobs.iter().map(dead).collect();
    batch.extend([success(&aged(1)), retry(&other, LATER)]);
    record(store.as_ref(), batch).await;
    let mut filter = Filter { state: Some(State::Dead), limit: 12, ..Filter::default() };
    let mut seen = Vec::new();
    loop {
        let page = store.list(&filter).await.unwrap();
        let Some(last) = page.last() else { break };
        filter.before = Some((last.envelope.created_at, last.envelope.id));
        assert!(page.iter().all(|row| row.body.is_none()), "a list is no place for bodies");
        seen.extend(page.into_iter().map(|row| row.envelope.id));
    }
    assert_eq!(seen, jobs.iter().map(|job| job.id).collect::<Vec<_>>());
    let list = async |filter: Filter| {
        let filter = Filter { limit: 100, ..filter };
        store.list(&filter).await.unwrap().into_iter().map(|row| row.envelope.id).collect::<Vec<_>>()
    };
    assert_eq!(list(Filter { kind: Some(other.kind.clone()), ..Filter::default() }).await, [other.id]);
    assert_eq!(list(Filter::default()).await.len(), 31, "all but those that have succeeded");
    assert_eq!(list(Filter { state: Some(State::Succeeded), ..Filter::default() }).await.len(), 1);
    assert_eq!(list(Filter { tenant: Some(Tenant::new("acme").unwrap()), ..Filter::default() }).await.len(), 0);
}

pub(super) async fn dead_letters_are_counted_up_to_a_bound(Fixture { store, .. }: &Fixture) {
    record(store.as_ref(), (0..20).map(|_| dead(&envelope())).collect()).await;
    assert_eq!(store.count(State::Dead, 100).await.unwrap(), 20);
    assert_eq!(store.count(State::Dead, 7).await.unwrap(), 7);
    assert_eq!(store.count(State::Cancelled, 100).await.unwrap(), 0);
}

pub(super) async fn the_pruner_strips_and_removes_what_is_in_its_window_and_nothing_else(
    Fixture { store, .. }: &Fixture,
) {
    let started = clock::now();
    let plain = envelope();
    let keyed = Envelope { key: Key::Keyed, ..envelope() };
    let (dead_one, waiting) = (envelope(), envelope());
    let retried = run(&envelope(), 2);
    let other = Envelope { kind: crate::harness::jobs::kind("x.y"), ..envelope() };
    record(store.as_ref(), vec![retry(&Envelope { run: 1, ..retried.clone() }, NOW)]).await;
    let with_body = |it| Completion { body: Some(BODY.into()), ..success(it) };
    record(
        store.as_ref(),
        vec![
            with_body(&plain),
            with_body(&other),
            success(&keyed),
            dead(&dead_one),
            success(&retried),
            retry(&waiting, LATER),
        ],
    )
    .await;
    // A window of a second more, should the database's clock be another one.
    let all = started - 1_000_000..clock::now() + 1_000_000;
    let before = started - 3_000_000..started - 2_000_000;
    let all_but = |keyed, kinds: &[&Kind]| Removable {
        keyed,
        of: Kinds::AllBut(kinds.iter().map(|kind| (*kind).clone()).collect()),
    };
    let kind = &plain.kind;
    let (this, others) = (Kinds::Only(vec![kind.clone()]), Kinds::AllBut(vec![kind.clone()]));
    assert_eq!(
        store.strip(Keepsake::Body, &this, before.clone(), 100).await.unwrap(),
        Pruned::all_of(0),
        "an empty window"
    );
    assert_eq!(
        store.strip(Keepsake::Body, &others, all.clone(), 100).await.unwrap(),
        Pruned::all_of(1),
        "all kinds but this one"
    );
    assert_eq!(get(store.as_ref(), plain.id).await.body.as_deref(), Some(BODY));
    assert_eq!(store.strip(Keepsake::Body, &this, all.clone(), 100).await.unwrap(), Pruned::all_of(1));
    assert_eq!(
        store.strip(Keepsake::Output, &this, all.clone(), 2).await.unwrap(),
        Pruned::all_of(2),
        "no more than was asked for"
    );
    assert_eq!(
        store.strip(Keepsake::Output, &this, all.clone(), 100).await.unwrap(),
        Pruned::all_of(1),
        "this kind and no other"
    );
    let both = Kinds::Only(vec![kind.clone(), other.kind.clone()]);
    assert_eq!(
        store.strip(Keepsake::Output, &both, all.clone(), 100).await.unwrap(),
        Pruned::all_of(1),
        "of the other"
    );
    let row = get(store.as_ref(), plain.id).await;
    assert_eq!((row.state, row.body, row.output), (State::Succeeded, None, None));
    assert_eq!(get(store.as_ref(), dead_one.id).await.body.as_deref(), Some(BODY), "a dead letter keeps its bytes");
    let unkeyed = all_but(false, &[]);
    assert_eq!(store.remove(&unkeyed, before, 100).await.unwrap(), Pruned::all_of(0));
    assert_eq!(store.remove(&all_but(false, &[kind, &other.kind]), all.clone(), 100).await.unwrap(), Pruned::all_of(0));
    assert_eq!(
        store.remove(&all_but(false, &[kind]), all.clone(), 100).await.unwrap(),
        Pruned::all_of(1),
        "all kinds but this one"
    );
    assert!(store.get(Some(&Tenant::DEFAULT), other.id).await.unwrap().is_none());
    assert_eq!(store.remove(&unkeyed, all.clone(), 1).await.unwrap(), Pruned::all_of(1), "no more than was asked for");
    let only = Removable { keyed: false, of: this };
    record(store.as_ref(), vec![success(&other)]).await;
    assert_eq!(store.remove(&only, all.clone(), 100).await.unwrap(), Pruned::all_of(1), "this kind and no other");
    assert!(store.get(Some(&Tenant::DEFAULT), plain.id).await.unwrap().is_none());
    for kept in [&keyed, &dead_one, &waiting, &other] {
        get(store.as_ref(), kept.id).await;
    }
    assert_eq!(store.remove(&all_but(true, &[]), all.clone(), 100).await.unwrap(), Pruned::all_of(1));
    // Its attempts went with it: the same id again begins with none.
    record(store.as_ref(), vec![success(&retried)]).await;
    assert_eq!(get(store.as_ref(), retried.id).await.attempts, []);
    // Those of a job that failed at once, too.
    assert_eq!(store.discard(dead_one.id).await.unwrap(), Transition::Done);
    assert_eq!(
        store.remove(&unkeyed, started - 1_000_000..clock::now() + 1_000_000, 100).await.unwrap(),
        Pruned::all_of(3)
    );
    record(store.as_ref(), vec![dead(&Envelope { run: 2, ..dead_one.clone() })]).await;
    assert_eq!(get(store.as_ref(), dead_one.id).await.attempts.len(), 1);
}

pub(super) async fn a_job_that_nobody_has_is_called_off_at_once_and_any_other_by_a_tombstone(
    Fixture { store, second, .. }: &Fixture,
) {
    let (delayed, claimed, waiting, over, foreign) = (envelope(), envelope(), envelope(), envelope(), envelope());
    let acme = Tenant::new("acme").unwrap();
    store.insert(&[new_job(&delayed, LATER), new_job(&claimed, NOW)]).await.unwrap();
    store.claim(10, LATER, &[]).await.unwrap();
    record(store.as_ref(), vec![success(&over)]).await;
    let own = Some(&Tenant::DEFAULT);
    assert_eq!(store.cancel(Some(&acme), delayed.id, false).await.unwrap(), Cancelled::Unknown, "another tenant's");
    assert_eq!(store.cancel(own, delayed.id, false).await.unwrap(), Cancelled::Done);
    assert_eq!(store.cancel(own, delayed.id, false).await.unwrap(), Cancelled::Over(State::Cancelled));
    let row = get(store.as_ref(), delayed.id).await;
    assert_eq!((row.state, row.due_at, row.body), (State::Cancelled, None, None));
    assert_eq!(store.cancel(own, claimed.id, false).await.unwrap(), Cancelled::Requested, "a dispatcher has it");
    assert_eq!(store.cancel(own, waiting.id, true).await.unwrap(), Cancelled::Requested, "it has no row yet");
    assert_eq!(store.cancel(own, over.id, true).await.unwrap(), Cancelled::Over(State::Succeeded));
    assert_eq!(store.cancel(own, foreign.id, false).await.unwrap(), Cancelled::Unknown);
    let stones = second.tombstones(0).await.unwrap();
    assert_eq!(stones.iter().map(|stone| stone.id).collect::<Vec<_>>(), [claimed.id, waiting.id]);
    assert_eq!(second.tombstones(stones[0].seq).await.unwrap(), stones[1..]);
    assert_eq!(second.called_off(&[over.id, waiting.id]).await.unwrap(), [waiting.id]);
}

pub(super) async fn a_completion_that_meets_a_tombstone_is_recorded_as_called_off(Fixture { store, .. }: &Fixture) {
    let (plain, failing, unstarted, other) = (envelope(), envelope(), envelope(), envelope());
    for job in [&plain, &failing, &unstarted] {
        assert_eq!(store.cancel(None, job.id, true).await.unwrap(), Cancelled::Requested);
    }
    // A batch of plain successes, and one of everything.
    record(store.as_ref(), vec![success(&plain), success(&other)]).await;
    let child = envelope();
    let before =
        Completion { envelope: unstarted.clone().into(), body: None, outcome: Outcome::Cancelled { ran: false } };
    let with_child = success_with(&failing, vec![new_job(&child, NOW)]);
    record(store.as_ref(), vec![with_child, before]).await;
    for (job, reason) in [(&plain, CANCELLED[1]), (&failing, CANCELLED[1]), (&unstarted, CANCELLED[0])] {
        let row = get(store.as_ref(), job.id).await;
        assert_eq!((row.state, row.reason.as_deref(), row.output), (State::Cancelled, Some(reason), None));
    }
    assert_eq!(get(store.as_ref(), other.id).await.state, State::Succeeded);
    assert!(store.get(None, child.id).await.unwrap().is_none(), "follow-ups are dropped");
    assert_eq!(store.tombstones(0).await.unwrap(), [], "they have done their work");
}

pub(super) async fn a_replay_and_a_requeue_take_the_tombstone_away(Fixture { store, .. }: &Fixture) {
    let queued = envelope();
    store.insert(&[new_job(&queued, NOW)]).await.unwrap();
    let claim = store.claim(10, LATER, &[]).await.unwrap();
    store.published(claim.token, &[queued.id]).await.unwrap();
    assert_eq!(store.cancel(None, queued.id, false).await.unwrap(), Cancelled::Requested);
    assert_eq!(store.requeue(queued.id).await.unwrap(), Transition::Done);
    assert_eq!(store.tombstones(0).await.unwrap(), []);
    let row = get(store.as_ref(), queued.id).await;
    assert_eq!((row.state, row.envelope.run), (State::Scheduled, 2));
    record(store.as_ref(), vec![dead(&run(&queued, 2))]).await;
    let refused = Transition::Refused { state: State::Dead, reason: Some("gone".into()) };
    assert_eq!(store.requeue(queued.id).await.unwrap(), refused, "it is over");
    assert_eq!(store.requeue(envelope().id).await.unwrap(), Transition::Unknown);
}

pub(super) async fn a_tombstone_is_left_to_the_run_that_counts(Fixture { store, .. }: &Fixture) {
    let job = envelope();
    store.insert(&[new_job(&job, NOW)]).await.unwrap();
    let claim = store.claim(10, LATER, &[]).await.unwrap();
    store.published(claim.token, &[job.id]).await.unwrap();
    // While its first run hangs somewhere, it is published once more, and then called off.
    assert_eq!(store.requeue(job.id).await.unwrap(), Transition::Done);
    let claim = store.claim(10, LATER, &[]).await.unwrap();
    store.published(claim.token, &[job.id]).await.unwrap();
    assert_eq!(store.cancel(None, job.id, false).await.unwrap(), Cancelled::Requested);
    record(store.as_ref(), vec![success(&job)]).await;
    record(store.as_ref(), vec![retry(&job, NOW)]).await;
    assert_eq!(store.tombstones(0).await.unwrap().len(), 1, "the late end of the first run does not use it up");
    record(store.as_ref(), vec![success(&run(&job, 2))]).await;
    assert_eq!(get(store.as_ref(), job.id).await.state, State::Cancelled);
    assert_eq!(store.tombstones(0).await.unwrap(), []);
}

pub(super) async fn a_tombstone_of_another_tenant_loses_nothing_and_an_operators_holds_for_any(
    Fixture { store, .. }: &Fixture,
) {
    let acme = Tenant::new("acme").unwrap();
    let theirs = |job: Envelope| Envelope { tenant: acme.clone(), ..job };
    let (foreign, operators) = (theirs(envelope()), theirs(envelope()));
    assert_eq!(store.cancel(Some(&Tenant::DEFAULT), foreign.id, true).await.unwrap(), Cancelled::Requested);
    assert_eq!(store.cancel(None, operators.id, true).await.unwrap(), Cancelled::Requested);
    record(store.as_ref(), vec![success(&foreign), success(&operators)]).await;
    let state = async |id| store.get(None, id).await.unwrap().expect("a row").state;
    assert_eq!(state(foreign.id).await, State::Succeeded);
    assert_eq!(state(operators.id).await, State::Cancelled);
}

fn parked(envelope: &Envelope, parking: Parking) -> Completion {
    let outcome = Outcome::Parked {
        reason: "delivery_limit".into(),
        text: "too often".into(),
        parking,
        suspicion: Suspicion::Suspected,
    };
    Completion { envelope: envelope.clone().into(), body: Some(BODY.into()), outcome }
}

pub(super) async fn a_job_is_parked_for_longer_each_time_and_given_up_at_the_limit(Fixture { store, .. }: &Fixture) {
    let job = envelope();
    let minute = Duration::from_mins(1);
    let patient = Parking { first: minute, longest: 2 * minute, limit: 100 * minute };
    record(store.as_ref(), vec![parked(&job, patient)]).await;
    let row = get(store.as_ref(), job.id).await;
    assert_eq!((row.state, row.envelope.run, row.envelope.attempt), (State::Retrying, 2, 0), "no attempt is spent");
    assert_eq!(row.envelope.suspicion, Suspicion::Suspected);
    let until = |row: &JobRecord| Duration::from_micros(u64::try_from(row.due_at.unwrap() - clock::now()).unwrap());
    assert!((Duration::from_secs(40)..=minute).contains(&until(&row)), "{:?}", until(&row));
    // A copy of the run that was parked already comes too late.
    record(store.as_ref(), vec![parked(&job, patient)]).await;
    assert_eq!(get(store.as_ref(), job.id).await.envelope.run, 2);
    let impatient = Parking { first: Duration::from_secs(1), longest: Duration::from_secs(1), limit: NOW };
    record(store.as_ref(), vec![parked(&run(&job, 2), impatient)]).await;
    let row = get(store.as_ref(), job.id).await;
    assert_eq!((row.state, row.envelope.run, row.reason.as_deref()), (State::Dead, 2, Some("delivery_limit")));
    assert_eq!((row.body.as_deref(), row.attempts.len(), row.due_at), (Some(BODY), 1, None));
}

pub(super) async fn a_suspicion_stays_until_another_outcome_clears_it(Fixture { store, .. }: &Fixture) {
    let job = envelope();
    let outcome = Outcome::Retry { delay: NOW, failure: failure("crashed"), suspicion: Suspicion::Crashed };
    record(store.as_ref(), vec![Completion { envelope: job.clone().into(), body: Some(BODY.into()), outcome }]).await;
    let claim = store.claim(10, LATER, &[]).await.unwrap();
    assert_eq!(claim.jobs[0].envelope.suspicion, Suspicion::Crashed, "it goes out with the job");
    record(store.as_ref(), vec![retry(&claim.jobs[0].envelope, NOW)]).await;
    assert_eq!(get(store.as_ref(), job.id).await.envelope.suspicion, Suspicion::None);
}

pub(super) async fn processes_are_seen_while_they_live(Fixture { store, second, .. }: &Fixture) {
    let work = Work { id: envelope().id, kind: "test.kind".into(), seconds: 3, progress: Some((1, 2)) };
    let instance = Instance {
        id: envelope().id,
        pid: 7,
        host: "here".into(),
        version: "1".into(),
        roles: "gateway worker".into(),
        work: Vec::new(),
    };
    store.beat(&instance).await.unwrap();
    let busy = Instance { work: vec![work], ..instance.clone() };
    store.beat(&busy).await.unwrap();
    let seen = second.instances(LATER).await.unwrap();
    assert_eq!(seen.iter().map(|record| record.instance.clone()).collect::<Vec<_>>(), [busy]);
    assert!(seen[0].beat_ago < Duration::from_secs(20), "{:?}", seen[0].beat_ago);
    assert_eq!(second.instances(NOW).await.unwrap(), []);
    store.leave(instance.id).await.unwrap();
    assert_eq!(second.instances(LATER).await.unwrap(), []);
    store.forget().await.unwrap();
}

pub(super) async fn the_age_of_what_waits_follows_from_what_was_published(Fixture { store, .. }: &Fixture) {
    let (busy, unknown) = (kind("test.busy"), kind("test.unknown"));
    store.count_published(&[(busy.clone(), 5)]).await.unwrap();
    store.count_published(&[(busy.clone(), 2), (kind("test.other"), 1)]).await.unwrap();
    let ages = store.waiting_since(&[(busy.clone(), 7), (busy, 8), (unknown, 1)]).await.unwrap();
    assert!(ages[0].is_some_and(|age| age < Duration::from_mins(1)), "{ages:?}");
    assert_eq!(ages[1..], [None, None], "more than was counted");
}

pub(super) async fn a_value_stands_once_and_is_replaced_only_in_place_of_the_one_that_stands(
    Fixture { store, second, .. }: &Fixture,
) {
    assert_eq!(store.settle_value("a", "1").await.unwrap(), "1");
    assert_eq!(second.settle_value("a", "2").await.unwrap(), "1");
    assert!(!store.replace_value("a", "2", "3").await.unwrap());
    assert!(store.replace_value("a", "1", "3").await.unwrap());
    assert_eq!(second.settle_value("a", "4").await.unwrap(), "3");
    store.ping().await.unwrap();
}
