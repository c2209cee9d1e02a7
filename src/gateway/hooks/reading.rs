//! What a webhook says, read before it is believed.

use http::{HeaderMap, HeaderValue};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Received, Refused};

/// The longest id that an event may have.
const LONGEST_ID: usize = 1024;
/// The longest name of what happened; that of the source stands before it.
const LONGEST_EVENT: usize = 200;
/// What happened, if nothing says so.
const EVENT: &str = "event";

/// A header without which there is no signature.
pub(super) fn required<'a>(headers: &'a HeaderMap, name: &str) -> Result<&'a str, Refused> {
    let Some(value) = headers.get(name) else {
        return Err(Refused::Signature(format!("there is no header {name}")));
    };
    value.to_str().map_err(|_| Refused::Signature(format!("the header {name} is not ASCII")))
}

/// A header that has something to say.
pub(super) fn optional<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim).filter(|value| !value.is_empty())
}

/// The name of an event that stands in a header.
pub(super) fn id(headers: &HeaderMap, name: &str) -> Option<String> {
    let given = headers.get(name).map(|value| value.as_bytes().trim_ascii()).filter(|value| !value.is_empty());
    given.map(id_of)
}

/// The name of an event, as it was given. What cannot be one (it is too long, or no text) is replaced by its digest: two
/// that differ stay two, whatever else the events say.
pub(super) fn id_of(given: &[u8]) -> String {
    let fits = |id: &&str| id.len() <= LONGEST_ID && !id.chars().any(char::is_control);
    match std::str::from_utf8(given).ok().filter(fits) {
        Some(id) => id.to_owned(),
        None => format!("id-{}", blake3::hash(given).to_hex()),
    }
}

/// The name of an event that has none: the same body is the same event, unless a header says that something else happened.
pub(super) fn id_of_body(happened: Option<&HeaderValue>, body: &[u8]) -> String {
    let happened = happened.map_or(b"".as_slice(), |value| value.as_bytes().trim_ascii());
    let mut digest = blake3::Hasher::new();
    // The length first, or where the one ends and the other begins would not count.
    digest.update(&(happened.len() as u64).to_le_bytes()).update(happened).update(body);
    format!("body-{}", digest.finalize().to_hex())
}

/// What happened, if that is a name.
pub(super) fn event(name: Option<&str>) -> String {
    let fits = |name: &&str| (1..=LONGEST_EVENT).contains(&name.len()) && !name.chars().any(char::is_control);
    name.filter(fits).unwrap_or(EVENT).to_owned()
}

/// Reads seconds since 1970, which must lie near our own time.
pub(super) fn fresh(name: &str, text: &str, received: &Received<'_>) -> Result<i64, Refused> {
    let now = received.now;
    let time = Timestamp::from_second(now).unwrap_or_default();
    let here = format!("this server's time is {now} ({time})");
    // `parse` alone would take a sign.
    let seconds = Some(text).filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let Some(seconds) = seconds.and_then(|text| text.parse::<i64>().ok()) else {
        return Err(Refused::Stale(format!("{name} is no number of seconds since 1970; {here}")));
    };
    let (apart, most) = (now.abs_diff(seconds), received.tolerance.as_secs());
    if apart > most {
        let side = if seconds < now { "behind" } else { "ahead" };
        return Err(Refused::Stale(format!("{name} lies {apart} s {side}, and at most {most} s are taken; {here}")));
    }
    Ok(seconds)
}

/// What a body says of its event, where it is JSON.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Said<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "type")]
    event_type: Option<&'a RawValue>,
    #[serde(borrow, default)]
    event: Option<&'a RawValue>,
    #[serde(borrow, default)]
    timestamp: Option<&'a RawValue>,
    #[serde(borrow, default)]
    created: Option<&'a RawValue>,
}

impl<'a> Said<'a> {
    /// Reads it. A body that is no object says nothing.
    pub(super) fn read(body: &'a [u8]) -> Self {
        // A struct would be read from an array of its fields, too.
        let is_object = body.trim_ascii_start().first() == Some(&b'{');
        if is_object { serde_json::from_slice(body).unwrap_or_default() } else { Self::default() }
    }

    /// `id`.
    pub(super) fn id(&self) -> Option<String> {
        text(self.id).filter(|id| !id.is_empty()).map(|id| id_of(id.as_bytes()))
    }

    /// `type`, or else `event`.
    pub(super) fn event(&self) -> Option<String> {
        text(self.event_type).or_else(|| text(self.event))
    }

    /// `timestamp`, as RFC 3339.
    pub(super) fn timestamp(&self) -> Option<Timestamp> {
        text(self.timestamp)?.parse().ok()
    }

    /// `created`, in seconds since 1970.
    pub(super) fn created(&self) -> Option<Timestamp> {
        Timestamp::from_second(self.created?.get().parse().ok()?).ok()
    }
}

fn text(value: Option<&RawValue>) -> Option<String> {
    serde_json::from_str(value?.get()).ok()
}
