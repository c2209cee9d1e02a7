//! Waiting for a state, and never for a time.

use std::{
    fmt::Debug,
    time::{Duration, Instant},
};

/// How long anything that must happen may take on a machine that is busy with other tests.
pub(crate) const SOON: Duration = Duration::from_secs(40);

/// Asks until the answer is `Some`, and fails with what was waited for if it does not become so.
pub(crate) async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(began.elapsed() < SOON, "waited {SOON:?} in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Asks until the answer is this one.
pub(crate) async fn until_equal<T: PartialEq + Debug>(what: &str, wanted: T, mut ask: impl AsyncFnMut() -> T) {
    let began = Instant::now();
    loop {
        let answer = ask().await;
        if answer == wanted {
            return;
        }
        assert!(began.elapsed() < SOON, "waited {SOON:?} in vain: {what} is {answer:?} and not {wanted:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
