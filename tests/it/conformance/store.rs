//! The store port: what every store does alike.

use std::{collections::HashSet, sync::Arc, time::Duration};

use uuid::Uuid;
use warren::{
    clock,
    job::{Completion, Envelope, Key, State, Tenant},
    store::{JobRecord, Known, MigrateError, Store, StoreError, Transition, sqlite::Sqlite},
};

use super::{
    claims::{
        a_claim_is_fair_between_kinds_and_passes_over_those_it_is_told_to,
        a_confirm_after_the_job_has_finished_changes_nothing,
        a_job_with_a_delay_is_claimed_when_it_is_due_and_not_before,
        a_lease_that_lapses_is_taken_by_another_and_its_own_late_confirm_is_nothing, two_claimers_never_take_one_row,
        what_comes_up_behind_a_claim_is_claimed_while_there_is_more_before_it,
        what_is_released_is_claimed_first_while_there_is_more, what_is_released_is_due_at_once,
        whoever_waits_is_woken_by_what_becomes_due_soon,
    },
    keys::{
        a_key_is_kept_as_it_was_made_and_its_name_is_taken_until_it_is_revoked,
        a_key_that_this_build_does_not_understand_lets_nobody_in_and_can_be_revoked,
        a_rotation_keeps_the_former_secret_for_a_while_and_one_before_that_no_longer,
        the_last_use_of_a_key_is_noted_and_changes_nothing_else,
    },
    operations::{
        a_completion_that_meets_a_tombstone_is_recorded_as_called_off,
        a_job_is_parked_for_longer_each_time_and_given_up_at_the_limit,
        a_job_that_nobody_has_is_called_off_at_once_and_any_other_by_a_tombstone,
        a_replay_and_a_requeue_take_the_tombstone_away, a_suspicion_stays_until_another_outcome_clears_it,
        a_tombstone_is_left_to_the_run_that_counts,
        a_tombstone_of_another_tenant_loses_nothing_and_an_operators_holds_for_any,
        a_value_stands_once_and_is_replaced_only_in_place_of_the_one_that_stands,
        dead_letters_are_counted_up_to_a_bound, jobs_are_listed_newest_first_and_page_by_page,
        processes_are_seen_while_they_live, the_age_of_what_waits_follows_from_what_was_published,
        the_pruner_strips_and_removes_what_is_in_its_window_and_nothing_else,
    },
};
use crate::harness::{
    engines::{LiteFile, PgDatabase},
    jobs::{BODY, OUTPUT, dead, envelope, full_envelope_of, kind, new_job, retry, snooze, success, success_with},
};

/// A store under test, and whatever must live as long as it.
pub(super) struct Fixture {
    pub(super) store: Arc<dyn Store>,
    /// The same data, as another process sees it.
    pub(super) second: Arc<dyn Store>,
    pub(super) keep: Box<dyn std::any::Any>,
}

async fn postgres() -> Option<Fixture> {
    let database = PgDatabase::create().await?;
    let store = Arc::new(database.store().await);
    let second = Arc::new(database.store().await);
    Some(Fixture { store, second, keep: Box::new(database) })
}

async fn sqlite() -> Option<Fixture> {
    let file = LiteFile::create();
    let database = file.open().await;
    let store = Arc::new(Sqlite::new(database.clone()));
    let second = Arc::new(Sqlite::new(database));
    Some(Fixture { store, second, keep: Box::new(file) })
}

/// Every case over every store.
macro_rules! conformance {
    ($($case:ident),* $(,)?) => {
        mod on_postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                if let Some(fixture) = super::postgres().await {
                    super::$case(&fixture).await;
                }
            })*
        }
        mod on_sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                if let Some(fixture) = super::sqlite().await {
                    super::$case(&fixture).await;
                }
            })*
        }
    };
}

