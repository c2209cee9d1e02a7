//! The worker role on both engines: what it promises about jobs, whatever they do.

mod oversized;
mod theatre;

use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::time::Instant;
use uuid::Uuid;
use warren::{
    broker::Outgoing,
    job::{Envelope, Key, State},
    runtime::{Drained, Settings, registry::Registry},
    store::{Filter, JobRecord},
};
use warren_messages::codec;
use warren_workers::{Backoff, Policy};

use self::theatre::{Act, Play, PlayNext, PlayerNext, Theatre, play, policy};
use crate::{
    conformance::broker::Basket,
    harness::{
        jobs::{envelope_of, success},
        wait::{until, until_equal},
    },
};

/// Every case on both engines.
macro_rules! on_both {
    ($($case:ident),* $(,)?) => {
        mod on_servers {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                if let Some(theatre) = super::Theatre::on_servers().await {
                    super::$case(theatre).await;
                }
            })*
        }
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                if let Some(theatre) = super::Theatre::embedded().await {
                    super::$case(theatre).await;
                }
            })*
        }
    };
}

on_both!(
    a_job_runs_once_and_its_output_stands,
    a_failed_attempt_is_tried_again_and_kept,
    the_last_allowed_failure_makes_a_dead_letter_with_every_attempt,
    a_permanent_failure_is_a_dead_letter_at_once,
    a_snooze_costs_no_attempt,
    a_panic_fails_only_its_own_attempt,
    a_job_that_hangs_is_timed_out_and_counted,
    jobs_that_keep_their_threads_are_timed_out_and_delay_no_other,
    a_process_that_has_lost_half_of_its_threads_says_that_it_cannot_go_on,
    jobs_with_threads_of_their_own_compute_beside_each_other_and_lose_only_those,
    no_more_run_at_once_than_the_policy_allows,
    a_second_copy_is_attached_to_the_one_in_work,
    a_keyed_job_that_is_done_is_not_run_again,
    a_redelivered_job_that_is_recorded_is_not_run_again,
    a_key_with_another_body_is_noted_and_not_run,
    a_copy_of_an_older_run_is_only_settled,
    a_follow_up_runs_after_its_parent_and_knows_it,
    bytes_that_are_no_body_become_a_dead_letter_and_touch_no_other_job,
    a_job_whose_id_was_claimed_by_bytes_that_are_no_body_runs_all_the_same,
    a_body_of_another_shape_is_a_dead_letter_under_its_own_id,
    a_newer_layout_is_put_off_and_costs_no_attempt,
    a_newer_layout_runs_on_the_next_build,
    an_older_layout_is_brought_up_also_when_an_old_dead_letter_is_replayed,
    an_outcome_that_cannot_be_recorded_fails_its_job_and_no_other,
    a_drain_finishes_what_runs_and_gives_back_what_has_not_started,
    a_drain_at_its_deadline_leaves_running_jobs_to_others,
    a_thousand_jobs_of_every_fate_all_end_as_they_must,
);

const PATIENT: Duration = Duration::from_secs(10);

async fn a_job_runs_once_and_its_output_stands(mut theatre: Theatre) {
    theatre.begin(policy());
    let id = theatre.publish(Act::Succeed).await;
    let row = theatre.ends(id).await;
    assert_eq!(row.state, State::Succeeded);
    assert_eq!(codec::to_json(&row.output.unwrap()).unwrap(), 1, "the first attempt");
    theatre.is_empty().await;
    assert_eq!(theatre.end(PATIENT).await, Drained::default());
    assert_eq!(theatre.stage.starts(id), 1);
}

async fn a_failed_attempt_is_tried_again_and_kept(mut theatre: Theatre) {
    theatre.begin(policy());
    let id = theatre.publish(Act::FailOnce).await;
    let row = theatre.ends(id).await;
    assert_eq!((row.state, row.envelope.run, row.envelope.attempt), (State::Succeeded, 2, 1));
    assert_eq!(codec::to_json(&row.output.unwrap()).unwrap(), 2, "the second attempt");
    assert_eq!((row.attempts.len(), row.attempts[0].code.as_str()), (1, "told"));
    let spent = row.finished_at.unwrap() - row.attempts[0].failed_at;
    assert!(spent >= 10_000, "it waited for half of its backoff at least, not {spent} us");
}

