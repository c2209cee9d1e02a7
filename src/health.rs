//! What is ready and what is not, and why: one board that the parts of a process write on and `/readyz` reads.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use serde::Serialize;

/// The state of every part of a process.
#[derive(Debug, Default)]
pub struct Health {
    parts: Mutex<BTreeMap<&'static str, Condition>>,
    /// What this process does its work without.
    dispensable: &'static [&'static str],
}

/// How a part is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", content = "detail", rename_all = "snake_case")]
pub enum Condition {
    /// It does what it should.
    Ready,
    /// It does what it should, and yet someone should look.
    Warning(String),
    /// It does not, and why.
    NotReady(String),
}

impl Health {
    /// A board for a process that is ready without these parts: what ails them is only a warning.
    pub fn without(dispensable: &'static [&'static str]) -> Self {
        Self { dispensable, ..Self::default() }
    }

    /// Notes how a part is.
    pub fn set(&self, part: &'static str, condition: Condition) {
        let condition = match condition {
            Condition::NotReady(why) if self.dispensable.contains(&part) => Condition::Warning(why),
            condition => condition,
        };
        self.lock().insert(part, condition);
    }

    /// Notes a part that is ready or says why not.
    pub fn report(&self, part: &'static str, health: Result<(), String>) {
        self.set(part, health.map_or_else(Condition::NotReady, |()| Condition::Ready));
    }

    /// All parts, and whether the whole is ready.
    pub fn read(&self) -> (bool, BTreeMap<&'static str, Condition>) {
        let parts = self.lock().clone();
        let ready = !parts.values().any(|condition| matches!(condition, Condition::NotReady(_)));
        (ready, parts)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, Condition>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