conformance!(
    a_success_is_one_row_with_its_output_and_without_its_body,
    everything_that_an_envelope_says_is_kept,
    what_jobs_of_a_batch_have_in_common_and_what_not_is_kept_of_each,
    a_failure_is_kept_with_its_body_and_is_due_again,
    a_dead_letter_keeps_its_exact_bytes_its_reason_and_its_attempts,
    a_second_copy_of_a_run_records_nothing,
    a_copy_of_an_older_run_records_nothing_after_a_retry_a_snooze_or_a_replay,
    a_late_completion_cannot_raise_the_dead,
    the_row_of_another_tenant_is_not_touched,
    a_batch_is_recorded_whole_and_says_how_many_lost,
    a_row_that_the_store_refuses_harms_no_other_once_it_stands_alone,
    follow_ups_come_to_be_with_a_success_that_wins_and_with_no_other,
    a_keyed_follow_up_that_is_there_already_is_left_alone,
    lanes_that_record_the_same_jobs_at_once_do_not_block_each_other,
    a_job_with_a_delay_is_claimed_when_it_is_due_and_not_before,
    two_claimers_never_take_one_row,
    a_lease_that_lapses_is_taken_by_another_and_its_own_late_confirm_is_nothing,
    a_confirm_after_the_job_has_finished_changes_nothing,
    what_is_released_is_due_at_once,
    a_claim_is_fair_between_kinds_and_passes_over_those_it_is_told_to,
    what_comes_up_behind_a_claim_is_claimed_while_there_is_more_before_it,
    what_is_released_is_claimed_first_while_there_is_more,
    whoever_waits_is_woken_by_what_becomes_due_soon,
    a_job_that_is_there_already_is_told_and_not_changed,
    of_two_that_are_put_in_together_under_one_id_the_second_is_told_of_the_first,
    a_replay_is_another_run_with_its_attempts_at_zero,
    only_a_dead_letter_is_replayed_or_discarded,
    a_conflict_is_noted_on_the_row,
    a_loser_that_promised_another_body_is_noted,
    jobs_are_listed_newest_first_and_page_by_page,
    dead_letters_are_counted_up_to_a_bound,
    the_pruner_strips_and_removes_what_is_in_its_window_and_nothing_else,
    a_job_that_nobody_has_is_called_off_at_once_and_any_other_by_a_tombstone,
    a_completion_that_meets_a_tombstone_is_recorded_as_called_off,
    a_replay_and_a_requeue_take_the_tombstone_away,
    a_tombstone_is_left_to_the_run_that_counts,
    a_tombstone_of_another_tenant_loses_nothing_and_an_operators_holds_for_any,
    a_job_is_parked_for_longer_each_time_and_given_up_at_the_limit,
    a_suspicion_stays_until_another_outcome_clears_it,
    processes_are_seen_while_they_live,
    the_age_of_what_waits_follows_from_what_was_published,
    a_key_is_kept_as_it_was_made_and_its_name_is_taken_until_it_is_revoked,
    a_rotation_keeps_the_former_secret_for_a_while_and_one_before_that_no_longer,
    the_last_use_of_a_key_is_noted_and_changes_nothing_else,
    a_key_that_this_build_does_not_understand_lets_nobody_in_and_can_be_revoked,
    a_value_stands_once_and_is_replaced_only_in_place_of_the_one_that_stands,
    the_schema_is_checked_and_is_brought_up_to_date_once,
);

pub(super) const NOW: Duration = Duration::ZERO;
pub(super) const LATER: Duration = Duration::from_hours(1);
pub(super) const LEASE: Duration = Duration::from_secs(15);

/// Records a batch as a lane does: sorted by id.
pub(super) async fn record(store: &dyn Store, mut batch: Vec<Completion>) -> usize {
    batch.sort_by_key(|completion| completion.envelope.id);
    let rows = 0..batch.len();
    store.lane().record(&Arc::new(batch), rows).await.unwrap()
}

pub(super) async fn get(store: &dyn Store, id: Uuid) -> JobRecord {
    store.get(Some(&Tenant::DEFAULT), id).await.unwrap().expect("a row")
}

