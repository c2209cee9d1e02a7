//! `warren perform`: the child's side of a suspect. Not for people.

use super::{Ask, Failure};
use crate::runtime::children;

pub(super) fn run(ask: &Ask) -> Result<(), Failure> {
    let config = ask.config()?;
    let registry = ask.registry(&config)?;
    children::perform_one(&registry).map_err(|error| Failure::Failed(format!("cannot perform a job: {error}")))
}
