//! A URL as it was written, read once.

use std::{borrow::Cow, fmt, sync::OnceLock};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use url::{ParseError, Url};

/// A URL in a message: text on the wire, kept as it was written, whatever it says. Reading it is most of the work of checking
/// a message that has one, so whoever asks first has it read for all.
#[derive(Clone)]
pub struct UrlText {
    text: String,
    read: OnceLock<Result<Url, ParseError>>,
}

impl UrlText {
    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What it says.
    pub fn read(&self) -> Result<&Url, ParseError> {
        self.read.get_or_init(|| Url::parse(&self.text)).as_ref().map_err(|error| *error)
    }
}

impl From<String> for UrlText {
    fn from(text: String) -> Self {
        Self { text, read: OnceLock::new() }
    }
}

impl PartialEq for UrlText {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for UrlText {}

impl fmt::Debug for UrlText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.fmt(f)
    }
}

impl Serialize for UrlText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.text.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for UrlText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::from)
    }
}

impl JsonSchema for UrlText {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        String::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        String::json_schema(generator)
    }
}
