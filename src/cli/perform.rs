//! `warren perform`: the child's side of a suspect. Not for people.

use super::{Ask, Failure};
use crate::{app, runtime::children, telemetry};

pub(super) fn run(ask: &Ask) -> Result<(), Failure> {
    let config = ask.config()?;
    let registry = ask.registry(&config)?;
    telemetry::init_logs(&config.log_level, config.log_format).map_err(app::StartError::from)?;
    telemetry::log_panics();
    children::perform_one(&registry).map_err(|error| Failure::Failed(format!("cannot perform a job: {error}")))
}
