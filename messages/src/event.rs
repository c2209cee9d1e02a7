//! Events that came in and were kept.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Bytes, Invalid, Json, Message, field, json};

/// `event.received` v1: an event as it came in, whatever protocol brought it. `source` and `id` together name it: two
/// with the same are the same event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Received {
    /// What happened, for instance `order.paid`: 1 to 255 bytes without control characters.
    #[serde(rename = "type")]
    pub event_type: String,
    /// Where it happened: 1 to 2,048 bytes without control characters, as a rule a URI reference.
    pub source: String,
    /// Which event of its source: 1 to 1,024 bytes without control characters.
    pub id: String,
    /// When it happened, as RFC 3339 with an offset.
    #[serde(default, deserialize_with = "field::optional_instant", skip_serializing_if = "Option::is_none")]
    pub time: Option<Timestamp>,
    /// What its sender says beside its data: at most 64 headers, 16 KiB together.
    #[serde(default, deserialize_with = "json::text_map", skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Its data, where that is JSON or text. Not both of this and `data_base64`.
    #[serde(default, deserialize_with = "json::present", skip_serializing_if = "Option::is_none")]
    pub data: Option<Json>,
    /// Its data, where that is bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_base64: Option<Bytes>,
}

const MAX_TYPE: usize = 255;
const MAX_SOURCE: usize = 2048;
const MAX_ID: usize = 1024;
const MAX_HEADERS: usize = 64;
const MAX_HEADER_BYTES: usize = 16 * 1024;

impl Message for Received {
    const KIND: &'static str = "event.received";
    const VERSION: u16 = 1;

    fn dedup_key(&self) -> Option<String> {
        // Neither holds a control character, so this is no other pair's key.
        Some(format!("{}\n{}", self.source, self.id))
    }

    fn validate(&self) -> Result<(), Invalid> {
        let mut invalid = Invalid::default();
        for (pointer, text, max) in
            [("/type", &self.event_type, MAX_TYPE), ("/source", &self.source, MAX_SOURCE), ("/id", &self.id, MAX_ID)]
        {
            if !(1..=max).contains(&text.len()) || text.chars().any(char::is_control) {
                let name = &pointer[1..];
                let detail = format!("the {name} of an event is 1 to {max} bytes without control characters");
                invalid.add(pointer, "bad_value", detail);
            }
        }
        let bytes: usize = self.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        if self.headers.len() > MAX_HEADERS || bytes > MAX_HEADER_BYTES {
            let detail = format!(
                "{} headers of {bytes} bytes; at most {MAX_HEADERS} headers of {MAX_HEADER_BYTES} bytes together are taken",
                self.headers.len()
            );
            invalid.add("/headers", "too_large", detail);
        }
        for (name, value) in &self.headers {
            if name.is_empty() || name.chars().chain(value.chars()).any(|c| c.is_control() && c != '\t') {
                let pointer = format!("/headers/{}", name.replace('~', "~0").replace('/', "~1"));
                let detail = "a header has a name, and neither that nor its value holds a control character but a tab";
                invalid.add(pointer, "bad_header_value", detail);
            }
        }
        if self.data.is_some() && self.data_base64.is_some() {
            invalid.add("", "one_of", "give either `data` (JSON) or `data_base64` (bytes), not both");
        }
        invalid.into_result()
    }
}
