//! How a command fails: a sentence on standard error, and an exit code that scripts can tell apart.

use std::process::ExitCode;

use crate::{
    app::StartError,
    broker::rabbitmq::topology::TopologyError,
    config::Mistake,
    dead_letters::DecideError,
    job::chain,
    store::{MigrateError, StoreError},
};

/// Why a command was not carried out.
#[derive(Debug)]
pub enum Failure {
    /// It did not work out. Exits with 1.
    Failed(String),
    /// It was asked wrongly. Exits with 2.
    Usage(String),
    /// The configuration is wrong. Exits with 2.
    Configuration(Vec<Mistake>),
    /// What it is about is not there. Exits with 3.
    NotFound(String),
    /// Whom it needs cannot be reached. Exits with 4.
    Unreachable(String),
    /// It is not allowed. Exits with 5.
    Refused(String),
    /// The database's schema or the broker's topology is not what this build needs. Exits with 6.
    Differs(String),
}

impl Failure {
    /// Says why, and answers what to exit with.
    pub fn report(self) -> ExitCode {
        let (code, text) = match self {
            Self::Failed(text) => (1, text),
            Self::Usage(text) => (2, text),
            Self::Configuration(mistakes) => {
                let lines: Vec<_> = mistakes.iter().map(|mistake| format!("  {mistake}")).collect();
                (2, format!("the configuration is wrong in {} places:\n{}", mistakes.len(), lines.join("\n")))
            }
            Self::NotFound(text) => (3, text),
            Self::Unreachable(text) => (4, text),
            Self::Refused(text) => (5, text),
            Self::Differs(text) => (6, text),
        };
        eprintln!("warren: {text}");
        ExitCode::from(code)
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        let text = chain(&error);
        match error {
            StartError::Configuration(text) => Self::Usage(text),
            StartError::Telemetry(_) => Self::Usage(text),
            StartError::Schema(error) => error.into(),
            StartError::Topology(error) => error.into(),
            _ => Self::Failed(text),
        }
    }
}

impl From<MigrateError> for Failure {
    fn from(error: MigrateError) -> Self {
        let text = chain(&error);
        match error {
            MigrateError::Store(_) => Self::Unreachable(text),
            MigrateError::Failed(_) => Self::Failed(text),
            MigrateError::Older { .. } | MigrateError::Newer { .. } | MigrateError::Differs(_) => Self::Differs(text),
        }
    }
}

impl From<TopologyError> for Failure {
    fn from(error: TopologyError) -> Self {
        let text = chain(&error);
        match error {
            TopologyError::Differs { .. } => Self::Differs(text),
            TopologyError::Broker { .. } | TopologyError::Management(_) => Self::Unreachable(text),
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Unreachable(chain(&error))
    }
}

impl From<DecideError> for Failure {
    fn from(error: DecideError) -> Self {
        let text = chain(&error);
        match error {
            DecideError::Unknown(_) => Self::NotFound(text),
            DecideError::NotDead { .. }
            | DecideError::NotReplayable(..)
            | DecideError::Over { .. }
            | DecideError::NoBody(_) => Self::Refused(text),
            DecideError::Store(error) => error.into(),
        }
    }
}
