//! Bodies to bytes and back: the only place that does either.
//!
//! A body is one MessagePack map, written with the names of its fields and in rmp-serde's human-readable mode. In its
//! default mode a UUID is 16 raw bytes, so a job that came in as JSON would not fit its own typed worker; in this mode a
//! body means the same as its JSON, whoever wrote it. Foreign bytes are bounded before they are believed: 1 MiB, 64
//! levels, a map on the outside, nothing behind it.

use rmp_serde::{
    Deserializer, Serializer,
    config::{DefaultConfig, HumanReadableConfig},
    decode::ReadReader,
};
use serde::{
    Serialize,
    de::{DeserializeOwned, IgnoredAny},
};
use serde_json::Value;

use crate::{
    Invalid, Message,
    json::{Exact, Tree},
    malformed::malformed,
};

/// The longest body and the longest output, in bytes.
pub const MAX_BYTES: usize = 1 << 20;

/// The deepest nesting of a body: arrays and maps, the outer map included. What is deeper overflows a thread's stack in
/// a reader that recurses, and takes the process with it.
pub const MAX_DEPTH: usize = 64;

/// So many digits and a sign are always an integer of 64 bits.
const ALWAYS_FIT: usize = 18;

/// Why bytes are not a body of the kind that they claim.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// There are no bytes.
    #[error("the body is empty: send a map, `{{}}` at least")]
    Empty,
    /// More than [`MAX_BYTES`].
    #[error("the body has {bytes} bytes; at most {MAX_BYTES} are taken")]
    TooLarge {
        /// How many there are.
        bytes: usize,
    },
    /// More than [`MAX_DEPTH`].
    #[error("the body is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// An array, a number or text on the outside.
    #[error("the body must be a map of fields")]
    NotAMap,
    /// Not the format that it claims to be.
    #[error("{detail} (at byte {offset})")]
    Malformed {
        /// Where reading stopped, in bytes.
        offset: usize,
        /// What was wrong there.
        detail: String,
    },
    /// Not the characters that JSON is made of.
    #[error("{problem} (at byte {offset}): JSON is UTF-8, and its escapes name whole characters")]
    BadText {
        /// Where, in bytes.
        offset: usize,
        /// What is wrong there.
        problem: &'static str,
    },
    /// Well formed, but not a body of this kind.
    #[error("the body does not fit its kind")]
    Unfit(#[source] Invalid),
    /// A layout that this build does not read.
    #[error("version {version} of the layout is not known; this build reads up to {reads}")]
    UnknownVersion {
        /// What the body claims.
        version: u16,
        /// What this build writes.
        reads: u16,
    },
}

/// Why a value has no bytes.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// More than [`MAX_BYTES`].
    #[error("it takes {bytes} bytes encoded; at most {MAX_BYTES} are kept")]
    TooLarge {
        /// How many there are.
        bytes: usize,
    },
    /// A type that MessagePack has no form for.
    #[error("it cannot be encoded")]
    Unsupported(#[source] rmp_serde::encode::Error),
}

/// Encodes a body or an output.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, EncodeError> {
    let mut bytes = Vec::with_capacity(256);
    value
        .serialize(&mut Serializer::new(&mut bytes).with_struct_map().with_human_readable())
        .map_err(EncodeError::Unsupported)?;
    if bytes.len() > MAX_BYTES {
        return Err(EncodeError::TooLarge { bytes: bytes.len() });
    }
    Ok(bytes)
}

/// Decodes a body that was written with layout `version`, through [`Message::upcast`] when that is an older one. Does
/// not run [`Message::validate`]: what was once accepted is still a job when the rules have become stricter.
pub fn decode<M: Message>(version: u16, body: &[u8]) -> Result<M, DecodeError> {
    check_size(body)?;
    if !matches!(body[0], 0x80..=0x8f | 0xde | 0xdf) {
        return Err(DecodeError::NotAMap);
    }
    if version == M::VERSION {
        return read(body);
    }
    if version > M::VERSION {
        return Err(DecodeError::UnknownVersion { version, reads: M::VERSION });
    }
    let Tree(old) = read(body)?;
    let new = M::upcast(version, old)?;
    serde_path_to_error::deserialize(&new).map_err(|error| unfit(&error))
}

