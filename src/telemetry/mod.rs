//! What the program says of itself: logs and metrics.

mod metrics;

pub use self::metrics::*;
