//! The JSON Schema of a kind: what is published of it, and what it finds wrong with a body.
//!
//! A leaf. The typed reader is what decides whether a body is taken; a schema is asked only when that has refused one,
//! because a reader stops at the first problem and a schema names them all. No sentence holds a value of the body: what
//! stands there may be a secret, and answers are logged by those who get them.

use std::{collections::BTreeSet, sync::OnceLock};

use jsonschema::{
    ValidationError, Validator,
    error::{TypeKind, ValidationErrorKind},
};
use serde_json::Value;
use warren_messages::Problem;

use crate::{
    job::Kind,
    nearest::{did_you_mean, shorten},
};

/// How many problems are listed; a body may have as many as it has bytes.
pub const MOST_PROBLEMS: usize = 100;
/// How many fields are named where none is like the one that was given.
const MOST_NAMES: usize = 20;
/// How much of a name goes into a pointer.
const LONGEST_POINTER: usize = 1000;

/// The JSON Schema of one kind in the layout that this build writes. Written, and made ready to judge, when it is first asked
/// for.
#[derive(Debug)]
pub struct Schema {
    id: String,
    version: u16,
    write: fn() -> schemars::Schema,
    document: OnceLock<Value>,
    validator: OnceLock<Option<Validator>>,
}

impl Schema {
    /// The schema of a kind.
    pub fn new(kind: &Kind, version: u16, write: fn() -> schemars::Schema) -> Self {
        let id = format!("urn:warren:schema:{kind}:{version}");
        Self { id, version, write, document: OnceLock::new(), validator: OnceLock::new() }
    }

    /// Which layout it is of.
    pub fn version(&self) -> u16 {
        self.version
    }

    /// What is published.
    pub fn document(&self) -> &Value {
        self.document.get_or_init(|| {
            let mut schema = (self.write)();
            schema.insert("$id".to_owned(), self.id.clone().into());
            schema.to_value()
        })
    }

    /// Everything that is wrong with a body, as far as a schema can tell.
    pub fn problems(&self, body: &Value) -> Vec<Problem> {
        let validator = self.validator.get_or_init(|| {
            // Formats are remarks in this draft unless they are asked for.
            jsonschema::options().offline().should_validate_formats(true).build(self.document()).ok()
        });
        let mut found = Found { schema: self.document(), problems: Vec::new(), seen: BTreeSet::new() };
        for error in validator.iter().flat_map(|validator| validator.iter_errors(body)) {
            found.add(&error);
            if found.problems.len() >= MOST_PROBLEMS {
                break;
            }
        }
        found.problems
    }
}

struct Found<'a> {
    schema: &'a Value,
    problems: Vec<Problem>,
    /// One place has one problem of a sort, however many rules say so.
    seen: BTreeSet<(String, &'static str)>,
}

