//! The JSON Schema of a message: draft 2020-12, accepting exactly what the typed reader takes.

use schemars::{
    Schema,
    generate::SchemaSettings,
    transform::{RecursiveTransform, Transform as _},
};
use serde_json::{Value, json};

use crate::{Message, field};

/// The JSON Schema of a message in the layout that this build writes.
///
/// What a schema cannot say is refused as text before: a key that is given twice, an integer of more than 64 bits, what is
/// nested too deep or too long. What [`Message::validate`] adds is not in it either.
pub fn of<M: Message>() -> Schema {
    let mut schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<M>();
    RecursiveTransform(say_formats).transform(&mut schema);
    schema
}

/// A format is a remark to a validator unless it is told otherwise, and those of integers are not known to it at all: what
/// they mean is said in words that every validator obeys.
fn say_formats(schema: &mut Schema) {
    let format = schema.get("format").and_then(Value::as_str).map(str::to_owned);
    let (least, most) = match format.as_deref() {
        Some("date-time") => {
            schema.insert("pattern".to_owned(), field::INSTANT.into());
            return;
        }
        Some("uint8") => (json!(0), json!(u8::MAX)),
        Some("uint16") => (json!(0), json!(u16::MAX)),
        Some("uint32") => (json!(0), json!(u32::MAX)),
        Some("uint" | "uint64") => (json!(0), json!(u64::MAX)),
        Some("int8") => (json!(i8::MIN), json!(i8::MAX)),
        Some("int16") => (json!(i16::MIN), json!(i16::MAX)),
        Some("int32") => (json!(i32::MIN), json!(i32::MAX)),
        Some("int" | "int64") => (json!(i64::MIN), json!(i64::MAX)),
        _ => return,
    };
    for (rule, bound) in [("minimum", least), ("maximum", most)] {
        if schema.get(rule).is_none() {
            schema.insert(rule.to_owned(), bound);
        }
    }
}
