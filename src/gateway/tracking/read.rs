//! Reads what SDKs send: leniently where they differ, and piece by piece, so that one bad event spoils no other.

use std::{fmt, marker::PhantomData};

use http::StatusCode;
use jiff::{Timestamp, civil::DateTime, tz::TimeZone};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, IgnoredAny},
};
use serde_json::value::RawValue;
use warren_messages::{
    field::{FIRST, any_instant},
    invalid::without_values,
};

use super::MOST_EVENTS;
use crate::gateway::problem::Problem;

/// Reads the body of a request, of which only its outermost fields are looked at.
pub(super) fn body<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Problem> {
    let text = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    if text.trim_ascii().is_empty() {
        let detail = "the body is empty: send a JSON object";
        return Err(Problem::new(StatusCode::BAD_REQUEST, "empty_body", detail));
    }
    // A derived struct also takes an array of its fields in order; a request does not.
    let read = if text.trim_ascii_start().starts_with(b"{") {
        serde_json::from_slice(text)
    } else {
        serde_json::from_slice(text).and_then(|IgnoredAny| Err(de::Error::custom("it is no JSON object")))
    };
    read.map_err(|error| {
        if error.is_data() {
            let detail = format!("the body is not what this page takes: {}", without_values(&error.to_string()));
            return Problem::new(StatusCode::BAD_REQUEST, "bad_batch", detail);
        }
        let hint = if text.starts_with(b"\x1f\x8b") { "; it is gzip: say so with Content-Encoding: gzip" } else { "" };
        Problem::new(StatusCode::BAD_REQUEST, "invalid_json", format!("the body is not JSON: {error}{hint}"))
    })
}

/// Reads one event.
pub(super) fn event<'a, T: Deserialize<'a>>(event: &'a RawValue) -> Result<T, Problem> {
    if !event.get().starts_with('{') {
        return Err(Problem::field("bad_event", "", "an event is a JSON object"));
    }
    serde_json::from_str(event.get()).map_err(|error| {
        // Only a reader that keeps the path can say where; it costs too much to be the one that always runs.
        let mut reader = serde_json::Deserializer::from_str(event.get());
        let place = match serde_path_to_error::deserialize::<_, T>(&mut reader) {
            Err(error) => error.path().to_string(),
            Ok(_) => String::new(),
        };
        let pointer = if place.is_empty() || place == "." { String::new() } else { format!("/{place}") };
        let detail = format!("the event cannot be read: {}", without_values(&error.to_string()));
        Problem::field("bad_event", &pointer, detail)
    })
}

/// The events of a batch, unread, and no more of them than one request may hold.
#[derive(Debug, Default)]
pub(super) struct Events<'a> {
    pub(super) events: Vec<&'a RawValue>,
    count: usize,
}

impl Events<'_> {
    /// Whether they are not too many. Nothing of a request is taken that holds too many: an SDK that learns so can send
    /// it in halves.
    pub(super) fn check(&self) -> Result<(), Problem> {
        if self.count <= MOST_EVENTS {
            return Ok(());
        }
        let detail = format!("the request holds {} events; at most {MOST_EVENTS} are taken at once", self.count);
        Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_many_events", detail))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Events<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Some<'a>(PhantomData<&'a ()>);
        impl<'de: 'a, 'a> de::Visitor<'de> for Some<'a> {
            type Value = Events<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of events")
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Events<'a>, A::Error> {
                let mut events = Vec::new();
                while events.len() < MOST_EVENTS
                    && let Option::Some(event) = seq.next_element()?
                {
                    events.push(event);
                }
                let mut count = events.len();
                while seq.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Events { events, count })
            }
        }
        deserializer.deserialize_seq(Some(PhantomData))
    }
}

/// An instant that a sender may name, or fail to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Moment {
    /// Nothing was said.
    #[default]
    Unsaid,
    /// Something was, but not when.
    Unreadable,
    /// This was said.
    At(Timestamp),
}

impl Moment {
    /// When, if that is known.
    pub(super) fn known(self) -> Option<Timestamp> {
        match self {
            Self::At(at) => Some(at),
            Self::Unsaid | Self::Unreadable => None,
        }
    }

    /// When, of an event for which that matters.
    pub(super) fn readable(self, field: &str) -> Result<Option<Timestamp>, Problem> {
        if self == Self::Unreadable {
            let detail = format!("`{field}` reads 2026-12-24T18:00:00.000Z (ISO 8601)");
            return Err(Problem::field("bad_timestamp", &format!("/{field}"), detail));
        }
        Ok(self.known())
    }

    /// When something was sent, by a clock that says so. Its first and its last instant stand for "never" in some languages:
    /// nothing can be corrected by those.
    pub(super) fn by_a_clock(self) -> Self {
        match self {
            Self::At(at) if at <= FIRST || at >= Timestamp::MAX => Self::Unsaid,
            moment => moment,
        }
    }