impl Found<'_> {
    fn note(&mut self, pointer: &str, code: &'static str, detail: String) {
        let mut pointer = pointer.to_owned();
        pointer.truncate(pointer.floor_char_boundary(LONGEST_POINTER));
        if self.problems.len() < MOST_PROBLEMS && self.seen.insert((pointer.clone(), code)) {
            self.problems.push(Problem { pointer, code: code.into(), detail });
        }
    }

    fn add(&mut self, error: &ValidationError<'_>) {
        let pointer = error.instance_path().as_str();
        let place = place(pointer);
        // The rule stands in the schema of the place that it is about.
        let rules = error.schema_path().as_str().rsplit_once('/').and_then(|(rules, _)| self.schema.pointer(rules));
        match error.kind() {
            ValidationErrorKind::AdditionalProperties { unexpected }
            | ValidationErrorKind::UnevaluatedProperties { unexpected } => {
                let known = rules.and_then(|rules| rules["properties"].as_object());
                let known: Vec<_> = known.into_iter().flatten().map(|(name, _)| name.as_str()).collect();
                for name in unexpected {
                    let hint = match did_you_mean(name, known.iter().copied()) {
                        hint if hint.is_empty() && !known.is_empty() && known.len() <= MOST_NAMES => {
                            format!("; there are {}", known.join(", "))
                        }
                        hint => hint,
                    };
                    let detail = format!("there is no field `{}` here{hint}", shorten(name));
                    self.note(&join(pointer, name), "unknown_field", detail);
                }
            }
            ValidationErrorKind::Required { property } => {
                let name = property.as_str().unwrap_or_default();
                let wanted = rules.and_then(|rules| rules["properties"].get(name)).and_then(wanted);
                let fix = wanted
                    .map_or_else(|| "it must be given".to_owned(), |wanted| format!("it must be given, as {wanted}"));
                self.note(&join(pointer, name), "missing_field", format!("the field `{name}` is missing: {fix}"));
            }
            ValidationErrorKind::Type { kind } => {
                let wanted = rules.and_then(wanted).unwrap_or_else(|| types(kind));
                self.wrong_type(pointer, error.instance(), &wanted);
            }
            ValidationErrorKind::Minimum { .. }
            | ValidationErrorKind::Maximum { .. }
            | ValidationErrorKind::ExclusiveMinimum { .. }
            | ValidationErrorKind::ExclusiveMaximum { .. } => {
                let wanted = rules.and_then(wanted).unwrap_or_else(|| error.masked().to_string());
                self.note(pointer, "out_of_range", format!("{place} is out of range: it must be {wanted}"));
            }
            ValidationErrorKind::Enum { options } => {
                let options = options.as_array().map(Vec::as_slice).unwrap_or_default();
                self.unknown_value(pointer, error.instance(), &options.iter().collect::<Vec<_>>());
            }
            ValidationErrorKind::Constant { expected_value } => {
                self.unknown_value(pointer, error.instance(), &[expected_value]);
            }
            ValidationErrorKind::AnyOf { context } | ValidationErrorKind::OneOfNotValid { context } => {
                self.no_branch(pointer, error.instance(), rules, context);
            }
            ValidationErrorKind::Format { .. } | ValidationErrorKind::Pattern { .. } => {
                let wanted = rules.and_then(wanted).unwrap_or_else(|| error.masked().to_string());
                self.note(pointer, "bad_value", format!("{place} does not read as it must: as {wanted}"));
            }
            ValidationErrorKind::MinLength { .. }
            | ValidationErrorKind::MaxLength { .. }
            | ValidationErrorKind::MinItems { .. }
            | ValidationErrorKind::MaxItems { .. }
            | ValidationErrorKind::MinProperties { .. }
            | ValidationErrorKind::MaxProperties { .. } => {
                self.note(pointer, "bad_length", format!("{place}: {}", error.masked()));
            }
            _ => self.note(pointer, "bad_value", format!("{place}: {}", error.masked())),
        }
    }

    fn wrong_type(&mut self, pointer: &str, value: &Value, wanted: &str) {
        let detail = format!("{} is {}: it must be {wanted}", place(pointer), type_of(value));
        self.note(pointer, "wrong_type", detail);
    }

    fn unknown_value(&mut self, pointer: &str, value: &Value, options: &[&Value]) {
        let names: Vec<_> = options.iter().filter_map(|option| option.as_str()).collect();
        if !names.is_empty() && !value.is_string() {
            return self.wrong_type(pointer, value, &format!("one of {}", names.join(", ")));
        }
        let hint = did_you_mean(value.as_str().unwrap_or_default(), names.iter().copied());
        let options: Vec<_> = options.iter().map(|option| bare(option)).collect();
        let detail = format!("{} must be one of {}{hint}", place(pointer), options.join(", "));
        self.note(pointer, "unknown_value", detail);
    }

    /// A value that fits none of several forms: where it is meant for one of them, that one's problems are told.
    fn no_branch(
        &mut self,
        pointer: &str,
        value: &Value,
        rules: Option<&Value>,
        branches: &[Vec<ValidationError<'static>>],
    ) {
        let forms = rules.and_then(|rules| rules.get("oneOf").or_else(|| rules.get("anyOf"))).and_then(Value::as_array);
        if let Some(options) =
            forms.and_then(|forms| forms.iter().map(|form| form.get("const")).collect::<Option<Vec<_>>>())
        {
            return self.unknown_value(pointer, value, &options);
        }
        let is_other_type = |error: &ValidationError<'_>| {
            matches!(error.kind(), ValidationErrorKind::Type { .. }) && error.instance_path().as_str() == pointer
        };
        let mut meant = branches.iter().filter(|errors| !errors.iter().any(is_other_type));
        match (meant.next(), meant.next()) {
            (Some(errors), None) => errors.iter().for_each(|error| self.add(error)),
            (None, _) => {
                let wanted: Vec<_> =
                    forms.into_iter().flatten().filter_map(|form| wanted(self.resolve(form))).collect();
                self.wrong_type(pointer, value, &wanted.join(" or "));
            }
            (Some(_), Some(_)) => {
                self.note(pointer, "bad_value", format!("{} has none of the forms that it may have", place(pointer)));
            }
        }
    }

    fn resolve<'a>(&'a self, form: &'a Value) -> &'a Value {
        let named = form.get("$ref").and_then(Value::as_str).and_then(|name| name.strip_prefix('#'));
        named.and_then(|name| self.schema.pointer(name)).unwrap_or(form)
    }
}

