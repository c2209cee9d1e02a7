//! The data of an event, as JSON, as text or as bytes. Whichever it is, nothing of it is lost.

use serde::de::IgnoredAny;
use serde_json::Value;
use warren_messages::codec;

use crate::{
    gateway::problem::Problem,
    runtime::registry::{Format, Rejected},
};

/// The data of an event.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::gateway) enum Data {
    /// There is none.
    None,
    /// JSON; text is a JSON string.
    Json(Value),
    /// Anything else.
    Bytes(Vec<u8>),
}

impl Data {
    /// Reads data by its content type: JSON is read as such, text is text, anything else stays bytes. Without a content
    /// type it is what it reads as.
    pub(in crate::gateway) fn read(content_type: Option<&str>, bytes: &[u8]) -> Result<Self, Problem> {
        let Some(content_type) = content_type else { return Ok(Self::guess(bytes)) };
        if bytes.is_empty() {
            return Ok(Self::None);
        }
        let media = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let (main, sub) = media.split_once('/').unwrap_or((media.as_str(), ""));
        if sub == "json" || sub.ends_with("+json") {
            let json = codec::any_json(bytes);
            return json.map(Self::Json).map_err(|error| Problem::rejected(&Rejected::Decode(error), Format::Json));
        }
        if main == "text" || sub == "xml" || sub.ends_with("+xml") {
            return Ok(Self::text_or_bytes(bytes));
        }
        Ok(Self::Bytes(bytes.to_vec()))
    }

    /// Reads data of which nothing else is known: JSON if it is that, or else text. JSON that breaks the rules of a body
    /// (a key twice, too deep, an integer too long) is neither, and stays what it is byte for byte.
    pub(in crate::gateway) fn guess(bytes: &[u8]) -> Self {
        if bytes.is_empty() {
            return Self::None;
        }
        match codec::any_json(bytes) {
            // As a part of an event it stands one level deeper.
            Ok(json) if levels(&json) < codec::MAX_DEPTH => Self::Json(json),
            Ok(_) => Self::Bytes(bytes.to_vec()),
            // This reader wants nothing of what it reads, and so minds neither depth nor keys nor the size of numbers.
            Err(_) if serde_json::from_slice::<IgnoredAny>(without_mark(bytes)).is_ok() => Self::Bytes(bytes.to_vec()),
            Err(_) => Self::text_or_bytes(bytes),
        }
    }

    /// Text in another encoding than UTF-8 is bytes to us.
    fn text_or_bytes(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Json(text.into()),
            Err(_) => Self::Bytes(bytes.to_vec()),
        }
    }
}

/// How deeply a value is nested. It was read, so it is not too deep to be looked at.
fn levels(value: &Value) -> usize {
    let deepest = match value {
        Value::Array(items) => items.iter().map(levels).max(),
        Value::Object(map) => map.values().map(levels).max(),
        _ => return 0,
    };
    1 + deepest.unwrap_or(0)
}

/// JSON text without the byte order mark before it.
fn without_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bytes of any kind, and such as are nearly JSON.
    fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
        let pieces =
            ["{", "}", "[", "]", "\"a\"", ":", ",", "1", "-0.5", "1e999", "null", " ", "\\ud800", "\u{feff}", "x"];
        let pieced = prop::collection::vec(prop::sample::select(pieces.to_vec()), 0..12);
        prop_oneof![prop::collection::vec(any::<u8>(), 0..40), pieced.prop_map(|some| some.concat().into())]
    }

    proptest! {
        #[test]
        fn whatever_data_is_taken_for_nothing_of_it_is_lost(bytes in any_bytes()) {
            match Data::guess(&bytes) {
                Data::None => prop_assert!(bytes.is_empty()),
                Data::Bytes(kept) => prop_assert_eq!(kept, bytes),
                Data::Json(kept) => {
                    let text = without_mark(&bytes);
                    let read = serde_json::from_slice::<Value>(text);
                    // What is no JSON is text as it came.
                    let expected = read.unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into());
                    prop_assert_eq!(kept, expected);
                }
            }
        }
    }
}