/// Decodes today's layout from JSON text, the way in from HTTP.
pub fn from_json<M: Message>(text: &[u8]) -> Result<M, DecodeError> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    check_json(text)?;
    // A derived struct also takes an array of its fields in order; a body does not.
    if text.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[') {
        return Err(DecodeError::NotAMap);
    }
    read_json(text)
}

/// Any JSON text, read as strictly as a body.
pub fn any_json(text: &[u8]) -> Result<Value, DecodeError> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    check_json(text)?;
    read_json(text).map(|Tree(value)| value)
}

/// What a reader of JSON text would not tell.
fn check_json(text: &[u8]) -> Result<(), DecodeError> {
    check_size(text)?;
    if is_plain(text) {
        return Ok(());
    }
    match scan_json(text) {
        Found::Nothing => Ok(()),
        Found::TooDeep => Err(DecodeError::TooDeep),
        Found::LongInteger => Err(long_integer(text)),
    }
}

/// Whether a glance tells that there is nothing to be found by looking through a text: too few brackets open in all of it,
/// and no digits follow each other for long. Nearly every text is plain.
fn is_plain(text: &[u8]) -> bool {
    let opened = text.iter().filter(|byte| matches!(byte, b'{' | b'[')).count();
    // As many digits as always fit, and one more, hold one that is looked at.
    let mut every = text.iter().enumerate().skip(ALWAYS_FIT).step_by(ALWAYS_FIT + 1);
    opened <= MAX_DEPTH && every.all(|(at, byte)| !byte.is_ascii_digit() || digits_around(text, at) <= ALWAYS_FIT)
}

/// How many digits stand together with the one here.
fn digits_around(text: &[u8], at: usize) -> usize {
    let before = text[..at].iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    before + text[at..].iter().take_while(|byte| byte.is_ascii_digit()).count()
}

fn read_json<T: DeserializeOwned>(text: &[u8]) -> Result<T, DecodeError> {
    // Checked once as a whole, it is not checked again text by text.
    let read = match std::str::from_utf8(text) {
        Ok(text) => serde_json::from_str(text),
        Err(_) => serde_json::from_slice(text),
    };
    read.map_err(|error| {
        // A typed reader stops at the first field that does not fit; whether the rest is JSON at all is asked first.
        let error = serde_json::from_slice::<IgnoredAny>(text).err().unwrap_or(error);
        if error.is_data() {
            // Only a reader that keeps the path can say where; it costs too much to be the one that always runs.
            let mut reader = serde_json::Deserializer::from_slice(text);
            match serde_path_to_error::deserialize::<_, T>(&mut reader) {
                Err(error) => unfit(&error),
                Ok(_) => DecodeError::Unfit(Invalid::from_serde(String::new(), &error)),
            }
        } else {
            malformed(text, &error)
        }
    })
}

/// An encoded body or output as a JSON value, for people and for HTTP.
pub fn to_json(bytes: &[u8]) -> Result<Value, DecodeError> {
    check_size(bytes)?;
    read(bytes).map(|Tree(value)| value)
}

/// Whether bytes are one MessagePack map within the limits, whatever is in it.
pub fn check(body: &[u8]) -> Result<(), DecodeError> {
    check_size(body)?;
    if !matches!(body[0], 0x80..=0x8f | 0xde | 0xdf) {
        return Err(DecodeError::NotAMap);
    }
    scan(body)
}

fn check_size(bytes: &[u8]) -> Result<(), DecodeError> {
    match bytes.len() {
        0 => Err(DecodeError::Empty),
        len if len > MAX_BYTES => Err(DecodeError::TooLarge { bytes: len }),
        _ => Ok(()),
    }
}

type Reader<'a> = Deserializer<ReadReader<&'a [u8]>, HumanReadableConfig<DefaultConfig>>;

fn reader(bytes: &[u8]) -> Reader<'_> {
    let mut reader = Deserializer::new(bytes).with_human_readable();
    // It counts down and stops at zero, so one more than it lets through.
    reader.set_max_depth(MAX_DEPTH + 1);
    reader
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let mut reader = reader(bytes);
    let value = T::deserialize(&mut reader);
    let left = reader.get_ref().len();
    match value {
        Ok(value) if left == 0 => Ok(value),
        Ok(_) => Err(trailing(bytes, left)),
        // Bytes that are no MessagePack at all are another matter than a map that does not fit, and only a second
        // reader, which wants nothing of them, can tell.
        Err(_) => {
            scan(bytes)?;
            let mut reader = self::reader(bytes);
            match serde_path_to_error::deserialize::<_, T>(&mut reader) {
                Err(error) => Err(unfit(&error)),
                Ok(value) => Ok(value),
            }
        }
    }
}