async fn the_last_allowed_failure_makes_a_dead_letter_with_every_attempt(mut theatre: Theatre) {
    theatre.begin(policy());
    let id = theatre.publish(Act::Fail).await;
    let row = theatre.ends(id).await;
    assert_eq!((row.state, row.reason.as_deref()), (State::Dead, Some("told")));
    let attempts: Vec<_> = row.attempts.iter().map(|attempt| (attempt.run, attempt.attempt)).collect();
    assert_eq!(attempts, [(1, 1), (2, 2), (3, 3)]);
    assert_eq!(row.body.unwrap(), codec::encode(&Play { act: Act::Fail }).unwrap());
    assert_eq!(theatre.stage.starts(id), 3);
}

async fn a_permanent_failure_is_a_dead_letter_at_once(mut theatre: Theatre) {
    theatre.begin(policy());
    let id = theatre.publish(Act::Die).await;
    let row = theatre.ends(id).await;
    assert_eq!((row.state, row.attempts.len()), (State::Dead, 1));
    assert_eq!(theatre.stage.starts(id), 1);
}

async fn a_snooze_costs_no_attempt(mut theatre: Theatre) {
    theatre.begin(Policy { attempts: 1, ..policy() });
    let id = theatre.publish(Act::Snooze).await;
    let row = theatre.ends(id).await;
    assert_eq!((row.state, row.envelope.run, row.envelope.attempt), (State::Succeeded, 3, 0));
    assert_eq!(row.attempts, []);
}

async fn a_panic_fails_only_its_own_attempt(mut theatre: Theatre) {
    theatre.begin(policy());
    let id = theatre.publish(Act::Panic).await;
    let others = join_all((0..20).map(|_| theatre.publish(Act::Succeed))).await;
    let row = theatre.ends(id).await;
    assert_eq!((row.state, row.reason.as_deref(), row.attempts.len()), (State::Dead, Some("panicked"), 3));
    assert!(row.error.unwrap().contains("told to"), "what it said stands there");
    for other in others {
        assert_eq!(theatre.ends(other).await.state, State::Succeeded);
    }
}

async fn a_job_that_hangs_is_timed_out_and_counted(mut theatre: Theatre) {
    theatre.begin(Policy { timeout: Duration::from_millis(300), attempts: 2, ..policy() });
    let began = Instant::now();
    let id = theatre.publish(Act::Hang).await;
    let row = theatre.ends(id).await;
    assert_eq!((row.state, row.reason.as_deref(), row.attempts.len()), (State::Dead, Some("timed_out"), 2));
    assert!(began.elapsed() >= Duration::from_millis(600), "each had its whole time");
    until_equal("it no longer runs", 0, async || theatre.stage.running.load(SeqCst)).await;
}

async fn jobs_that_keep_their_threads_are_timed_out_and_delay_no_other(mut theatre: Theatre) {
    theatre.begin(Policy { timeout: Duration::from_secs(2), attempts: 1, ..policy() });
    let blocked = join_all((0..3).map(|_| theatre.publish(Act::Block))).await;
    until_equal("they run", 3, async || theatre.stage.running.load(SeqCst)).await;
    let began = Instant::now();
    let others = join_all((0..50).map(|_| theatre.publish(Act::Succeed))).await;
    for other in others {
        assert_eq!(theatre.ends(other).await.state, State::Succeeded);
    }
    assert!(began.elapsed() < Duration::from_secs(2), "they did not wait for the timeouts: {:?}", began.elapsed());
    for id in blocked {
        let row = theatre.ends(id).await;
        assert_eq!((row.state, row.reason.as_deref()), (State::Dead, Some("timed_out")));
    }
    theatre.is_empty().await;
}

