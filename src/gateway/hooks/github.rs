//! GitHub, and whoever signs as it does: HMAC-SHA-256 over the body, in hexadecimal.
//!
//! <https://docs.github.com/webhooks/using-webhooks/validating-webhook-deliveries>. Nothing but the body is signed:
//! neither a time nor the id of the delivery.

use super::{
    Received, Refused, Verified,
    mac::{any_good, sha256, unhex},
    reading::{event, id, id_of_body, optional, required},
};

/// Headers that are kept with the event.
pub(super) const KEPT: &[&str] = &[
    "x-github-event",
    "x-github-delivery",
    "x-github-hook-id",
    "x-github-hook-installation-target-id",
    "x-github-hook-installation-target-type",
];

const SIGNATURE: &str = "x-hub-signature-256";
const EVENT: &str = "x-github-event";

/// Checks a webhook. Its id is `X-GitHub-Delivery`, or else a digest of the body and of what happened, which is
/// `X-GitHub-Event`.
pub(super) fn verify(received: &Received<'_>) -> Result<Verified, Refused> {
    let given = required(received.headers, SIGNATURE)?;
    let Some(given) = given.strip_prefix("sha256=").and_then(unhex) else {
        return Err(Refused::Signature(format!("{SIGNATURE} is not sha256= and 64 hexadecimal digits")));
    };
    if !any_good(received.secrets, &[given], |secret| sha256(secret, &[received.body])) {
        return Err(Refused::wrong(SIGNATURE));
    }
    let headers = received.headers;
    let id = id(headers, "x-github-delivery").unwrap_or_else(|| id_of_body(headers.get(EVENT), received.body));
    Ok(Verified { id, event: event(optional(headers, EVENT)), time: None })
}