fn scan(bytes: &[u8]) -> Result<(), DecodeError> {
    let mut reader = reader(bytes);
    let scanned = serde::Deserialize::deserialize(&mut reader).map(|IgnoredAny| ());
    let left = reader.get_ref().len();
    match scanned {
        Ok(()) if left == 0 => Ok(()),
        Ok(()) => Err(trailing(bytes, left)),
        Err(rmp_serde::decode::Error::DepthLimitExceeded) => Err(DecodeError::TooDeep),
        Err(error) => {
            Err(DecodeError::Malformed { offset: bytes.len() - left, detail: format!("not MessagePack: {error}") })
        }
    }
}

fn trailing(bytes: &[u8], left: usize) -> DecodeError {
    DecodeError::Malformed { offset: bytes.len() - left, detail: format!("{left} more bytes follow the body") }
}

/// Where a reader stopped, as a JSON pointer.
pub(crate) fn pointer<E>(error: &serde_path_to_error::Error<E>) -> String {
    use serde_path_to_error::Segment;

    let mut pointer = String::new();
    for segment in error.path() {
        pointer.push('/');
        match segment {
            Segment::Seq { index } => pointer.push_str(&index.to_string()),
            Segment::Map { key } | Segment::Enum { variant: key } => {
                pointer.push_str(&key.replace('~', "~0").replace('/', "~1"));
            }
            Segment::Unknown => pointer.push('?'),
        }
    }
    pointer
}

fn unfit<E: std::fmt::Display>(error: &serde_path_to_error::Error<E>) -> DecodeError {
    let mut pointer = pointer(error);
    // The path of a field that is missing or repeated ends at the map around it.
    let text = error.inner().to_string();
    let around = ["missing field `", "duplicate field `", "duplicate key `"];
    if let Some(rest) = around.iter().find_map(|wording| text.strip_prefix(wording))
        && let Some(name) = rest.split('`').next()
    {
        pointer.push('/');
        pointer.push_str(&name.replace('~', "~0").replace('/', "~1"));
    }
    DecodeError::Unfit(Invalid::from_serde(pointer, error.inner()))
}

/// What a typed reader of JSON text would not tell.
enum Found {
    Nothing,
    /// Brackets that open more than [`MAX_DEPTH`] levels.
    TooDeep,
    /// An integer that takes more than 64 bits, which a reader would round.
    LongInteger,
}

/// Looks through JSON text, and judges nothing else of it: that is the parser's.
fn scan_json(text: &[u8]) -> Found {
    let (mut depth, mut at) = (0_usize, 0);
    let mut long_integer = false;
    while let Some(byte) = text.get(at) {
        at += 1;
        match byte {
            b'{' | b'[' => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Found::TooDeep;
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => loop {
                let rest = text.get(at..).unwrap_or_default();
                let Some(found) = memchr::memchr2(b'"', b'\\', rest) else { return found_so_far(long_integer) };
                at += found + 1;
                if rest[found] == b'"' {
                    break;
                }
                at += 1;
            },
            b'-' | b'0'..=b'9' => {
                let start = at - 1;
                let digits = text[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
                at += digits;
                let is_integer = !matches!(text.get(at), Some(b'.' | b'e' | b'E'));
                if is_integer && digits >= ALWAYS_FIT {
                    let number = std::str::from_utf8(&text[start..at]).unwrap_or_default();
                    long_integer |= number.parse::<i64>().is_err() && number.parse::<u64>().is_err();
                }
            }
            _ => {}
        }
    }
    found_so_far(long_integer)
}

fn found_so_far(long_integer: bool) -> Found {
    if long_integer { Found::LongInteger } else { Found::Nothing }
}

/// Says where the integer is that takes more than 64 bits.
fn long_integer(text: &[u8]) -> DecodeError {
    // Whether it is JSON at all is asked first.
    if let Err(error) = serde_json::from_slice::<IgnoredAny>(text) {
        return malformed(text, &error);
    }
    let mut reader = serde_json::Deserializer::from_slice(text);
    match serde_path_to_error::deserialize::<_, Exact>(&mut reader) {
        Err(error) => unfit(&error),
        Ok(_) => DecodeError::Unfit(Invalid::new("", "bad_value", "an integer has at most 64 bits")),
    }
}
