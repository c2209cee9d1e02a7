//! What may be done with a key.

use std::{fmt, str::FromStr};

use crate::nearest::nearest;

/// One thing that may be done with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Send jobs.
    JobsWrite,
    /// See how jobs stand, and wait for them.
    JobsRead,
    /// Call jobs off.
    JobsCancel,
    /// Send events, which become jobs as the routes say.
    EventsWrite,
    /// Read metrics and the whole of `/readyz` on the admin listener.
    MetricsRead,
    /// Everything on the admin listener. Says nothing about jobs and events.
    Admin,
}

impl Scope {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::JobsWrite, Self::JobsRead, Self::JobsCancel, Self::EventsWrite, Self::MetricsRead, Self::Admin];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::JobsWrite => "jobs:write",
            Self::JobsRead => "jobs:read",
            Self::JobsCancel => "jobs:cancel",
            Self::EventsWrite => "events:write",
            Self::MetricsRead => "metrics:read",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that names no scope, and what may have been meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no scope `{name}`{hint}; there are {}", names())]
pub struct UnknownScope {
    name: String,
    hint: String,
}

fn names() -> String {
    Scope::ALL.map(Scope::as_str).join(", ")
}

impl FromStr for Scope {
    type Err = UnknownScope;

    fn from_str(text: &str) -> Result<Self, UnknownScope> {
        if let Some(scope) = Self::ALL.into_iter().find(|scope| scope.as_str() == text) {
            return Ok(scope);
        }
        let hint = nearest(text, Self::ALL.map(Self::as_str)).first().copied();
        let hint = hint.map_or_else(String::new, |scope| format!("; did you mean {scope}?"));
        let name = text.chars().take(40).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
        Err(UnknownScope { name, hint })
    }
}

/// A set of scopes.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Scopes(u8);

impl Scopes {
    fn bit(scope: Scope) -> u8 {
        1 << scope as u8
    }

    /// Whether it allows this.
    pub fn allow(self, scope: Scope) -> bool {
        let enough = match scope {
            Scope::MetricsRead => Self::bit(Scope::MetricsRead) | Self::bit(Scope::Admin),
            scope => Self::bit(scope),
        };
        self.0 & enough != 0
    }

    /// Those that are in it.
    pub fn iter(self) -> impl Iterator<Item = Scope> {
        Scope::ALL.into_iter().filter(move |scope| self.0 & Self::bit(*scope) != 0)
    }

    /// Whether nothing is in it.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<T: IntoIterator<Item = Scope>>(scopes: T) -> Self {
        Self(scopes.into_iter().fold(0, |bits, scope| bits | Self::bit(scope)))
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.iter().map(Scope::as_str).collect::<Vec<_>>().join(" "))
    }
}

impl fmt::Debug for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_is_read_by_its_name_and_a_near_one_is_suggested() {
        for scope in Scope::ALL {
            assert_eq!(scope.as_str().parse(), Ok(scope));
        }
        let said = |text: &str| text.parse::<Scope>().unwrap_err().to_string();
        assert!(said("jobs:wirte").contains("did you mean jobs:write?"), "{}", said("jobs:wirte"));
        assert!(said("event:write").contains("did you mean events:write?"));
        assert!(!said("\u{1b}[31m").contains('\u{1b}'));
        assert!(!said("zzzz").contains("did you mean"));
        assert!(said("zzzz").contains("jobs:cancel"));
    }

    #[test]
    fn a_set_allows_what_is_in_it_and_an_operator_may_read_metrics_and_send_no_jobs() {
        let set: Scopes = [Scope::JobsWrite, Scope::Admin].into_iter().collect();
        let allowed: Vec<_> = Scope::ALL.into_iter().filter(|scope| set.allow(*scope)).collect();
        assert_eq!(allowed, [Scope::JobsWrite, Scope::MetricsRead, Scope::Admin]);
        assert_eq!(set.to_string(), "jobs:write admin");
        let metrics: Scopes = [Scope::MetricsRead].into_iter().collect();
        assert!(!metrics.allow(Scope::Admin));
        assert!(Scopes::default().is_empty() && !Scope::ALL.iter().any(|scope| Scopes::default().allow(*scope)));
    }
}