    /// ISO 8601. Without an offset it is UTC, which is what the SDKs mean.
    fn of(text: &str) -> Self {
        let text = text.trim();
        let utc = || {
            let at = text.parse::<DateTime>().ok()?;
            // Of what can be written without an offset, only either end is no instant.
            let end = if at.year() > 0 { Timestamp::MAX } else { FIRST };
            Some(at.to_zoned(TimeZone::UTC).map_or(end, |at| at.timestamp().max(FIRST)))
        };
        match any_instant(text).or_else(utc) {
            _ if text.is_empty() => Self::Unsaid,
            Some(at) => Self::At(at),
            None => Self::Unreadable,
        }
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct When;
        impl<'de> de::Visitor<'de> for When {
            type Value = Moment;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an instant")
            }

            fn visit_str<E>(self, text: &str) -> Result<Moment, E> {
                Ok(Moment::of(text))
            }

            fn visit_unit<E>(self) -> Result<Moment, E> {
                Ok(Moment::Unsaid)
            }

            fn visit_bool<E>(self, _: bool) -> Result<Moment, E> {
                Ok(Moment::Unreadable)
            }

            fn visit_i64<E>(self, _: i64) -> Result<Moment, E> {
                Ok(Moment::Unreadable)
            }

            fn visit_u64<E>(self, _: u64) -> Result<Moment, E> {
                Ok(Moment::Unreadable)
            }

            fn visit_f64<E>(self, _: f64) -> Result<Moment, E> {
                Ok(Moment::Unreadable)
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Moment, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Moment::Unreadable)
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut entries: A) -> Result<Moment, A::Error> {
                while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Moment::Unreadable)
            }
        }
        deserializer.deserialize_any(When)
    }
}

/// An id: text, or a whole number, which becomes text. `null` and the empty text are none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Id(pub(super) Option<String>);

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrNumber;
        impl de::Visitor<'_> for TextOrNumber {
            type Value = Id;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an id: text, or a whole number of at most 64 bits")
            }

            fn visit_str<E>(self, text: &str) -> Result<Id, E> {
                Ok(Id((!text.is_empty()).then(|| text.to_owned())))
            }

            fn visit_unit<E>(self) -> Result<Id, E> {
                Ok(Id(None))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Id, E> {
                Ok(Id(Some(number.to_string())))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Id, E> {
                Ok(Id(Some(number.to_string())))
            }
        }
        deserializer.deserialize_any(TextOrNumber)
    }
}

/// The members of a JSON object, their values unread. A key that is there twice stays so, for its reader to refuse.
#[derive(Debug, Default)]
pub(super) struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'a> Members<'a> {
    /// The value of the first member of this name.
    pub(super) fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.0.iter().find_map(|(key, value)| (key == name).then_some(*value))
    }

    /// The same as an id, if it is one.
    pub(super) fn id(&self, name: &str) -> Option<String> {
        serde_json::from_str::<Id>(self.get(name)?.get()).ok()?.0
    }

    /// Adds a member, unless there is one of this name.
    pub(super) fn add(&mut self, name: &str, value: Option<&'a RawValue>) {
        if let Some(value) = value
            && self.get(name).is_none()
        {
            self.0.push((name.to_owned(), value));
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All<'a>(PhantomData<&'a ()>);
        impl<'de: 'a, 'a> de::Visitor<'de> for All<'a> {
            type Value = Members<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut entries: A) -> Result<Members<'a>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = entries.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(All(PhantomData))
    }
}

impl Serialize for Members<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_read_as_sdks_write_them() {
        let noon: Timestamp = "2026-03-01T12:00:00Z".parse().unwrap();
        for text in [
            // JavaScript, Python, Python of a naive time, an offset, Ruby.
            "2026-03-01T12:00:00.000Z",
            "2026-03-01T12:00:00+00:00",
            "2026-03-01T12:00:00",
            "2026-03-01T14:00:00.000000+02:00",
            "2026-03-01 12:00:00Z",
        ] {
            let moment: Moment = serde_json::from_value(text.into()).unwrap();
            assert_eq!(moment, Moment::At(noon), "{text}");
        }
        for (text, expected) in [("null", Moment::Unsaid), ("\"\"", Moment::Unsaid), ("\"soon\"", Moment::Unreadable)] {
            assert_eq!(serde_json::from_str::<Moment>(text).unwrap(), expected, "{text}");
        }
        for (text, end) in [
            ("0001-01-01T00:00:00Z", FIRST),
            ("0001-01-01T00:00:00+14:00", FIRST),
            ("0000-01-01T00:00:00", FIRST),
            ("-009999-01-03T00:00:00Z", FIRST),
            ("9999-12-31T23:59:59Z", Timestamp::MAX),
            ("9999-12-31T23:59:59.9999999", Timestamp::MAX),
            ("9999-12-31T23:59:59-12:00", Timestamp::MAX),
        ] {
            let moment: Moment = serde_json::from_value(text.into()).unwrap();
            assert_eq!((moment, moment.by_a_clock()), (Moment::At(end), Moment::Unsaid), "{text}");
        }
        for text in ["1772366400", "-1", "0.5", "true", "[1]", "{\"a\":1}", "\"2026-13-01T00:00:00Z\""] {
            assert_eq!(serde_json::from_str::<Moment>(text).unwrap(), Moment::Unreadable, "{text}");
        }
    }

    #[test]
    fn an_id_is_text_or_a_whole_number() {
        let id = |text: &str| serde_json::from_str::<Id>(text).map(|id| id.0).map_err(drop);
        assert_eq!(id("\"u1\""), Ok(Some("u1".into())));
        assert_eq!(id("18446744073709551615"), Ok(Some("18446744073709551615".into())));
        assert_eq!(id("-7"), Ok(Some("-7".into())));
        assert_eq!((id("null"), id("\"\"")), (Ok(None), Ok(None)));
        for bad in ["0.5", "18446744073709551616", "true", "{}", "[]"] {
            assert_eq!(id(bad), Err(()), "{bad}");
        }
    }

    #[test]
    fn a_key_that_is_there_twice_is_not_hidden() {
        let text = r#"{"a":1,"b":{"c":[1, 2]},"a":2}"#;
        let mut members: Members<'_> = serde_json::from_str(text).unwrap();
        members.add("a", members.get("b"));
        assert_eq!(serde_json::to_string(&members).unwrap(), r#"{"a":1,"b":{"c":[1, 2]},"a":2}"#);
    }
}