async fn a_process_that_has_lost_half_of_its_threads_says_that_it_cannot_go_on(mut theatre: Theatre) {
    theatre.begin(Policy { concurrency: 50, timeout: Duration::from_millis(300), attempts: 1, ..policy() });
    let threads = std::thread::available_parallelism().map_or(8, |cores| (2 * cores.get()).max(8));
    let mut blocked = Vec::new();
    for _ in 0..threads / 2 {
        blocked.push(theatre.publish(Act::Block).await);
    }
    let runtime = theatre.runtime.as_ref().unwrap();
    let reason = tokio::time::timeout(PATIENT, runtime.failed()).await.expect("it gives up");
    assert!(reason.contains(&format!("{} of {threads} threads", threads / 2)), "{reason}");
    for id in blocked {
        let row = theatre.ends(id).await;
        assert_eq!((row.state, row.reason.as_deref()), (State::Dead, Some("timed_out")));
    }
    // The other half still works.
    let other = theatre.publish(Act::Succeed).await;
    assert_eq!(theatre.ends(other).await.state, State::Succeeded);
}

async fn jobs_with_threads_of_their_own_compute_beside_each_other_and_lose_only_those(mut theatre: Theatre) {
    let policy = Policy { concurrency: 20, timeout: Duration::from_secs(1), attempts: 1, blocking: true, ..policy() };
    theatre.begin(policy);
    // Three that never come back are not yet half of the threads that a process may lose.
    let mut blocked = Vec::new();
    for _ in 0..3 {
        blocked.push(theatre.publish(Act::Block).await);
    }
    let mut others = Vec::new();
    for act in [Act::Succeed, Act::Panic, Act::Emit, Act::Succeed] {
        others.push((theatre.publish(act).await, act));
    }
    for (id, act) in others {
        let row = theatre.ends(id).await;
        let expected = if act == Act::Panic { (State::Dead, Some("panicked")) } else { (State::Succeeded, None) };
        assert_eq!((row.state, row.reason.as_deref()), expected, "{act:?}");
    }
    for id in blocked {
        assert_eq!(theatre.ends(id).await.reason.as_deref(), Some("timed_out"));
    }
}

async fn no_more_run_at_once_than_the_policy_allows(mut theatre: Theatre) {
    theatre.begin(Policy { concurrency: 3, ..policy() });
    let ids = join_all((0..12).map(|_| theatre.publish(Act::Wait))).await;
    until_equal("as many as may", 3, async || theatre.stage.running.load(SeqCst)).await;
    theatre.stage.let_go(12);
    for id in ids {
        assert_eq!(theatre.ends(id).await.state, State::Succeeded);
    }
    assert_eq!(theatre.stage.most.load(SeqCst), 3);
}

async fn a_second_copy_is_attached_to_the_one_in_work(mut theatre: Theatre) {
    theatre.begin(policy());
    let job = Envelope { key: Key::Keyed, ..envelope_of(&play()) };
    theatre.publish_as(&job, Act::Wait).await;
    until_equal("it runs", 1, async || theatre.stage.running.load(SeqCst)).await;
    for _ in 0..5 {
        theatre.publish_as(&job, Act::Wait).await;
    }
    // One behind them tells that they have all come.
    let last = theatre.publish(Act::Succeed).await;
    theatre.ends(last).await;
    theatre.stage.let_go(1);
    assert_eq!(theatre.ends(job.id).await.state, State::Succeeded);
    assert_eq!(theatre.end(PATIENT).await, Drained::default(), "all copies were settled");
    theatre.is_empty().await;
    assert_eq!(theatre.stage.starts(job.id), 1);
}

async fn a_keyed_job_that_is_done_is_not_run_again(mut theatre: Theatre) {
    theatre.begin(policy());
    let job = Envelope { key: Key::Digest([1; 32]), ..envelope_of(&play()) };
    theatre.publish_as(&job, Act::Succeed).await;
    theatre.ends(job.id).await;
    for _ in 0..3 {
        theatre.publish_as(&job, Act::Succeed).await;
    }
    theatre.is_empty().await;
    assert_eq!(theatre.end(PATIENT).await, Drained::default());
    theatre.is_empty().await;
    let row = theatre.row(job.id).await.unwrap();
    assert_eq!((theatre.stage.starts(job.id), row.conflicts), (1, 0));
}

