//! Outgoing webhooks.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Bytes, Invalid, Json, Message, UrlText, field, json};

/// `webhook.deliver` v1: one event to one receiver, signed as Standard Webhooks asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Deliver {
    /// Where to: `https://` (or `http://` where the operator allows it), at most 2,048 characters, no user information.
    pub url: UrlText,
    /// What happened, for instance `order.paid`: 1 to 128 of `A-Z a-z 0-9 . _ : / -`. Sent as `warren-event-type`.
    pub event_type: String,
    /// Which event: 1 to 255 visible ASCII characters without a dot. The receiver knows a repeat by it (`webhook-id`).
    pub event_id: String,
    /// The body as JSON: any value, sent compact as `application/json`. Exactly one of this and `body_base64`.
    #[serde(default, deserialize_with = "json::present", skip_serializing_if = "Option::is_none")]
    pub body: Option<Json>,
    /// The body as bytes, sent as they are, as `application/octet-stream` unless `headers` say otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_base64: Option<Bytes>,
    /// Further headers: at most 32, 8 KiB together. Those that HTTP or the signature need cannot be set.
    #[serde(default, deserialize_with = "json::text_map", skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Which of the configured secrets signs it. Without one it is sent unsigned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<String>,
    /// When it stops being worth sending, as RFC 3339 with an offset: an attempt after that is not made.
    #[serde(default, deserialize_with = "field::optional_instant", skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
}

const MAX_URL: usize = 2048;
const MAX_HEADERS: usize = 32;
const MAX_HEADER_BYTES: usize = 8 * 1024;

/// Headers that belong to the connection, to the length of the body, or to the signature.
const RESERVED: [&str; 9] =
    ["host", "connection", "content-length", "expect", "te", "trailer", "transfer-encoding", "upgrade", "user-agent"];

impl Message for Deliver {
    const KIND: &'static str = "webhook.deliver";
    const VERSION: u16 = 1;

    fn validate(&self) -> Result<(), Invalid> {
        let mut invalid = Invalid::default();
        if let Err(detail) = check_url(&self.url) {
            invalid.add("/url", "bad_url", detail);
        }
        if !is_word(&self.event_type, 128, |byte| byte.is_ascii_alphanumeric() || b"._:/-".contains(&byte)) {
            invalid.add(
                "/event_type",
                "bad_value",
                "an event type is 1 to 128 of the characters A-Z a-z 0-9 . _ : / -",
            );
        }
        if !is_word(&self.event_id, 255, |byte| byte.is_ascii_graphic() && byte != b'.') {
            invalid.add(
                "/event_id",
                "bad_value",
                "an event id is 1 to 255 visible ASCII characters without a dot, which the signature uses as its separator",
            );
        }
        match (&self.body, &self.body_base64) {
            (Some(_), Some(_)) => {
                invalid.add("", "one_of", "give either `body` or `body_base64`, not both");
            }
            (None, None) => {
                invalid.add("", "one_of", "give either `body` (JSON) or `body_base64` (bytes)");
            }
            _ => {}
        }
        check_headers(&self.headers, &mut invalid);
        if let Some(name) = &self.secret_ref
            && !is_word(name, 64, |byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
        {
            invalid.add(
                "/secret_ref",
                "bad_value",
                "the name of a secret is 1 to 64 of the characters A-Z a-z 0-9 _ -",
            );
        }
        invalid.into_result()
    }
}

fn is_word(text: &str, max: usize, allowed: impl Fn(u8) -> bool) -> bool {
    (1..=max).contains(&text.len()) && text.bytes().all(allowed)
}

fn check_url(url: &UrlText) -> Result<(), String> {
    let bytes = url.as_str().len();
    if bytes > MAX_URL {
        return Err(format!("the URL has {bytes} bytes; at most {MAX_URL} are taken"));
    }
    let url = url.read().map_err(|error| format!("this is not an absolute URL: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("the scheme `{}` is not one of https and http", url.scheme()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("a URL with a user or a password in it is not taken: put credentials into `headers`".into());
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err("the URL names no host".into());
    }
    Ok(())
}

fn check_headers(headers: &BTreeMap<String, String>, invalid: &mut Invalid) {
    let bytes: usize = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    if headers.len() > MAX_HEADERS || bytes > MAX_HEADER_BYTES {
        invalid.add(
            "/headers",
            "too_large",
            format!(
                "{} headers of {bytes} bytes; at most {MAX_HEADERS} headers of {MAX_HEADER_BYTES} bytes together are taken",
                headers.len()
            ),
        );
    }
    let mut seen = BTreeSet::new();
    for (name, value) in headers {
        let pointer = format!("/headers/{}", name.replace('~', "~0").replace('/', "~1"));
        let lower = name.to_ascii_lowercase();
        if !is_word(name, 128, |byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)) {
            invalid.add(&pointer, "bad_header_name", "a header's name is 1 to 128 of RFC 9110's token characters");
        } else if RESERVED.contains(&lower.as_str())
            || ["webhook-", "warren-", "proxy-"].iter().any(|prefix| lower.starts_with(prefix))
        {
            invalid.add(&pointer, "reserved_header", format!("`{lower}` is set by warren and cannot be given"));
        }
        if !value.bytes().all(|byte| byte == b'\t' || (0x20..0x7f).contains(&byte)) {
            invalid.add(
                &pointer,
                "bad_header_value",
                "a header's value is visible ASCII, spaces and tabs, on one line",
            );
        }
        if !seen.insert(lower) {
            invalid.add(&pointer, "duplicate_key", "this header is given twice, in different case");
        }
    }
}
