//! Who sends a request.

use std::sync::Arc;

use axum::extract::{FromRequestParts, MatchedPath};
use http::{StatusCode, request::Parts};

use super::{
    Gateway,
    auth::{Asking, scope_of, too_many},
    problem::Problem,
};
use crate::{
    job::{Kind, Tenant},
    keyring::Held,
    keys::Scope,
};

/// Who sends a request, and for whom.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Whose jobs it sends and sees.
    pub tenant: Tenant,
    /// The key that it has, where it needs one.
    key: Option<Arc<Held>>,
    /// What it sends was counted already.
    counted: bool,
    /// So many were counted for the request before it was read.
    begun: u32,
}

impl Caller {
    /// Someone who needs no key: there are none, or he has shown in another way who he is, such as by a signature.
    pub fn of(tenant: Tenant) -> Self {
        Self { tenant, key: None, counted: false, begun: 0 }
    }

    fn with(key: Arc<Held>) -> Self {
        Self { tenant: key.key.tenant.clone(), key: Some(key), counted: false, begun: 0 }
    }

    /// The name of the key, to be seen on the jobs that it sends.
    pub(super) fn name(&self) -> Option<Arc<str>> {
        self.key.as_ref().map(|held| held.key.name.as_str().into())
    }

    /// Counts one for a request before it is read: one that turns out bad has cost something too.
    pub(super) fn begun(self) -> Result<Self, Problem> {
        self.count(1)?;
        Ok(Self { begun: 1, ..self })
    }

    /// Counts so much against the limits of the key, all or nothing, and what was counted before as a part of it. What is
    /// then sent with the answer is not counted again: a request that is refused as a whole must be counted as a whole.
    pub(super) fn counted(self, count: u32) -> Result<Self, Problem> {
        self.count(count)?;
        Ok(Self { counted: true, ..self })
    }

    /// The same caller for what was counted by itself.
    pub(super) fn after_counting(&self) -> Self {
        Self { counted: true, ..self.clone() }
    }

    /// The same for a sender that cannot send less at once: what is more than the key ever holds counts as all that it
    /// holds, so that a limit makes such a sender wait, and does not lose what it sends.
    pub(super) fn counted_as_held(self, count: u32) -> Result<Self, Problem> {
        let most = self.key.as_ref().and_then(|held| held.limits().most());
        self.counted(most.map_or(count, |most| count.min(most)))
    }

    /// Counts so much against the limits of the key, unless that was done before.
    pub(super) fn count(&self, count: u32) -> Result<(), Problem> {
        match &self.key {
            Some(held) if !self.counted => {
                let limits = held.limits();
                limits.take_beside(count.saturating_sub(self.begun), self.begun).map_err(too_many)
            }
            _ => Ok(()),
        }
    }

    /// Whether it may see how jobs stand, and so what they have left behind.
    pub(super) fn may_read(&self) -> bool {
        self.key.as_ref().is_none_or(|held| held.key.grants.scopes.allow(Scope::JobsRead))
    }

    /// Whether it may send jobs of this kind.
    pub(super) fn may_send(&self, kind: &Kind) -> Result<(), Problem> {
        let kinds = self.key.as_ref().map_or(&[][..], |held| &held.key.grants.kinds);
        if kinds.is_empty() || kinds.contains(kind) {
            return Ok(());
        }
        let allowed: Vec<_> = kinds.iter().map(Kind::as_str).collect();
        let detail = format!("this key may not send {kind}, only {}", allowed.join(", "));
        Err(Problem::new(StatusCode::FORBIDDEN, "kind_not_allowed", detail))
    }
}

impl Gateway {
    /// Who sends a request that must be allowed to do this. `given` is a key from elsewhere than the headers, for
    /// protocols whose clients put it into the body; it counts where the headers bring none.
    pub(super) fn caller(&self, head: &Parts, given: Option<&str>, scope: Scope) -> Result<Caller, Problem> {
        self.caller_of(Asking::of(&head.uri, &head.headers, &head.extensions), given, scope)
    }

    /// The same, by what is looked at of it.
    pub(super) fn caller_of(&self, asking: Asking<'_>, given: Option<&str>, scope: Scope) -> Result<Caller, Problem> {
        let key = self.door.admit(asking, given, scope)?;
        Ok(key.map_or_else(|| Caller::of(Tenant::DEFAULT), Caller::with))
    }

    /// The same by the headers alone, before the body is read: none where they do not tell.
    pub(super) fn caller_by_headers(&self, head: &Parts, scope: Scope) -> Result<Option<Caller>, Problem> {
        if self.door.knows(&head.headers) { self.caller(head, None, scope).map(Some) } else { Ok(None) }
    }
}

impl FromRequestParts<Arc<Gateway>> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(head: &mut Parts, gateway: &Arc<Gateway>) -> Result<Self, Problem> {
        let route = head.extensions.get::<MatchedPath>().map_or("", MatchedPath::as_str);
        gateway.caller(head, None, scope_of(&head.method, route))
    }
}
