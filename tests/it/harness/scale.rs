//! How large a test is: small within `tests/run`, as long as it takes within `tests/prove`.

/// One number within `tests/run`, another within `tests/prove`.
pub(crate) fn sized<T>(small: T, full: T) -> T {
    if std::env::var_os("WARREN_PROVE").is_some() { full } else { small }
}

/// Varies what a test does from one round of `tests/prove` to the next; the same within `tests/run`.
pub(crate) fn seed() -> u32 {
    std::env::var("WARREN_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0)
}