pub(super) async fn claim_ids(store: &dyn Store) -> HashSet<Uuid> {
    store.claim(1000, LEASE, &[]).await.unwrap().jobs.iter().map(|job| job.envelope.id).collect()
}

pub(super) fn run(envelope: &Envelope, run: u32) -> Envelope {
    Envelope { run, ..envelope.clone() }
}

async fn a_success_is_one_row_with_its_output_and_without_its_body(Fixture { store, .. }: &Fixture) {
    let job = envelope();
    let before = clock::now();
    assert_eq!(record(store.as_ref(), vec![success(&job)]).await, 0);
    let row = get(store.as_ref(), job.id).await;
    assert_eq!(row.state, State::Succeeded);
    assert_eq!(row.output.as_deref(), Some(OUTPUT));
    assert_eq!((row.body, row.reason, row.error, row.due_at), (None, None, None, None));
    assert_eq!(row.envelope, job);
    let finished = row.finished_at.expect("it is over");
    assert!((before - 1_000_000..=clock::now() + 1_000_000).contains(&finished), "within a second of our clock");
}

async fn everything_that_an_envelope_says_is_kept(Fixture { store, .. }: &Fixture) {
    let full = full_envelope_of(&kind("test.kind"));
    // As a failure, because a success needs no trace any more.
    record(store.as_ref(), vec![dead(&full)]).await;
    let row = store.get(Some(&full.tenant), full.id).await.unwrap().expect("a row");
    assert_eq!(row.envelope, Envelope { attempt: 3, ..full.clone() });
    let scheduled = Envelope { run: 1, attempt: 0, id: Uuid::from_u128(77), ..full.clone() };
    let job = warren::job::NewJob { parent: Some(full.id), ..new_job(&scheduled, NOW) };
    store.insert(&[job]).await.unwrap();
    let row = store.get(Some(&full.tenant), scheduled.id).await.unwrap().expect("a row");
    assert_eq!((row.envelope, row.parent), (scheduled.clone(), Some(full.id)));
    let claimed = store.claim(10, LEASE, &[]).await.unwrap().jobs;
    assert_eq!(claimed.len(), 1);
    assert_eq!((&claimed[0].envelope, claimed[0].body.as_slice()), (&scheduled, BODY));
}

async fn what_jobs_of_a_batch_have_in_common_and_what_not_is_kept_of_each(Fixture { store, .. }: &Fixture) {
    // Plain: a success keeps no trace, and whoever has a digest may have promised another body.
    let other = || Envelope { key: Key::Keyed, trace: None, ..full_envelope_of(&kind("b.kind")) };
    for batch in [[envelope(), envelope(), envelope()], [other(), other(), other()], [envelope(), other(), envelope()]]
    {
        let ended: [fn(&Envelope) -> Completion; 2] = [success, dead];
        for ended in ended {
            let batch = batch.clone().map(|job| Envelope { id: envelope().id, ..job });
            assert_eq!(record(store.as_ref(), batch.iter().map(ended).collect()).await, 0);
            for job in batch {
                let row = store.get(Some(&job.tenant), job.id).await.unwrap().expect("a row");
                let failures = u16::from(row.state == State::Dead);
                assert_eq!(row.envelope, Envelope { attempt: job.attempt + failures, ..job });
            }
        }
    }
}