async fn a_redelivered_job_that_is_recorded_is_not_run_again(mut theatre: Theatre) {
    // As after a crash between the commit and the acknowledgement.
    let id = theatre.publish(Act::Succeed).await;
    let basket = Arc::new(Basket::default());
    let line = theatre.way_out.subscribe(&play(), 1, basket.clone());
    let envelope = basket.take(1).await.pop().unwrap().envelope.unwrap();
    assert_eq!(theatre.store.lane().record(&Arc::new(vec![success(&envelope)]), 0..1).await.unwrap(), 0);
    line.close().await;
    theatre.begin(policy());
    theatre.is_empty().await;
    assert_eq!(theatre.end(PATIENT).await, Drained::default());
    assert_eq!(theatre.stage.starts(id), 0);
}

async fn a_key_with_another_body_is_noted_and_not_run(mut theatre: Theatre) {
    theatre.begin(policy());
    let job = Envelope { key: Key::Digest([1; 32]), ..envelope_of(&play()) };
    let other = Envelope { key: Key::Digest([2; 32]), ..job.clone() };
    // While the first is in work.
    theatre.publish_as(&job, Act::Wait).await;
    until_equal("it runs", 1, async || theatre.stage.running.load(SeqCst)).await;
    theatre.publish_as(&other, Act::Die).await;
    let behind = theatre.publish(Act::Succeed).await;
    theatre.ends(behind).await;
    theatre.stage.let_go(1);
    theatre.ends(job.id).await;
    until_equal("noted", Some(1), async || theatre.row(job.id).await.map(|row| row.conflicts)).await;
    // After it is done.
    theatre.publish_as(&other, Act::Die).await;
    until_equal("noted", Some(2), async || theatre.row(job.id).await.map(|row| row.conflicts)).await;
    assert_eq!((theatre.stage.starts(job.id), theatre.row(job.id).await.unwrap().state), (1, State::Succeeded));
}

async fn a_copy_of_an_older_run_is_only_settled(mut theatre: Theatre) {
    theatre.begin(Policy { backoff: Backoff { base: Duration::from_mins(10), ..Backoff::default() }, ..policy() });
    let job = envelope_of(&play());
    theatre.publish_as(&job, Act::Fail).await;
    until("it waits for its second run", async || theatre.row(job.id).await).await;
    // Unkeyed, so it runs; but its completion meets the fence.
    theatre.publish_as(&job, Act::Succeed).await;
    until_equal("it runs", 2, async || theatre.stage.starts(job.id)).await;
    assert_eq!(theatre.end(PATIENT).await, Drained::default());
    theatre.is_empty().await;
    let row = theatre.row(job.id).await.unwrap();
    assert_eq!((row.state, row.envelope.run), (State::Retrying, 2));
}

async fn a_follow_up_runs_after_its_parent_and_knows_it(mut theatre: Theatre) {
    theatre.begin(policy());
    let id = theatre.publish(Act::Emit).await;
    theatre.ends(id).await;
    let child = until("a second job", async || {
        let filter = Filter { state: Some(State::Succeeded), limit: 10, ..Filter::default() };
        theatre.store.list(&filter).await.unwrap().into_iter().find(|row| row.envelope.id != id)
    })
    .await;
    assert_eq!((child.parent, child.envelope.root), (Some(id), Some(id)));
    assert_eq!(theatre.stage.starts(child.envelope.id), 1);
}

async fn publish_raw(theatre: &Theatre, envelope: &Envelope, body: &[u8]) {
    let job = Outgoing { envelope: envelope.clone(), body: body.to_vec() };
    theatre.way_in.publish(job).await.unwrap();
}

async fn dead_letters(theatre: &Theatre, count: usize) -> Vec<JobRecord> {
    let filter = Filter { state: Some(State::Dead), limit: 100, ..Filter::default() };
    until("dead letters", async || Some(theatre.store.list(&filter).await.unwrap()).filter(|rows| rows.len() >= count))
        .await
}

