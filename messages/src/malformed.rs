//! What is wrong with text that is no JSON, said so that whoever sent it finds the place.

use crate::{DecodeError, Invalid, codec::pointer, json::Exact};

/// Why JSON text cannot be read, from what its reader says of it.
pub(crate) fn malformed(text: &[u8], error: &serde_json::Error) -> DecodeError {
    let offset = offset_of(text, error.line(), error.column());
    if let Err(error) = std::str::from_utf8(text) {
        return DecodeError::BadText { offset: error.valid_up_to(), problem: "it is not UTF-8" };
    }
    let said = error.to_string();
    if ["surrogate", "hex escape"].iter().any(|word| said.contains(word))
        && let Some(offset) = lone_surrogate(text)
    {
        return DecodeError::BadText { offset, problem: "half of a surrogate pair stands alone" };
    }
    let is_no_number = ["NaN", "Infinity", "nan", "inf"].iter().any(|word| text[offset..].starts_with(word.as_bytes()));
    if is_no_number || said.starts_with("number out of range") {
        let mut reader = serde_json::Deserializer::from_slice(text);
        if let Err(error) = serde_path_to_error::deserialize::<_, Exact>(&mut reader) {
            let rule = "a number is finite and at most about 1.8e308; leave away what is none, or send null or text";
            return DecodeError::Unfit(Invalid::new(pointer(&error), "bad_number", rule));
        }
    }
    DecodeError::Malformed { offset, detail: said }
}

/// serde_json counts lines from 1 and columns in bytes from 1; an offset is the same for a machine.
fn offset_of(text: &[u8], line: usize, column: usize) -> usize {
    let before: usize = text.split_inclusive(|byte| *byte == b'\n').take(line.saturating_sub(1)).map(<[u8]>::len).sum();
    (before + column.saturating_sub(1)).min(text.len())
}

/// Where the first escape is that needs another one beside it and has none.
fn lone_surrogate(text: &[u8]) -> Option<usize> {
    let unit = |at: usize| {
        let digits = text.get(at..at + 6)?.strip_prefix(b"\\u")?;
        u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    let mut at = 0;
    while at < text.len() {
        at += match (text[at], unit(at)) {
            (b'\\', Some(0xd800..0xdc00)) if matches!(unit(at + 6), Some(0xdc00..0xe000)) => 12,
            (b'\\', Some(0xd800..0xe000)) => return Some(at),
            (b'\\', Some(_)) => 6,
            (b'\\', None) => 2,
            _ => 1,
        };
    }
    None
}
