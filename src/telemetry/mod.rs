//! What the program says of itself: logs and metrics.

mod metrics;
mod timer;

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    io::IsTerminal as _,
    panic,
};

use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};
use tracing::{error, trace};
use tracing_subscriber::{EnvFilter, filter::ParseError};

pub use self::{metrics::*, timer::Timer};
use crate::config::LogFormat;

/// Why logs or metrics cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// `log.level` is no level and no list of directives.
    #[error("log.level is neither a level nor a list of directives such as info,warren=debug")]
    Level(#[source] ParseError),
    /// The metrics cannot be installed.
    #[error("the metrics cannot be set up")]
    Metrics(#[source] BuildError),
}

/// What `log.level` lets through.
pub fn filter(level: &str) -> Result<EnvFilter, SetupError> {
    EnvFilter::try_new(level).map_err(SetupError::Level)
}

/// Begins to log to standard error. What is logged is never a body, a key, a signature or a password, but for `trace`.
pub fn init_logs(level: &str, format: LogFormat) -> Result<(), SetupError> {
    let filter = filter(level)?;
    // lapin reports what our own supervisor reports better; and a message that came back with all that is in it.
    let quiet = [("lapin", "lapin=off"), ("trace", "lapin::returned_messages=off")];
    let filter = quiet.iter().fold(filter, |filter, (unless, directive)| match directive.parse() {
        Ok(directive) if !level.contains(unless) => filter.add_directive(directive),
        _ => filter,
    });
    let terminal = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let json = format == LogFormat::Json || (format == LogFormat::Auto && !terminal);
    let set = if json { builder.json().try_init() } else { builder.with_ansi(terminal).try_init() };
    // A second call within one process (a test) keeps the first one's settings.
    _ = set;
    Ok(())
}

/// Begins to log panics, as everything else is logged. What a panic says may quote a value out of a body, so only `trace`
/// tells it; of a job it stands with the job.
pub fn log_panics() {
    panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let place = panic.location().map(ToString::to_string);
        // If the environment asks for one. It names functions, and no values.
        let backtrace = Backtrace::capture();
        let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
        error!(thread = thread.name(), place, backtrace, "a thread has panicked");
        trace!(text = panic.payload_as_str(), "what the panic said");
    }));
}

/// Begins to count.
pub fn init_metrics() -> Result<PrometheusHandle, SetupError> {
    let builder = PrometheusBuilder::new().set_buckets(&BUCKETS).map_err(SetupError::Metrics)?;
    let handle = builder.install_recorder().map_err(SetupError::Metrics)?;
    describe();
    Ok(handle)
}
