//! Stripe: HMAC-SHA-256 over `t.body`, in hexadecimal, in one header with its time.
//!
//! <https://docs.stripe.com/webhooks#verify-manually>. While a secret is rolled, there are several `v1`.

use jiff::Timestamp;

use super::{
    Received, Refused, Verified,
    mac::{any_good, sha256, unhex},
    reading::{Said, event, fresh, id_of_body, required},
};

/// Headers that are kept with the event.
pub(super) const KEPT: &[&str] = &[];

const SIGNATURE: &str = "stripe-signature";

/// Checks a webhook. Its id, what happened and when are the body's `id`, `type` and `created`.
pub(super) fn verify(received: &Received<'_>) -> Result<Verified, Refused> {
    let header = required(received.headers, SIGNATURE)?;
    let pairs = || header.split(',').filter_map(|item| item.trim().split_once('='));
    let Some((_, timestamp)) = pairs().find(|(name, _)| *name == "t") else {
        return Err(Refused::Signature(format!("{SIGNATURE} holds no t=…")));
    };
    let sent = fresh("t in stripe-signature", timestamp, received)?;
    let given: Vec<_> = pairs().filter(|(name, _)| *name == "v1").filter_map(|(_, text)| unhex(text)).collect();
    if given.is_empty() {
        return Err(Refused::Signature(format!("{SIGNATURE} holds no v1=… of 64 hexadecimal digits")));
    }
    if !any_good(received.secrets, &given, |secret| sha256(secret, &[timestamp.as_bytes(), b".", received.body])) {
        return Err(Refused::wrong(SIGNATURE));
    }
    let said = Said::read(received.body);
    let id = said.id().unwrap_or_else(|| id_of_body(None, received.body));
    let time = said.created().or_else(|| Timestamp::from_second(sent).ok());
    Ok(Verified { id, event: event(said.event().as_deref()), time })
}