async fn a_failure_is_kept_with_its_body_and_is_due_again(Fixture { store, .. }: &Fixture) {
    let job = envelope();
    record(store.as_ref(), vec![retry(&job, LATER)]).await;
    let row = get(store.as_ref(), job.id).await;
    assert_eq!((row.state, row.envelope.run, row.envelope.attempt), (State::Retrying, 2, 1));
    assert_eq!((row.body.as_deref(), row.reason.as_deref()), (Some(BODY), Some("oops")));
    let due_in = row.due_at.expect("due") - clock::now();
    assert!((3_590_000_000..=3_610_000_000).contains(&due_in), "an hour, not {due_in} us");
    let attempt = &row.attempts[0];
    assert_eq!((attempt.run, attempt.attempt, attempt.code.as_str()), (1, 1, "oops"));
    // A snooze is another run, and no failed attempt.
    record(store.as_ref(), vec![snooze(&Envelope { attempt: 1, ..run(&job, 2) }, LATER)]).await;
    let row = get(store.as_ref(), job.id).await;
    assert_eq!((row.envelope.run, row.envelope.attempt, row.reason.as_deref()), (3, 1, Some("busy")));
    assert_eq!(row.attempts.len(), 1);
    // A success clears what is over, and keeps what happened.
    record(store.as_ref(), vec![success(&Envelope { attempt: 1, ..run(&job, 3) })]).await;
    let row = get(store.as_ref(), job.id).await;
    assert_eq!((row.state, row.reason, row.error, row.due_at, row.body), (State::Succeeded, None, None, None, None));
    assert_eq!(row.attempts.len(), 1);
}

async fn a_dead_letter_keeps_its_exact_bytes_its_reason_and_its_attempts(Fixture { store, .. }: &Fixture) {
    let job = envelope();
    record(store.as_ref(), vec![retry(&job, NOW)]).await;
    let bytes: Vec<u8> = (0..=255).collect();
    let last = Completion { body: Some(bytes.clone().into()), ..dead(&Envelope { attempt: 1, ..run(&job, 2) }) };
    record(store.as_ref(), vec![last]).await;
    let row = get(store.as_ref(), job.id).await;
    assert_eq!(
        (row.state, row.reason.as_deref(), row.error.as_deref()),
        (State::Dead, Some("gone"), Some("it went wrong"))
    );
    assert_eq!((row.body, row.due_at), (Some(bytes), None));
    let codes: Vec<_> = row.attempts.iter().map(|attempt| (attempt.attempt, attempt.code.as_str())).collect();
    assert_eq!(codes, [(1, "oops"), (2, "gone")]);
}

async fn a_second_copy_of_a_run_records_nothing(Fixture { store, .. }: &Fixture) {
    let job = envelope();
    assert_eq!(record(store.as_ref(), vec![success(&job)]).await, 0);
    for copy in [success(&job), retry(&job, NOW), dead(&job)] {
        assert_eq!(record(store.as_ref(), vec![copy]).await, 1);
    }
    let row = get(store.as_ref(), job.id).await;
    assert_eq!((row.state, row.attempts.len()), (State::Succeeded, 0));
    // The same where the first copy was no success.
    let job = envelope();
    record(store.as_ref(), vec![retry(&job, LATER)]).await;
    assert_eq!(record(store.as_ref(), vec![retry(&job, NOW)]).await, 1, "a failure of run 1 would be run 2 again");
    assert_eq!(record(store.as_ref(), vec![dead(&job)]).await, 1);
    let row = get(store.as_ref(), job.id).await;
    assert_eq!((row.state, row.envelope.run, row.attempts.len()), (State::Retrying, 2, 1));
}

async fn a_copy_of_an_older_run_records_nothing_after_a_retry_a_snooze_or_a_replay(Fixture { store, .. }: &Fixture) {
    for change in [retry as fn(&Envelope, Duration) -> Completion, snooze] {
        let job = envelope();
        record(store.as_ref(), vec![change(&job, LATER)]).await;
        assert_eq!(record(store.as_ref(), vec![success(&job)]).await, 1);
        assert_eq!(get(store.as_ref(), job.id).await.state, State::Retrying);
        assert_eq!(record(store.as_ref(), vec![success(&run(&job, 2))]).await, 0, "the run that is due");
    }
    let job = envelope();
    record(store.as_ref(), vec![dead(&job)]).await;
    assert_eq!(store.replay(job.id).await.unwrap(), Transition::Done);
    assert_eq!(record(store.as_ref(), vec![success(&job)]).await, 1);
    assert_eq!(get(store.as_ref(), job.id).await.state, State::Scheduled);
}

