//! Places at which a test may end the process, as abruptly as a power cut: nothing is flushed, closed or answered.
//!
//! They exist only with the feature `crash-points`, which cannot be built into a release. `WARREN_CRASH_AT` names one,
//! and `WARREN_CRASH_AFTER` how often it is passed before.

#[cfg(all(feature = "crash-points", not(debug_assertions)))]
compile_error!("crash points are for tests: a release must not have them");

/// Ends the process here if a test has asked for it.
#[macro_export]
macro_rules! crash_point {
    ($name:literal) => {
        #[cfg(feature = "crash-points")]
        $crate::crash::reached($name);
    };
}

/// Ends the process if this is the place.
#[cfg(feature = "crash-points")]
pub fn reached(name: &str) {
    use std::sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering::SeqCst},
    };

    static WANTED: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("WARREN_CRASH_AT").ok());
    static LEFT: LazyLock<AtomicU32> = LazyLock::new(|| {
        let after = std::env::var("WARREN_CRASH_AFTER").ok().and_then(|after| after.parse().ok());
        AtomicU32::new(after.unwrap_or(0))
    });
    if WANTED.as_deref() == Some(name) && LEFT.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_err() {
        // As from outside, and at once: an abort would write a message, and a helper process would let others go on.
        _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}
