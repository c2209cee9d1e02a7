//! Twilio: HMAC-SHA-1 over the address that it calls and the fields of the form, in base64.
//!
//! <https://www.twilio.com/docs/usage/security#validating-requests>. The fields are sorted by name, and each name is
//! followed by its value; equal pairs count once. A body that is no form is signed by its SHA-256, which stands in the
//! query as `bodySHA256`. There is no time in it.

use std::collections::{BTreeMap, BTreeSet};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use percent_encoding::percent_decode;
use sha2::{Digest as _, Sha256};

use super::{
    Received, Refused, Verified,
    mac::{any_good, sha1, unhex},
    reading::{event, id, id_of, id_of_body, required},
};

/// Headers that are kept with the event.
pub(super) const KEPT: &[&str] = &["i-twilio-idempotency-token"];

const SIGNATURE: &str = "x-twilio-signature";

/// Checks a webhook that came to this address.
///
/// Its id is a message's `MessageSid` with its status, or a call's `CallSid` with its status and `SequenceNumber`: a call
/// asks several times while it is in progress, and its status alone would make those one. Without them it is
/// `I-Twilio-Idempotency-Token`, or else a digest of the body. The token comes after them because it is not signed: whoever
/// sends a request once more could give it another.
pub(super) fn verify(received: &Received<'_>, url: &str) -> Result<Verified, Refused> {
    let given = STANDARD.decode(required(received.headers, SIGNATURE)?).ok();
    let Some(given) = given.and_then(|bytes| <[u8; 20]>::try_from(bytes).ok()) else {
        return Err(Refused::Signature(format!("{SIGNATURE} is not 20 bytes in base64")));
    };
    let query = received.query.unwrap_or_default();
    let digest = query.split('&').find_map(|pair| pair.strip_prefix("bodySHA256="));
    // The query is signed, so what it says of the body holds; and a body of which it says nothing is a form to us,
    // whatever its content type is, for that is not signed.
    let form = match digest {
        Some(digest) if unhex(digest) == Some(Sha256::digest(received.body).into()) => Form::default(),
        Some(_) => return Err(Refused::Signature("the body is not the one that bodySHA256 names".into())),
        None => Form::read(received.body),
    };
    let mut pieces = vec![url.as_bytes()];
    if let Some(query) = received.query {
        pieces.extend([b"?".as_slice(), query.as_bytes()]);
    }
    for (name, values) in &form.0 {
        pieces.extend(values.iter().flat_map(|value| [name.as_slice(), value.as_slice()]));
    }
    if !any_good(received.secrets, &[given], |secret| sha1(secret, &pieces)) {
        let detail = format!("{SIGNATURE} is not the signature of this body at {url} with any secret of this source");
        return Err(Refused::Signature(detail));
    }
    let happened = form.happened();
    let token = || id(received.headers, "i-twilio-idempotency-token");
    let id = form.id().or_else(token).unwrap_or_else(|| id_of_body(None, received.body));
    Ok(Verified { id, event: event(happened.as_deref()), time: None })
}

/// The fields of a form: each name with its values, both sorted.
#[derive(Debug, Default)]
struct Form(BTreeMap<Vec<u8>, BTreeSet<Vec<u8>>>);

impl Form {
    fn read(body: &[u8]) -> Self {
        let mut fields = BTreeMap::<_, BTreeSet<_>>::new();
        for pair in body.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty()) {
            let mut parts = pair.splitn(2, |byte| *byte == b'=').map(decoded);
            let (name, value) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            fields.entry(name).or_default().insert(value);
        }
        Self(fields)
    }

    fn text(&self, name: &str) -> Option<&str> {
        let value = self.0.get(name.as_bytes())?.first()?;
        std::str::from_utf8(value).ok().filter(|text| !text.is_empty())
    }

    fn any(&self, names: [&str; 2]) -> Option<&str> {
        names.into_iter().find_map(|name| self.text(name))
    }

    /// `message.received`, `call.ringing`, or the name that the form itself gives.
    fn happened(&self) -> Option<String> {
        let message = self.any(["MessageStatus", "SmsStatus"]).map(|status| format!("message.{status}"));
        let call = || self.text("CallStatus").map(|status| format!("call.{status}"));
        message.or_else(call).or_else(|| self.text("EventType").map(str::to_owned))
    }

    fn id(&self) -> Option<String> {
        let message = || {
            let (id, status) = (self.any(["MessageSid", "SmsSid"])?, self.any(["MessageStatus", "SmsStatus"])?);
            Some(format!("{id}:{status}"))
        };
        let call = || {
            let (id, status) = (self.text("CallSid")?, self.text("CallStatus")?);
            Some(format!("{id}:{status}:{}", self.text("SequenceNumber")?))
        };
        message().or_else(call).map(|id| id_of(id.as_bytes()))
    }
}

fn decoded(part: &[u8]) -> Vec<u8> {
    let spaces: Vec<_> = part.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
    percent_decode(&spaces).collect()
}
