//! Why a webhook is refused before anything of it is believed. It must not say what would have been good.

use http::StatusCode;

use crate::gateway::problem::Problem;

/// Why a webhook is not good. Repeats neither a secret nor a signature.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    Signature(String),
    Stale(String),
}

impl Refused {
    /// It reads like a signature, and is not the one.
    pub(super) fn wrong(header: &str) -> Self {
        let detail = format!(
            "{header} is not the signature of these bytes with any secret of this source: is the secret the right one, \
             and does anything between change the body?"
        );
        Self::Signature(detail)
    }

    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::Signature(_) => "bad_signature",
            Self::Stale(_) => "stale_timestamp",
        }
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        let code = refused.code();
        let (Refused::Signature(detail) | Refused::Stale(detail)) = refused;
        Self::new(StatusCode::UNAUTHORIZED, code, detail)
    }
}
