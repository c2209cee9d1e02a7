//! Standard Webhooks, and Svix, whose headers had their own names first.
//!
//! <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>: HMAC-SHA-256 over
//! `id.timestamp.body`. Of the signatures in the list one must be good; `v1a` asks for a public key and counts for
//! nothing.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;

use super::{
    Received, Refused, Verified,
    mac::{any_good, sha256},
    reading::{Said, event, fresh, required},
};

/// Headers that are kept with the event.
pub(super) const KEPT: &[&str] = &["webhook-id", "webhook-timestamp", "svix-id", "svix-timestamp"];

/// Checks a webhook. Its id is `webhook-id`, what happened the body's `type` (or `event`), when the body's `timestamp`.
pub(super) fn verify(received: &Received<'_>) -> Result<Verified, Refused> {
    let headers = received.headers;
    let [id, timestamp, signature] = if headers.contains_key("webhook-signature") {
        ["webhook-id", "webhook-timestamp", "webhook-signature"]
    } else if headers.contains_key("svix-signature") {
        ["svix-id", "svix-timestamp", "svix-signature"]
    } else {
        return Err(Refused::Signature("there is no header webhook-signature (or svix-signature)".into()));
    };
    let (id_name, id) = (id, required(headers, id)?);
    // A dot would let what was signed be cut elsewhere.
    if id.is_empty() || id.len() > 1024 || !id.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'.') {
        let detail = format!("{id_name} is not 1 to 1024 visible ASCII characters without dots");
        return Err(Refused::Signature(detail));
    }
    let (timestamp_name, timestamp) = (timestamp, required(headers, timestamp)?);
    let sent = fresh(timestamp_name, timestamp, received)?;
    let given = signatures(required(headers, signature)?);
    if given.is_empty() {
        return Err(Refused::Signature(format!("{signature} holds no signature v1,… of 32 bytes in base64")));
    }
    let sign = |secret: &_| sha256(secret, &[id.as_bytes(), b".", timestamp.as_bytes(), b".", received.body]);
    if !any_good(received.secrets, &given, sign) {
        return Err(Refused::wrong(signature));
    }
    let said = Said::read(received.body);
    let time = said.timestamp().or_else(|| Timestamp::from_second(sent).ok());
    Ok(Verified { id: id.to_owned(), event: event(said.event().as_deref()), time })
}

/// The signatures `v1` of a list.
fn signatures(list: &str) -> Vec<[u8; 32]> {
    let items = list.split(' ').filter_map(|item| item.split_once(',')).filter(|(version, _)| *version == "v1");
    items.filter_map(|(_, text)| STANDARD.decode(text).ok()?.try_into().ok()).collect()
}