async fn a_late_completion_cannot_raise_the_dead(Fixture { store, .. }: &Fixture) {
    let job = envelope();
    record(store.as_ref(), vec![dead(&job)]).await;
    for late in [success(&job), retry(&job, NOW), success(&run(&job, 9))] {
        assert_eq!(record(store.as_ref(), vec![late]).await, 1);
    }
    assert_eq!(get(store.as_ref(), job.id).await.state, State::Dead);
    store.discard(job.id).await.unwrap();
    assert_eq!(record(store.as_ref(), vec![success(&run(&job, 9))]).await, 1);
    assert_eq!(get(store.as_ref(), job.id).await.state, State::Discarded);
}

async fn the_row_of_another_tenant_is_not_touched(Fixture { store, .. }: &Fixture) {
    let job = envelope();
    record(store.as_ref(), vec![retry(&job, LATER)]).await;
    let foreign = Envelope { tenant: Tenant::new("acme").unwrap(), run: 5, ..job.clone() };
    for completion in [success(&foreign), dead(&foreign)] {
        assert_eq!(record(store.as_ref(), vec![completion]).await, 1);
    }
    assert_eq!(get(store.as_ref(), job.id).await.state, State::Retrying);
    assert!(store.get(Some(&foreign.tenant), job.id).await.unwrap().is_none());
}

async fn a_batch_is_recorded_whole_and_says_how_many_lost(Fixture { store, .. }: &Fixture) {
    // More than any one statement takes, of every outcome, and some that lose.
    let jobs: Vec<_> = (0..400).map(|_| envelope()).collect();
    record(store.as_ref(), jobs[..100].iter().map(success).collect()).await;
    let batch = jobs.iter().enumerate().map(|(index, job)| match index % 4 {
        0 => success(job),
        1 => retry(job, LATER),
        2 => snooze(job, LATER),
        _ => dead(job),
    });
    assert_eq!(record(store.as_ref(), batch.collect()).await, 100);
    for (index, job) in jobs.iter().enumerate() {
        let expected = match index % 4 {
            _ if index < 100 => State::Succeeded,
            0 => State::Succeeded,
            1 | 2 => State::Retrying,
            _ => State::Dead,
        };
        let row = get(store.as_ref(), job.id).await;
        assert_eq!(row.state, expected, "{index}");
        let failed = index >= 100 && matches!(index % 4, 1 | 3);
        assert_eq!(row.attempts.len(), usize::from(failed), "{index}");
    }
}

async fn a_row_that_the_store_refuses_harms_no_other_once_it_stands_alone(Fixture { store, .. }: &Fixture) {
    // No store takes text with a NUL in it, and an AMQP client can send one.
    let culprit = Envelope { source: Some("a\0b".into()), ..envelope() };
    let good = envelope();
    let mut batch = vec![success(&culprit), success(&good)];
    batch.sort_by_key(|completion| completion.envelope.id);
    let place = batch.iter().position(|completion| completion.envelope.id == good.id).unwrap();
    let batch = Arc::new(batch);
    let mut lane = store.lane();
    assert!(matches!(lane.record(&batch, 0..2).await, Err(StoreError::Data(_))));
    assert!(store.get(Some(&Tenant::DEFAULT), good.id).await.unwrap().is_none(), "whole or not at all");
    assert_eq!(lane.record(&batch, place..place + 1).await.unwrap(), 0, "the same lane goes on");
    assert!(matches!(lane.record(&batch, 1 - place..2 - place).await, Err(StoreError::Data(_))));
    assert_eq!(get(store.as_ref(), good.id).await.state, State::Succeeded);
}

