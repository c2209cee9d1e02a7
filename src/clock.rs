//! Wall-clock time, in one place.
//!
//! Due times are judged by the store's clock; this one only stamps what is accepted here.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::job::Micros;

/// Now.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub fn now() -> Micros {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Micros::try_from(since.as_micros()).unwrap_or(Micros::MAX)
}
