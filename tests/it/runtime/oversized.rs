//! Workers that return too much, or fail with too many words.

use std::fmt;

use warren::{job::State, runtime::Settings, runtime::registry::Registry};
use warren_messages::codec::MAX_BYTES;
use warren_workers::{Context, Disposition, Job, Policy, WorkError, Worker};

use super::theatre::{Act, Play, Theatre, play, policy};
use crate::harness::jobs::envelope_of;

/// Returns more than may be kept, or fails with these words.
struct Loud;

#[derive(Debug)]
enum Words {
    FiftyMegabytes,
    WithZero,
}

impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // Two bytes each, so that a cut may fall within one.
            Self::FiftyMegabytes => f.write_str(&"\u{e9}".repeat(25 << 20)),
            Self::WithZero => f.write_str("before\0behind"),
        }
    }
}

impl std::error::Error for Words {}

impl WorkError for Words {
    fn disposition(&self) -> Disposition {
        Disposition::DeadLetter
    }
}

impl Worker for Loud {
    type Message = Play;
    type Output = String;
    type Error = Words;

    async fn perform(&self, job: Job<Play>, _: &mut Context) -> Result<String, Words> {
        match job.message.act {
            Act::Fail => Err(Words::FiftyMegabytes),
            Act::Die => Err(Words::WithZero),
            _ => Ok("x".repeat(MAX_BYTES)),
        }
    }

    fn policy(&self) -> Policy {
        policy()
    }
}

async fn what_is_too_much_is_cut_or_fails_only_its_own_attempt(mut theatre: Theatre) {
    theatre.begin_as(&Registry::default().register(Loud).unwrap(), Settings::default());
    let [large, long, zero] = [Act::Succeed, Act::Fail, Act::Die].map(|act| (envelope_of(&play()), act));
    for (job, act) in [&large, &long, &zero] {
        theatre.publish_as(job, *act).await;
    }
    let large = theatre.ends(large.0.id).await;
    assert_eq!((large.state, large.reason.as_deref()), (State::Dead, Some("result_too_large")));
    assert!(large.attempts.len() == 3 && large.output.is_none(), "it is tried as often as any");
    assert!(large.error.unwrap().contains("1048576"), "the limit is told");
    let long = theatre.ends(long.0.id).await;
    let text = long.error.unwrap();
    assert_eq!((long.state, text.chars().next()), (State::Dead, Some('\u{e9}')));
    assert!((8 * 1024 - 2..=8 * 1024).contains(&text.len()) && text.ends_with("(cut)"), "{} bytes", text.len());
    assert!(long.attempts[0].error.len() <= 8 * 1024);
    let zero = theatre.ends(zero.0.id).await;
    assert_eq!(zero.error.as_deref(), Some("before\u{fffd}behind"));
    theatre.is_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_servers_what_is_too_much_is_cut_or_fails_only_its_own_attempt() {
    if let Some(theatre) = Theatre::on_servers().await {
        what_is_too_much_is_cut_or_fails_only_its_own_attempt(theatre).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn embedded_what_is_too_much_is_cut_or_fails_only_its_own_attempt() {
    if let Some(theatre) = Theatre::embedded().await {
        what_is_too_much_is_cut_or_fails_only_its_own_attempt(theatre).await;
    }
}
