//! Every problem of a body at once.
//!
//! A typed reader stops at the first problem; this is the way back, which only a body takes that is refused. It must not be
//! on the way of one that is not.

use serde_json::Value;
use warren_messages::{DecodeError, Invalid, Message, Problem, codec};

use super::registry::Format;
use crate::schema::Schema;

/// Everything that is wrong with a body that its typed reader has refused.
pub(super) fn every_problem<M: Message>(
    schema: &Schema,
    format: Format,
    body: &[u8],
    error: DecodeError,
) -> DecodeError {
    let DecodeError::Unfit(first) = error else { return error };
    let value = match format {
        Format::Json => serde_json::from_slice(body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body)).ok(),
        Format::MessagePack => codec::to_json(body).ok(),
    };
    // What is no JSON value at all, such as a number that is none, is what the reader has said.
    let Some(mut value) = value else { return DecodeError::Unfit(first) };
    let problems = schema.problems(&value);
    if problems.is_empty() {
        return DecodeError::Unfit(first);
    }
    // Fields that nobody knows do not keep the others from being judged by the kind's own rules.
    if problems.iter().all(|problem| problem.code == "unknown_field") {
        for problem in &problems {
            remove(&mut value, &problem.pointer);
        }
    }
    let further = serde_json::from_value::<M>(value).ok().and_then(|message| message.validate().err());
    let mut all = Invalid::default();
    let seen_by_schema = |pointer: &str| problems.iter().any(|problem| problem.pointer == pointer);
    // What only the text shows: a key that is given twice, an integer that would be rounded.
    let first = first.problems().iter().filter(|problem| !seen_by_schema(&problem.pointer));
    let further = further.iter().flat_map(Invalid::problems);
    for Problem { pointer, code, detail } in first.chain(&problems).chain(further) {
        all.add(pointer.clone(), code.clone(), detail.clone());
    }
    DecodeError::Unfit(all)
}

/// Takes a field out of the map that it stands in.
fn remove(value: &mut Value, pointer: &str) {
    let Some((around, name)) = pointer.rsplit_once('/') else { return };
    if let Some(Value::Object(map)) = value.pointer_mut(around) {
        map.remove(&name.replace("~1", "/").replace("~0", "~"));
    }
}
