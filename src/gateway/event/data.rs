//! The data of an event, as JSON, as text or as bytes.

use warren_messages::{Json, codec};

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
    Json(Json),
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

    /// Reads data of which nothing else is known: JSON if it reads as that, or else text.
    pub(in crate::gateway) fn guess(bytes: &[u8]) -> Self {
        if bytes.is_empty() {
            return Self::None;
        }
        codec::any_json(bytes).map_or_else(|_| Self::text_or_bytes(bytes), Self::Json)
    }

    /// Text in another encoding than UTF-8 is bytes to us.
    fn text_or_bytes(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Json(Json(text.into())),
            Err(_) => Self::Bytes(bytes.to_vec()),
        }
    }
}
