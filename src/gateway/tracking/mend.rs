//! Mends what SDKs write and JSON does not know, so that one such value does not cost a whole batch.
//!
//! Python writes a float that is no number as `NaN`, `Infinity` or `-Infinity`: it becomes `null`, which is what
//! JavaScript writes for it. JavaScript writes the half of a character that was cut in two as a lone surrogate: it becomes
//! U+FFFD, which is what decoders put for what cannot be decoded. No other byte changes.

use std::borrow::Cow;

/// The same text, in JSON where it was not for these reasons.
pub(super) fn mend(text: &[u8]) -> Cow<'_, [u8]> {
    let mut mended = Vec::new();
    let (mut at, mut kept, mut in_text) = (0, 0, false);
    while let Some(byte) = text.get(at) {
        let rest = &text[at..];
        let (length, instead): (usize, &[u8]) = match (in_text, byte) {
            (true, b'\\') => match (unit(rest), rest.get(6..).and_then(unit)) {
                (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => (12, b""),
                (Some(0xd800..=0xdfff), _) => (6, br"\ufffd"),
                _ => (2, b""),
            },
            (_, b'"') => {
                in_text = !in_text;
                (1, b"")
            }
            (false, b'N') if rest.starts_with(b"NaN") => (3, b"null"),
            (false, b'I') if rest.starts_with(b"Infinity") => (8, b"null"),
            (false, b'-') if rest.starts_with(b"-Infinity") => (9, b"null"),
            _ => (1, b""),
        };
        if !instead.is_empty() {
            mended.extend_from_slice(&text[kept..at]);
            mended.extend_from_slice(instead);
            kept = at + length;
        }
        at += length;
    }
    if kept == 0 {
        return Cow::Borrowed(text);
    }
    mended.extend_from_slice(&text[kept..]);
    Cow::Owned(mended)
}

/// The UTF-16 unit that an escape at the beginning stands for.
fn unit(text: &[u8]) -> Option<u16> {
    let digits = text.strip_prefix(br"\u")?.get(..4)?;
    if !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn mended(text: &str) -> Value {
        serde_json::from_slice(&mend(text.as_bytes())).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn what_is_no_number_is_null() {
        // Python: json.dumps({"a": [nan, inf, -inf, 1.5, -2], "NaN": "-Infinity \" NaN"})
        let python = r#"{"a": [NaN, Infinity, -Infinity, 1.5, -2], "NaN": "-Infinity \" NaN"}"#;
        assert_eq!(mended(python), json!({ "a": [null, null, null, 1.5, -2], "NaN": "-Infinity \" NaN" }));
    }

    #[test]
    fn half_a_character_is_replaced_and_whole_ones_stay() {
        // JavaScript: JSON.stringify('😀'.slice(0, 1)) and JSON.stringify('😀'.slice(1))
        assert_eq!(mended(r#"["\ud83d","\ude00"]"#), json!(["\u{fffd}", "\u{fffd}"]));
        assert_eq!(mended(r#""\uD83D\uDE00 \ud83d\ud83d\ude00 \ud83dx""#), json!("😀 \u{fffd}😀 \u{fffd}x"));
        assert_eq!(mended(r#""\\ud83d \\\ud83d \"\u00e4\n""#), json!("\\ud83d \\\u{fffd} \"ä\n"));
    }

    #[test]
    fn what_is_no_json_for_other_reasons_stays_none() {
        for bad in
            ["{\"a\":NaNa}", "{\"a\":nan}", "[Infinit]", "[--Infinity]", "\"\\ud83", "\"\\u", "\"\\", "\\ud83d", ""]
        {
            assert!(serde_json::from_slice::<Value>(&mend(bad.as_bytes())).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_mended_without_a_panic_and_once_is_enough(bytes in prop::collection::vec(
            prop_oneof![any::<u8>(), prop::sample::select(br#"\"udD8cfNaInity-"#.to_vec())], 0..200,
        )) {
            let once = mend(&bytes).into_owned();
            prop_assert_eq!(mend(&once).into_owned(), once.clone());
        }

        #[test]
        fn json_stays_as_it_is(text in any::<String>(), number in any::<f64>()) {
            let json = json!({ text.clone(): [text, number] }).to_string();
            prop_assert!(matches!(mend(json.as_bytes()), Cow::Borrowed(_)));
        }
    }
}
