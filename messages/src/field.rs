//! Readers of fields that take exactly what their JSON Schema says, for `#[serde(deserialize_with = "field::…")]`.
//!
//! serde's own readers and JSON Schema differ in small things: to JSON Schema `1.0` is an integer, `{"ok": null}` is no
//! way to write the value `ok`, and a date-time is RFC 3339 and nothing more. A body on which the two differ would be
//! refused although its sender has checked it, or taken although the sender's tools call it wrong.

use std::{any::type_name, fmt, marker::PhantomData};

use jiff::{Timestamp, civil::Date};
use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeOwned, IntoDeserializer as _, Unexpected},
};

/// For an integer: `1.0` is one, as it is to JSON Schema and to languages that know only one kind of number.
pub fn whole<'de, D: Deserializer<'de>, T: TryFrom<i128>>(deserializer: D) -> Result<T, D::Error> {
    deserializer.deserialize_i64(Whole(PhantomData))
}

struct Whole<T>(PhantomData<T>);

impl<T: TryFrom<i128>> Whole<T> {
    fn fit<E: de::Error>(self, number: i128) -> Result<T, E> {
        T::try_from(number).map_err(|_| E::invalid_value(Unexpected::Other("a number out of range"), &self))
    }
}

impl<T: TryFrom<i128>> de::Visitor<'_> for Whole<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a whole number ({})", type_name::<T>())
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        self.fit(number.into())
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        self.fit(number.into())
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<T, E> {
        // No integer of 64 bits lies beyond.
        const FURTHEST: f64 = 1e20;
        if number.fract() != 0.0 {
            return Err(E::invalid_type(Unexpected::Float(number), &self));
        }
        #[expect(clippy::cast_possible_truncation, reason = "it is whole and within the bounds")]
        self.fit(number.clamp(-FURTHEST, FURTHEST) as i128)
    }
}

/// For an enum of plain names: only text is one.
pub fn word<'de, D: Deserializer<'de>, T: DeserializeOwned>(deserializer: D) -> Result<T, D::Error> {
    deserializer.deserialize_str(Word(PhantomData))
}

struct Word<T>(PhantomData<T>);

impl<T: DeserializeOwned> de::Visitor<'_> for Word<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        T::deserialize(text.into_deserializer())
    }
}

/// For an instant: [`INSTANT`], on a day that is in the calendar.
pub fn instant<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
    deserializer.deserialize_str(Instant)
}

/// For an instant that may be left away, beside `default`: the same, or `null`.
pub fn optional_instant<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
    struct Read(Timestamp);
    impl<'de> Deserialize<'de> for Read {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            instant(deserializer).map(Self)
        }
    }
    Ok(Option::<Read>::deserialize(deserializer)?.map(|Read(at)| at))
}

/// How an instant is written: RFC 3339 in its strict form, from the year 1 to 9999, to the nanosecond, without leap
/// seconds.
pub const INSTANT: &str = "^([1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]\
                           (\\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$";

struct Instant;

impl de::Visitor<'_> for Instant {
    type Value = Timestamp;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a time with an offset, such as 2026-12-24T18:00:00+01:00 (RFC 3339)")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Timestamp, E> {
        let at = is_written_as_instant(text).then(|| read_instant(text)).flatten();
        at.ok_or_else(|| E::invalid_value(Unexpected::Other("other text"), &self))
    }
}

/// 0001-01-01T00:00:00Z: the first instant that is taken.
pub const FIRST: Timestamp = Timestamp::constant(-62_135_596_800, 0);

/// Reads an instant from elsewhere, where [`instant`] would be too strict: a space for the `T` and the like are taken too. At
/// either end it is brought to what [`instant`] takes; `None` if it names no instant.
pub fn any_instant(text: &str) -> Option<Timestamp> {
    let at_the_end = || is_written_as_instant(text).then(|| read_instant(text)).flatten();
    text.parse().ok().or_else(at_the_end).map(|at: Timestamp| at.max(FIRST))
}

/// Reads what is written as an instant; `None` on a day that is not in the calendar. What stands at either end for "always"
/// or "never" is brought to where it can be held and written again: an offset may lead out of these years, and jiff's own end
/// is a day before that of 9999.
fn read_instant(text: &str) -> Option<Timestamp> {
    text[..10].parse::<Date>().ok()?;
    Some(text.parse().unwrap_or(Timestamp::MAX).max(FIRST))
}

/// Whether text reads as [`INSTANT`] says. Which days there are is for the calendar to tell.
fn is_written_as_instant(text: &str) -> bool {
    // `#` stands for a digit.
    let follows = |text: &str, form: &str| {
        text.len() == form.len()
            && text.bytes().zip(form.bytes()).all(|(byte, form)| match form {
                b'#' => byte.is_ascii_digit(),
                form => byte == form,
            })
    };
    let up_to = |two: &str, most: u8| two.parse().is_ok_and(|number: u8| number <= most);
    let Some((to_the_second, rest)) = text.split_at_checked(19) else { return false };
    if !follows(to_the_second, "####-##-##T##:##:##") {
        return false;
    }
    let offset = match rest.strip_prefix('.') {
        None => rest,
        Some(rest) => {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            if !(1..=9).contains(&digits) {
                return false;
            }
            &rest[digits..]
        }
    };
    let offset_is_one = match offset {
        "Z" => true,
        offset => {
            (follows(offset, "+##:##") || follows(offset, "-##:##"))
                && up_to(&offset[1..3], 23)
                && up_to(&offset[4..6], 59)
        }
    };
    offset_is_one
        && !text.starts_with("0000")
        && up_to(&text[11..13], 23)
        && up_to(&text[14..16], 59)
        && up_to(&text[17..19], 59)
}