async fn bytes_that_are_no_body_become_a_dead_letter_and_touch_no_other_job(mut theatre: Theatre) {
    theatre.begin(policy());
    let done = envelope_of(&play());
    theatre.publish_as(&done, Act::Succeed).await;
    theatre.ends(done.id).await;
    let waiting = envelope_of(&play());
    theatre.store.insert(&[crate::harness::jobs::new_job(&waiting, Duration::from_hours(1))]).await.unwrap();
    let deep = [vec![0x81, 0xa3, b'a', b'c', b't'], vec![0x91; 900], vec![1]].concat();
    let bodies: [&[u8]; 5] = [b"{\"act\":\"succeed\"}", &[0xff; 40], &[], &deep, &[0x80, 0x80]];
    let claims = [done.id, waiting.id, Uuid::from_u128(7), Uuid::from_u128(8), Uuid::from_u128(9)];
    for (id, body) in claims.into_iter().zip(bodies) {
        publish_raw(&theatre, &Envelope { id, ..envelope_of(&play()) }, body).await;
    }
    let dead = dead_letters(&theatre, 5).await;
    let mut kept = Vec::new();
    for row in &dead {
        assert_eq!(row.reason.as_deref(), Some("undecodable"));
        assert!(!claims.contains(&row.envelope.id), "an id that it only claims");
        kept.push(theatre.row(row.envelope.id).await.unwrap().body.unwrap());
    }
    kept.sort();
    let mut sent: Vec<_> = bodies.iter().map(|body| body.to_vec()).collect();
    sent.sort();
    assert_eq!(kept, sent, "their exact bytes");
    theatre.is_empty().await;
    assert_eq!(theatre.row(done.id).await.unwrap().state, State::Succeeded);
    assert_eq!(theatre.row(waiting.id).await.unwrap().state, State::Scheduled);
}

async fn a_job_whose_id_was_claimed_by_bytes_that_are_no_body_runs_all_the_same(mut theatre: Theatre) {
    let (before, after) = (envelope_of(&play()), envelope_of(&play()));
    publish_raw(&theatre, &before, b"\xffnothing").await;
    theatre.publish_as(&before, Act::Succeed).await;
    theatre.publish_as(&after, Act::Succeed).await;
    publish_raw(&theatre, &after, b"\xffnothing").await;
    theatre.begin(policy());
    for job in [&before, &after] {
        assert_eq!(theatre.ends(job.id).await.state, State::Succeeded);
        assert_eq!(theatre.stage.starts(job.id), 1);
    }
    for letter in dead_letters(&theatre, 2).await {
        assert_eq!(letter.reason.as_deref(), Some("undecodable"));
        let kept = theatre.row(letter.envelope.id).await.unwrap().body;
        assert_eq!(kept.as_deref(), Some(b"\xffnothing".as_slice()), "its exact bytes");
    }
    theatre.is_empty().await;
}

async fn a_body_of_another_shape_is_a_dead_letter_under_its_own_id(mut theatre: Theatre) {
    theatre.begin(policy());
    let job = Envelope { version: 2, ..envelope_of(&play()) };
    // {"n": 1}
    publish_raw(&theatre, &job, crate::harness::jobs::BODY).await;
    let row = theatre.ends(job.id).await;
    assert_eq!((row.state, row.reason.as_deref()), (State::Dead, Some("invalid_body")));
    assert!(row.error.unwrap().contains("unknown field `n`"));
    assert_eq!(row.body.as_deref(), Some(crate::harness::jobs::BODY));
}

async fn a_newer_layout_is_put_off_and_costs_no_attempt(mut theatre: Theatre) {
    theatre.begin(policy());
    let job = Envelope { version: 3, ..envelope_of(&play()) };
    let body = codec::encode(&Play { act: Act::Succeed }).unwrap();
    publish_raw(&theatre, &job, &body).await;
    let row = until("it is put off", async || theatre.row(job.id).await).await;
    assert_eq!((row.state, row.reason.as_deref()), (State::Retrying, Some("unknown_version")));
    assert_eq!((row.envelope.attempt, row.envelope.version, row.body), (0, 3, Some(body)));
}

async fn a_newer_layout_runs_on_the_next_build(mut theatre: Theatre) {
    theatre.begin(policy());
    let job = Envelope { version: 3, ..envelope_of(&play()) };
    let body = codec::encode(&PlayNext { acts: vec![Act::Succeed, Act::Fail] }).unwrap();
    publish_raw(&theatre, &job, &body).await;
    let put_off = until("it is put off", async || theatre.row(job.id).await).await;
    assert_eq!((put_off.state, put_off.reason.as_deref()), (State::Retrying, Some("unknown_version")));
    theatre.end(PATIENT).await;
    theatre.begin_as(&Registry::default().register(PlayerNext).unwrap(), Settings::default());
    // Now, and not in three minutes.
    theatre.store.requeue(job.id).await.unwrap();
    let row = theatre.ends(job.id).await;
    assert_eq!((row.state, row.envelope.attempt, row.attempts.len()), (State::Succeeded, 0, 0));
    assert_eq!(codec::to_json(&row.output.unwrap()).unwrap(), 2);
}