async fn follow_ups_come_to_be_with_a_success_that_wins_and_with_no_other(Fixture { store, .. }: &Fixture) {
    let (job, first, second) = (envelope(), envelope(), envelope());
    let winner = success_with(&job, vec![new_job(&first, NOW)]);
    assert_eq!(record(store.as_ref(), vec![winner.clone()]).await, 0);
    // The loser asks for another one; the winner once more is a loser too.
    assert_eq!(record(store.as_ref(), vec![success_with(&job, vec![new_job(&second, NOW)])]).await, 1);
    assert_eq!(record(store.as_ref(), vec![winner]).await, 1);
    assert_eq!(claim_ids(store.as_ref()).await, HashSet::from([first.id]));
    assert!(store.get(Some(&Tenant::DEFAULT), second.id).await.unwrap().is_none());
}

async fn a_keyed_follow_up_that_is_there_already_is_left_alone(Fixture { store, .. }: &Fixture) {
    let keyed = Envelope { key: Key::Keyed, ..envelope() };
    record(store.as_ref(), vec![success(&keyed)]).await;
    let asks = success_with(&envelope(), vec![new_job(&keyed, NOW)]);
    assert_eq!(record(store.as_ref(), vec![asks]).await, 0);
    assert_eq!(get(store.as_ref(), keyed.id).await.state, State::Succeeded);
}

async fn lanes_that_record_the_same_jobs_at_once_do_not_block_each_other(Fixture { store, second, .. }: &Fixture) {
    let jobs: Vec<_> = (0..200).map(|_| envelope()).collect();
    let mut lanes = Vec::new();
    for number in 0..4 {
        let (store, jobs) = (if number % 2 == 0 { store.clone() } else { second.clone() }, jobs.clone());
        lanes.push(tokio::spawn(async move {
            let mut won = 0;
            for _ in 0..5 {
                let mut batch: Vec<_> = jobs.iter().map(success).collect();
                batch.sort_by_key(|completion| completion.envelope.id);
                let batch = Arc::new(batch);
                let mut lane = store.lane();
                let lost = loop {
                    match lane.record(&batch, 0..batch.len()).await {
                        Ok(lost) => break lost,
                        Err(StoreError::Conflict(_)) => {}
                        Err(other) => panic!("{other:?}"),
                    }
                };
                won += batch.len() - lost;
            }
            won
        }));
    }
    let mut won = 0;
    for lane in lanes {
        won += lane.await.unwrap();
    }
    assert_eq!(won, jobs.len(), "each job was won once, by whichever lane");
}

async fn a_job_that_is_there_already_is_told_and_not_changed(Fixture { store, .. }: &Fixture) {
    let keyed = Envelope { key: Key::Digest([1; 32]), ..envelope() };
    let new = envelope();
    assert_eq!(store.insert(&[new_job(&keyed, LATER)]).await.unwrap(), [None]);
    let again = store.insert(&[new_job(&keyed, NOW), new_job(&new, LATER)]).await.unwrap();
    let known = Known { id: keyed.id, tenant: Tenant::DEFAULT, state: State::Scheduled, run: 1, digest: Some([1; 32]) };
    assert_eq!(again, [Some(known.clone()), None]);
    assert!(claim_ids(store.as_ref()).await.is_empty(), "its due time is the first one's");
    assert_eq!(store.lookup(&[keyed.id, Uuid::from_u128(1)]).await.unwrap(), [known]);
}

async fn of_two_that_are_put_in_together_under_one_id_the_second_is_told_of_the_first(Fixture { store, .. }: &Fixture) {
    let one = envelope();
    let with = |digest| Envelope { key: Key::Digest([digest; 32]), ..one.clone() };
    let jobs = [envelope(), with(1), with(2), envelope()].map(|job| new_job(&job, LATER));
    let known = Known { id: one.id, tenant: Tenant::DEFAULT, state: State::Scheduled, run: 1, digest: Some([1; 32]) };
    assert_eq!(store.insert(&jobs).await.unwrap(), [None, None, Some(known), None]);
}