/// What a place must hold, in words.
fn wanted(rules: &Value) -> Option<String> {
    let rule = |name: &str| rules.get(name).and_then(Value::as_str);
    match (rule("format"), rule("contentEncoding")) {
        (Some("date-time"), _) => {
            return Some("a time with an offset, such as 2026-12-24T18:00:00+01:00 (RFC 3339)".into());
        }
        (Some("uuid"), _) => return Some("a UUID, such as 0190aaaa-bbbb-7ccc-8ddd-eeeeffff0000".into()),
        (_, Some("base64")) => return Some("base64 text (RFC 4648, padded)".into()),
        _ => {}
    }
    let names: Vec<_> = match rules.get("type")? {
        Value::String(name) => vec![in_words(name)],
        Value::Array(names) => names.iter().filter_map(Value::as_str).map(in_words).collect(),
        _ => return None,
    };
    let names = names.join(" or ");
    let bound = |name: &str| rules.get(name).filter(|bound| bound.is_number());
    Some(match (bound("minimum"), bound("maximum")) {
        (Some(least), Some(most)) => format!("{names} from {least} to {most}"),
        (Some(least), None) => format!("{names} of {least} or more"),
        (None, Some(most)) => format!("{names} of {most} or less"),
        (None, None) => names,
    })
}

fn types(kind: &TypeKind) -> String {
    match kind {
        TypeKind::Single(one) => in_words(&one.to_string()).to_owned(),
        TypeKind::Multiple(some) => {
            let names: Vec<_> = some.iter().map(|one| in_words(&one.to_string()).to_owned()).collect();
            names.join(" or ")
        }
    }
}

fn in_words(name: &str) -> &'static str {
    match name {
        "string" => "text",
        "integer" => "a whole number",
        "number" => "a number",
        "boolean" => "true or false",
        "array" => "a list",
        "object" => "a map of fields",
        _ => "null",
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(number) if number.is_f64() => "a number with a fraction",
        Value::Number(_) => "a whole number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
    }
}

/// The field that a pointer ends at, for a sentence.
fn place(pointer: &str) -> String {
    match pointer.rsplit_once('/') {
        None => "the body".to_owned(),
        Some((_, name)) => format!("`{}`", shorten(&name.replace("~1", "/").replace("~0", "~"))),
    }
}

fn join(pointer: &str, name: &str) -> String {
    format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1"))
}

