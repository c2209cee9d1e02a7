//! Who sends a request.

use axum::extract::FromRequestParts;
use http::request::Parts;

use super::problem::Problem;
use crate::job::Tenant;

/// Who sends a request, and for whom.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// Whose jobs it sends and sees.
    pub(super) tenant: Tenant,
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(_: &mut Parts, _: &S) -> Result<Self, Problem> {
        Ok(Self { tenant: Tenant::DEFAULT })
    }
}