async fn a_replay_is_another_run_with_its_attempts_at_zero(Fixture { store, .. }: &Fixture) {
    let job = Envelope { attempt: 4, run: 5, ..envelope() };
    record(store.as_ref(), vec![dead(&job)]).await;
    assert_eq!(store.replay(job.id).await.unwrap(), Transition::Done);
    let row = get(store.as_ref(), job.id).await;
    assert_eq!((row.state, row.envelope.run, row.envelope.attempt), (State::Scheduled, 6, 0));
    assert_eq!(row.finished_at, None);
    let claimed = store.claim(10, LEASE, &[]).await.unwrap().jobs;
    assert_eq!((claimed[0].envelope.run, claimed[0].body.as_slice()), (6, BODY));
    record(store.as_ref(), vec![dead(&Envelope { attempt: 0, ..run(&job, 6) })]).await;
    let attempts: Vec<_> =
        get(store.as_ref(), job.id).await.attempts.iter().map(|attempt| (attempt.run, attempt.attempt)).collect();
    assert_eq!(attempts, [(5, 5), (6, 1)], "both lives are kept");
}

async fn only_a_dead_letter_is_replayed_or_discarded(Fixture { store, .. }: &Fixture) {
    let nobody = Uuid::from_u128(404);
    assert_eq!(store.replay(nobody).await.unwrap(), Transition::Unknown);
    assert_eq!(store.discard(nobody).await.unwrap(), Transition::Unknown);
    let done = envelope();
    record(store.as_ref(), vec![success(&done)]).await;
    let refused = Transition::Refused { state: State::Succeeded, reason: None };
    assert_eq!(store.replay(done.id).await.unwrap(), refused);
    assert_eq!(store.discard(done.id).await.unwrap(), refused);
    let mut bytes = dead(&envelope());
    bytes.outcome = warren::job::Outcome::Dead { failure: crate::harness::jobs::failure("undecodable") };
    let id = bytes.envelope.id;
    record(store.as_ref(), vec![bytes]).await;
    let refused = Transition::Refused { state: State::Dead, reason: Some("undecodable".into()) };
    assert_eq!(store.replay(id).await.unwrap(), refused, "no worker could ever read it");
    assert_eq!(store.discard(id).await.unwrap(), Transition::Done);
    assert_eq!(get(store.as_ref(), id).await.state, State::Discarded);
}

async fn a_conflict_is_noted_on_the_row(Fixture { store, .. }: &Fixture) {
    let (job, other) = (envelope(), envelope());
    record(store.as_ref(), vec![success(&job), success(&other)]).await;
    store.note_conflicts(&[job.id]).await.unwrap();
    store.note_conflicts(&[job.id, Uuid::from_u128(404)]).await.unwrap();
    assert_eq!(get(store.as_ref(), job.id).await.conflicts, 2);
    assert_eq!(get(store.as_ref(), other.id).await.conflicts, 0);
}

async fn a_loser_that_promised_another_body_is_noted(Fixture { store, .. }: &Fixture) {
    let job = Envelope { key: Key::Digest([1; 32]), ..envelope() };
    record(store.as_ref(), vec![success(&job)]).await;
    record(store.as_ref(), vec![success(&job)]).await;
    assert_eq!(get(store.as_ref(), job.id).await.conflicts, 0, "the same body is no conflict");
    record(store.as_ref(), vec![success(&Envelope { key: Key::Digest([2; 32]), ..job.clone() })]).await;
    let row = get(store.as_ref(), job.id).await;
    assert_eq!((row.conflicts, row.envelope.key), (1, Key::Digest([1; 32])));
}

async fn the_schema_is_checked_and_is_brought_up_to_date_once(Fixture { store, second, .. }: &Fixture) {
    store.check_schema().await.unwrap();
    assert_eq!(second.migrate().await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_database_without_a_schema_is_told_what_to_do() {
    let Some(database) = PgDatabase::create().await else { return };
    let store = warren::store::postgres::Postgres::new(database.url.parse().unwrap());
    let error = warren::store::Installation::check_schema(&store).await.unwrap_err();
    assert!(matches!(error, MigrateError::Older { found: 0, .. }), "{error:?}");
    assert!(error.to_string().contains("warren migrate"), "{error}");
}
