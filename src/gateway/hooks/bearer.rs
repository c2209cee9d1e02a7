//! Anyone who can send a header: a token that both sides know, in `Authorization: Bearer`.
//!
//! It shows who sends, and nothing of the body. For a sender that can sign, another scheme is the better one.

use subtle::{Choice, ConstantTimeEq as _};

use super::{
    Received, Refused, Verified,
    reading::{Said, event, id, id_of_body, optional, required},
};

/// Headers that are kept with the event.
pub(super) const KEPT: &[&str] = &["idempotency-key", "x-event-id", "webhook-id", "x-event-type"];

const EVENT_TYPE: &str = "x-event-type";

/// Checks a webhook. Its id is the first of `Idempotency-Key`, `X-Event-Id` and `webhook-id`, or else a digest of the
/// body and of what happened; that is `X-Event-Type`, or else the body's `type` or `event`.
pub(super) fn verify(received: &Received<'_>) -> Result<Verified, Refused> {
    let headers = received.headers;
    let token = match required(headers, "authorization")?.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
        _ => return Err(Refused::Signature("the header authorization is not Bearer and a token".into())),
    };
    // Digests are of one length, so that not even that of a secret shows in the time that this takes.
    let given = blake3::hash(token.as_bytes());
    let mut good = Choice::from(0);
    for secret in received.secrets {
        good |= blake3::hash(secret.bytes()).as_bytes().ct_eq(given.as_bytes());
    }
    if !bool::from(good) {
        return Err(Refused::Signature("the token in the header authorization is not one of this source".into()));
    }
    let id = ["idempotency-key", "x-event-id", "webhook-id"].into_iter().find_map(|name| id(headers, name));
    let said = Said::read(received.body);
    let happened = optional(headers, EVENT_TYPE).map(str::to_owned).or_else(|| said.event());
    let id = id.unwrap_or_else(|| id_of_body(headers.get(EVENT_TYPE), received.body));
    Ok(Verified { id, event: event(happened.as_deref()), time: said.timestamp() })
}