async fn an_older_layout_is_brought_up_also_when_an_old_dead_letter_is_replayed(mut theatre: Theatre) {
    theatre.begin(policy());
    let job = Envelope { version: 1, ..envelope_of(&play()) };
    let body = codec::encode(&serde_json::json!({ "do": "die_once" })).unwrap();
    publish_raw(&theatre, &job, &body).await;
    let letter = theatre.ends(job.id).await;
    assert_eq!((letter.state, letter.envelope.version), (State::Dead, 1));
    assert_eq!(letter.body.as_deref(), Some(body.as_slice()), "as it came");
    theatre.store.replay(job.id).await.unwrap();
    until("it runs once more", async || theatre.row(job.id).await.filter(|row| row.state == State::Succeeded)).await;
    assert_eq!(theatre.stage.starts(job.id), 2);
}

async fn an_outcome_that_cannot_be_recorded_fails_its_job_and_no_other(mut theatre: Theatre) {
    // All are delivered before the first is recorded, so that they share batches.
    let culprit = Envelope { source: Some("a\0b".into()), ..envelope_of(&play()) };
    let mut others = Vec::new();
    for number in 0..30 {
        if number == 15 {
            theatre.publish_as(&culprit, Act::Succeed).await;
        }
        others.push(theatre.publish(Act::Succeed).await);
    }
    theatre.begin(policy());
    let row = theatre.ends(culprit.id).await;
    assert_eq!((row.state, row.reason.as_deref()), (State::Dead, Some("unrecordable")));
    assert!(row.body.is_some(), "with its bytes");
    for other in others {
        assert_eq!(theatre.ends(other).await.state, State::Succeeded);
    }
    theatre.is_empty().await;
}

