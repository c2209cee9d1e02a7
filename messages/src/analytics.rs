//! Behaviour tracking: what people did, as the systems that track it say it.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Invalid, Message, Object, field};

/// `analytics.event` v1: one thing that someone did, or that became known of someone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// What is said.
    #[serde(deserialize_with = "field::word")]
    pub call: Call,
    /// The name of what happened: of the event of a `track`, of the page of a `page`. Any other call has its own name.
    pub event: String,
    /// What a page or a screen belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category: Option<String>,
    /// Who, once that is known. At least one of this and `anonymous_id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    /// Who, before that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anonymous_id: Option<String>,
    /// Who it was so far, of an `alias`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_id: Option<String>,
    /// Which group, of a `group`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_id: Option<String>,
    /// When it happened, corrected by how far the sender's clock was off.
    #[serde(deserialize_with = "field::instant")]
    pub ts: Timestamp,
    /// When it happened by the sender's clock.
    #[serde(default, deserialize_with = "field::optional_instant", skip_serializing_if = "Option::is_none")]
    pub orig_ts: Option<Timestamp>,
    /// When it was sent by the sender's clock.
    #[serde(default, deserialize_with = "field::optional_instant", skip_serializing_if = "Option::is_none")]
    pub sent_at: Option<Timestamp>,
    /// When it came in by ours.
    #[serde(default, deserialize_with = "field::optional_instant", skip_serializing_if = "Option::is_none")]
    pub received_at: Option<Timestamp>,
    /// What is known of what happened, or of whom it happened to: at most 32 KB as JSON.
    #[serde(default, skip_serializing_if = "Object::is_empty")]
    pub props: Object,
    /// Where it happened: library, page, device and the like. At most 32 KB as JSON.
    #[serde(default, skip_serializing_if = "Object::is_empty")]
    pub ctx: Object,
    /// Which event: two with the same are the same.
    pub message_id: String,
}

/// What is said of someone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// They did something.
    Track,
    /// Who they are, and what is known of them.
    Identify,
    /// They saw a page.
    Page,
    /// They saw a screen of an app.
    Screen,
    /// They belong to a group.
    Group,
    /// They were known under another id.
    Alias,
}

impl Call {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Track, Self::Identify, Self::Page, Self::Screen, Self::Group, Self::Alias];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Track => "track",
            Self::Identify => "identify",
            Self::Page => "page",
            Self::Screen => "screen",
            Self::Group => "group",
            Self::Alias => "alias",
        }
    }

    /// The one of this name.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|call| call.as_str() == name)
    }
}

/// How long a name and an id may be.
const MAX_NAME: usize = 1024;
/// How long the id of an event may be.
const MAX_MESSAGE_ID: usize = 255;
/// How much may be said of an event, and of where it happened.
const MAX_OBJECT: usize = 32 * 1024;

impl Message for Event {
    const KIND: &'static str = "analytics.event";
    const VERSION: u16 = 1;

    fn dedup_key(&self) -> Option<String> {
        Some(self.message_id.clone())
    }

    fn validate(&self) -> Result<(), Invalid> {
        let mut invalid = Invalid::default();
        let mut text = |pointer: &str, text: Option<&String>, max: usize| {
            if text.is_some_and(|text| !(1..=max).contains(&text.len())) {
                let name = &pointer[1..];
                invalid.add(pointer, "bad_length", format!("`{name}` is 1 to {max} bytes, or not there at all"));
            }
        };
        text("/event", Some(&self.event), MAX_NAME);
        text("/category", self.category.as_ref(), MAX_NAME);
        text("/user_id", self.user_id.as_ref(), MAX_NAME);
        text("/anonymous_id", self.anonymous_id.as_ref(), MAX_NAME);
        text("/previous_id", self.previous_id.as_ref(), MAX_NAME);
        text("/group_id", self.group_id.as_ref(), MAX_NAME);
        if self.user_id.is_none() && self.anonymous_id.is_none() {
            invalid.add("", "one_of", "nobody did it: give `user_id`, `anonymous_id` or both");
        }
        for (pointer, object) in [("/props", &self.props), ("/ctx", &self.ctx)] {
            let bytes = object.json_bytes();
            if bytes > MAX_OBJECT {
                let name = &pointer[1..];
                let detail = format!("`{name}` has {bytes} bytes as JSON; at most {MAX_OBJECT} are taken");
                invalid.add(pointer, "too_large", detail);
            }
        }
        if !(1..=MAX_MESSAGE_ID).contains(&self.message_id.len()) {
            let detail = format!("the id of an event is 1 to {MAX_MESSAGE_ID} bytes");
            invalid.add("/message_id", "bad_length", detail);
        }
        invalid.into_result()
    }
}
