//! The probe does what it is told.

use warren_messages::probe::{Fate, Probe as Message};
use warren_workers::{Disposition, WorkError as _, probe::Probe, testing};

#[tokio::test]
async fn an_empty_probe_succeeds_at_once() {
    let done = testing::perform(&Probe, Message::default()).await;
    let output = done.result.expect("it was told nothing else");
    assert_eq!((output.attempt, output.payload.as_slice().len()), (1, 0));
}

#[tokio::test]
async fn a_probe_fails_as_often_as_it_is_told_and_then_carries_its_payload() {
    let message = Message { fail_attempts: 2, payload_bytes: 1000, ..Message::default() };
    for attempt in [1, 2] {
        let error = testing::perform_attempt(&Probe, message.clone(), attempt).await.result.expect_err("told to fail");
        assert_eq!(error.disposition(), Disposition::Retry);
    }
    let output = testing::perform_attempt(&Probe, message, 3).await.result.expect("the third is the last");
    assert_eq!((output.attempt, output.payload.as_slice().len()), (3, 1000));
}

#[tokio::test]
async fn a_probe_that_is_told_to_die_is_not_tried_again() {
    let message = Message { fate: Fate::Dead, ..Message::default() };
    let error = testing::perform(&Probe, message).await.result.expect_err("told to die");
    assert_eq!(error.disposition(), Disposition::DeadLetter);
}
