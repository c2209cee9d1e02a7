//! Routes: which events become which jobs.
//!
//! Pure: no I/O, no protocol. A route matches an event by its type, its source and whose it is, and makes the body of a job
//! from it.
//! What can be told to be wrong without an event, such as a reference to nothing, is told when a route is made.

mod glob;
mod template;

use serde_json::Value;

use crate::job::Tenant;

pub use self::{
    glob::{BadGlob, Glob},
    template::{BadTemplate, Missing, Template},
};

/// Which events become which job.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// What the operator calls it. Part of the ids of its jobs: under another name a repeat is another job.
    pub name: String,
    /// The types that it takes.
    pub event_type: Glob,
    /// The sources that it takes.
    pub source: Glob,
    /// Whose events it takes; everyone's, if it does not say.
    pub tenant: Option<Tenant>,
    /// The kind of the job, as it was given.
    pub kind: String,
    /// What its body is made by.
    pub body: Template,
}

impl Route {
    /// Whether it takes an event.
    pub fn takes(&self, tenant: &Tenant, event_type: &str, source: &str) -> bool {
        let is_theirs = self.tenant.as_ref().is_none_or(|own| own == tenant);
        is_theirs && self.event_type.matches(event_type) && self.source.matches(source)
    }

    /// The body of the job that an event becomes. `event` is the event as JSON, as a kept one would show it.
    pub fn body(&self, event: &Value) -> Result<Value, Missing> {
        self.body.fill(event)
    }
}