fn bare(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use schemars::json_schema;
    use serde_json::json;

    use super::*;

    fn schema() -> Schema {
        let kind = Kind::new("order.ship").expect("a kind");
        Schema::new(&kind, 1, || {
            json_schema!({
                "type": "object",
                "properties": {
                    "cents": { "type": "integer", "minimum": 0, "maximum": 65535 },
                    "state": { "oneOf": [{ "type": "string", "const": "open" }, { "type": "string", "const": "paid" }] },
                    "note": { "anyOf": [{ "$ref": "#/$defs/Note" }, { "type": "null" }] },
                    "at": { "type": ["string", "null"], "format": "date-time", "pattern": "^2" },
                    "lines": { "type": "array", "items": { "$ref": "#/$defs/Note" } },
                },
                "required": ["cents"],
                "additionalProperties": false,
                "$defs": {
                    "Note": {
                        "type": "object",
                        "properties": { "text": { "type": "string" } },
                        "required": ["text"],
                        "additionalProperties": false,
                    },
                },
            })
        })
    }

    fn problems(body: Value) -> Vec<(String, String, String)> {
        let found = schema().problems(&body);
        let mut found: Vec<_> =
            found.into_iter().map(|found| (found.pointer, found.code.into_owned(), found.detail)).collect();
        found.sort();
        found
    }

    fn one(pointer: &str, code: &str, detail: &str) -> Vec<(String, String, String)> {
        vec![(pointer.into(), code.into(), detail.into())]
    }

    #[test]
    fn every_problem_has_its_place_its_code_and_a_sentence_with_the_fix() {
        assert_eq!(problems(json!({ "cents": 1, "note": null, "at": null, "lines": [{ "text": "" }] })), []);
        let cases = [
            (
                json!({}),
                "/cents",
                "missing_field",
                "the field `cents` is missing: it must be given, as a whole number from 0 to 65535",
            ),
            (
                json!({ "cents": 1, "stat": "x" }),
                "/stat",
                "unknown_field",
                "there is no field `stat` here; did you mean state?",
            ),
            (
                json!({ "cents": 1, "zzz": 1 }),
                "/zzz",
                "unknown_field",
                "there is no field `zzz` here; there are at, cents, lines, note, state",
            ),
            (
                json!({ "cents": "1" }),
                "/cents",
                "wrong_type",
                "`cents` is text: it must be a whole number from 0 to 65535",
            ),
            (
                json!({ "cents": 0.5 }),
                "/cents",
                "wrong_type",
                "`cents` is a number with a fraction: it must be a whole number from 0 to 65535",
            ),
            (
                json!({ "cents": -1 }),
                "/cents",
                "out_of_range",
                "`cents` is out of range: it must be a whole number from 0 to 65535",
            ),
            (
                json!({ "cents": 1, "state": "payd" }),
                "/state",
                "unknown_value",
                "`state` must be one of open, paid; did you mean paid?",
            ),
            (
                json!({ "cents": 1, "state": 4 }),
                "/state",
                "wrong_type",
                "`state` is a whole number: it must be one of open, paid",
            ),
            (
                json!({ "cents": 1, "note": {} }),
                "/note/text",
                "missing_field",
                "the field `text` is missing: it must be given, as text",
            ),
            (
                json!({ "cents": 1, "note": 7 }),
                "/note",
                "wrong_type",
                "`note` is a whole number: it must be a map of fields or null",
            ),
            (
                json!({ "cents": 1, "lines": [{ "text": "a", "txt": 1 }] }),
                "/lines/0/txt",
                "unknown_field",
                "there is no field `txt` here; did you mean text?",
            ),
            (
                json!({ "cents": 1, "at": "1" }),
                "/at",
                "bad_value",
                "`at` does not read as it must: as a time with an offset, such as 2026-12-24T18:00:00+01:00 (RFC 3339)",
            ),
        ];
        for (body, pointer, code, detail) in cases {
            assert_eq!(problems(body.clone()), one(pointer, code, detail), "{body}");
        }
    }

    #[test]
    fn no_sentence_holds_a_value() {
        const CANARY: &str = "canary-7c1f";
        let body =
            json!({ "cents": CANARY, "state": CANARY, "note": { "text": [CANARY] }, "at": CANARY, "lines": CANARY });
        let found = problems(body);
        assert_eq!(found.len(), 5, "{found:?}");
        assert!(found.iter().all(|(_, _, detail)| !detail.contains(CANARY)), "{found:?}");
    }

    #[test]
    fn the_list_of_problems_has_an_end() {
        let body: Value =
            (0..10_000).map(|n| (format!("field_{n}"), n.into())).collect::<serde_json::Map<_, _>>().into();
        assert_eq!(schema().problems(&body).len(), MOST_PROBLEMS);
    }
}