async fn a_drain_finishes_what_runs_and_gives_back_what_has_not_started(mut theatre: Theatre) {
    theatre.begin(Policy { concurrency: 2, ..policy() });
    let ids = join_all((0..6).map(|_| theatre.publish(Act::Wait))).await;
    until_equal("as many as may", 2, async || theatre.stage.running.load(SeqCst)).await;
    let stage = theatre.stage.clone();
    let draining = tokio::spawn(async move {
        let drained = theatre.end(Duration::from_millis(800)).await;
        (theatre, drained)
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    // Two end in time, two more start in their place and do not.
    stage.let_go(2);
    let (mut theatre, drained) = draining.await.unwrap();
    assert_eq!(drained, Drained { given_back: 2, abandoned: 2 });
    // Nothing is lost: another process does the rest.
    stage.let_go(10);
    theatre.begin(policy());
    for id in ids {
        assert_eq!(theatre.ends(id).await.state, State::Succeeded);
    }
    theatre.is_empty().await;
}

async fn a_drain_at_its_deadline_leaves_running_jobs_to_others(mut theatre: Theatre) {
    theatre.begin(policy());
    let id = theatre.publish(Act::Wait).await;
    until_equal("it runs", 1, async || theatre.stage.running.load(SeqCst)).await;
    let began = Instant::now();
    assert_eq!(theatre.end(Duration::from_millis(200)).await, Drained { given_back: 0, abandoned: 1 });
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(theatre.row(id).await.is_none(), "nothing is said of it");
    theatre.stage.let_go(10);
    theatre.begin(policy());
    assert_eq!(theatre.ends(id).await.state, State::Succeeded);
}

async fn a_thousand_jobs_of_every_fate_all_end_as_they_must(mut theatre: Theatre) {
    theatre.begin(Policy { concurrency: 50, ..policy() });
    let acts = [Act::Succeed, Act::Succeed, Act::Succeed, Act::FailOnce, Act::Die, Act::Snooze, Act::Emit];
    let jobs: Vec<_> = (0..1000).map(|number| (envelope_of(&play()), acts[number % acts.len()])).collect();
    join_all(jobs.iter().map(|(job, act)| theatre.publish_as(job, *act))).await;
    for (job, act) in &jobs {
        let row = theatre.ends(job.id).await;
        let expected = if *act == Act::Die { State::Dead } else { State::Succeeded };
        assert_eq!(row.state, expected, "{act:?}");
    }
    assert_eq!(theatre.end(PATIENT).await, Drained::default());
    for (job, act) in &jobs {
        let expected = match act {
            Act::FailOnce => 2,
            Act::Snooze => 3,
            _ => 1,
        };
        assert_eq!(theatre.stage.starts(job.id), expected, "{act:?}");
    }
}

// What only a database behind a network must survive.

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_is_lost_is_recorded_once_and_settled() {
    let Some(mut theatre) = Theatre::on_servers().await else { return };
    theatre.begin(policy());
    // So that the lane is connected and its statements are known.
    let first = theatre.publish(Act::Succeed).await;
    theatre.ends(first).await;
    // One statement that is a transaction by itself, and a transaction of several.
    for (act, said) in [(Act::Succeed, None), (Act::Die, Some(b"COMMIT".as_slice()))] {
        let job = envelope_of(&play());
        let proxy = theatre.proxy.as_ref().unwrap();
        proxy.swallow_answer_to(said.unwrap_or(job.id.as_bytes()));
        theatre.publish_as(&job, act).await;
        let row = theatre.ends(job.id).await;
        until("the answer was lost", async || proxy.has_swallowed().then_some(())).await;
        theatre.is_empty().await;
        assert_eq!(row.attempts.len(), usize::from(act == Act::Die), "{act:?}");
        assert_eq!(theatre.stage.starts(job.id), 1, "{act:?}");
    }
    assert_eq!(theatre.end(PATIENT).await, Drained::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_database_finished_jobs_are_held_and_after_a_moment_no_more_start() {
    let Some(mut theatre) = Theatre::on_servers().await else { return };
    theatre.begin(policy());
    let first = theatre.publish(Act::Succeed).await;
    theatre.ends(first).await;
    theatre.proxy.as_ref().unwrap().refuse(true);
    let held = theatre.publish(Act::Succeed).await;
    until_equal("it has run", 1, async || theatre.stage.starts(held)).await;
    // After five seconds without a database.
    tokio::time::sleep(Duration::from_secs(7)).await;
    let late = theatre.publish(Act::Succeed).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(theatre.stage.starts(late), 0, "nothing starts");
    theatre.proxy.as_ref().unwrap().refuse(false);
    for id in [held, late] {
        assert_eq!(theatre.ends(id).await.state, State::Succeeded);
        assert_eq!(theatre.stage.starts(id), 1);
    }
    assert_eq!(theatre.end(PATIENT).await, Drained::default());
    theatre.is_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_have_not_started_are_given_back_once_when_the_database_stays_away() {
    let Some(mut theatre) = Theatre::on_servers().await else { return };
    theatre.begin_with(
        Policy { concurrency: 1, ..policy() },
        Settings { hold: Duration::from_secs(1), ..Settings::default() },
    );
    let mut jobs = Vec::new();
    for _ in 0..6 {
        jobs.push(theatre.publish(Act::Wait).await);
    }
    // Whichever it is: what comes over several lines has no order.
    until_equal("one runs", 1, async || theatre.stage.running.load(SeqCst)).await;
    theatre.proxy.as_ref().unwrap().refuse(true);
    theatre.stage.let_go(1);
    // That one is held, for it is done and not recorded; another one runs.
    until_equal("jobs that wait in the broker", vec![4], async || {
        theatre.observe.depths(&[play()]).await.unwrap_or_default()
    })
    .await;
    theatre.stage.let_go(100);
    theatre.proxy.as_ref().unwrap().refuse(false);
    for id in jobs {
        assert_eq!(theatre.ends(id).await.state, State::Succeeded);
        assert_eq!(theatre.stage.starts(id), 1);
    }
    assert_eq!(theatre.end(PATIENT).await, Drained::default());
    theatre.is_empty().await;
}
