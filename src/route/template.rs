//! Bodies of jobs with places for the parts of an event.
//!
//! A template is JSON in which a text may refer to the event: `{{data.order.id}}`. A text that is one reference and
//! nothing else becomes that part with its JSON type; within other text a part must be text, a number, true or false.
//! The steps of a reference are separated by dots; one with other characters is quoted, as in `{{headers."x.y"}}`, and one
//! into a list is a number from 0. `{{"..."}}` is the quoted text itself, for a text that needs two braces.

use serde_json::{Map, Value};
use warren_messages::codec::MAX_DEPTH;

/// A body with places for the parts of an event.
#[derive(Debug, Clone, PartialEq)]
pub struct Template(Node);

#[derive(Debug, Clone, PartialEq)]
enum Node {
    /// As it is.
    Fixed(Value),
    /// A part of the event, with its type.
    Part(Reference),
    /// Text with parts of the event in it.
    Text(Vec<Piece>),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

#[derive(Debug, Clone, PartialEq)]
enum Piece {
    Fixed(String),
    Part(Reference),
}

/// The way to a part of an event.
#[derive(Debug, Clone, PartialEq)]
struct Reference {
    /// As it was written.
    written: String,
    steps: Vec<String>,
}

/// A text that is no template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct BadTemplate {
    /// Where: the keys down to it, joined by dots.
    pub place: String,
    /// What is wrong.
    pub problem: String,
}

/// A part that an event does not have, or not in a form that fits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{{{{{reference}}}}} {problem}")]
pub struct Missing {
    /// The reference, as it was written.
    pub reference: String,
    /// The same as a JSON pointer into the event.
    pub pointer: String,
    /// Why there is nothing to put in its place.
    pub problem: &'static str,
}

/// The parts that an event has.
const PARTS: [&str; 7] = ["type", "source", "id", "time", "headers", "data", "data_base64"];

impl Template {
    /// Reads a template, or tells everything that is wrong with it. `place` is what holds it.
    pub fn parse(place: &str, value: Value) -> Result<Self, Vec<BadTemplate>> {
        let mut bad = Vec::new();
        let node = parse(&mut place.to_owned(), value, 0, &mut bad);
        if bad.is_empty() { Ok(Self(node)) } else { Err(bad) }
    }

    /// The template that is an event's data.
    pub fn data() -> Self {
        Self(Node::Part(Reference { written: "data".into(), steps: vec!["data".into()] }))
    }

    /// The fields of the bodies that it makes, where that can be told without an event.
    pub fn fields(&self) -> Option<Vec<&str>> {
        match &self.0 {
            Node::Map(entries) => Some(entries.iter().map(|(key, _)| key.as_str()).collect()),
            _ => None,
        }
    }

    /// Puts the parts of an event in their places.
    pub fn fill(&self, event: &Value) -> Result<Value, Missing> {
        fill(&self.0, event)
    }
}

fn parse(place: &mut String, value: Value, depth: usize, bad: &mut Vec<BadTemplate>) -> Node {
    if depth > MAX_DEPTH {
        let problem = format!("it is nested deeper than {MAX_DEPTH} levels");
        bad.push(BadTemplate { place: place.clone(), problem });
        return Node::Fixed(Value::Null);
    }
    let mut within = |key: &str, value, bad: &mut Vec<BadTemplate>| {
        let end = place.len();
        place.push('.');
        place.push_str(key);
        let node = parse(place, value, depth + 1, bad);
        place.truncate(end);
        node
    };
    match value {
        Value::String(text) => match parse_text(&text) {
            Ok(node) => node,
            Err(problem) => {
                bad.push(BadTemplate { place: place.clone(), problem });
                Node::Fixed(Value::Null)
            }
        },
        Value::Array(items) => {
            let items = items.into_iter().enumerate();
            Node::List(items.map(|(index, item)| within(&index.to_string(), item, bad)).collect())
        }
        Value::Object(map) => Node::Map(
            map.into_iter()
                .map(|(key, value)| {
                    let node = within(&key, value, bad);
                    (key, node)
                })
                .collect(),
        ),
        fixed => Node::Fixed(fixed),
    }
}

fn parse_text(text: &str) -> Result<Node, String> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        if !before.is_empty() {
            pieces.push(Piece::Fixed(before.to_owned()));
        }
        let end = end_of_reference(after).ok_or_else(|| {
            format!("a reference that begins with {{{{ ends with }}}}, as in {{{{data.order.id}}}}: {}", shorten(text))
        })?;
        pieces.push(parse_reference(after[..end].trim())?);
        rest = &after[end + 2..];
    }
    if !rest.is_empty() {
        pieces.push(Piece::Fixed(rest.to_owned()));
    }
    if let [Piece::Part(reference)] = pieces.as_slice() {
        return Ok(Node::Part(reference.clone()));
    }
    Ok(Node::Text(pieces))
}

/// Where the closing braces are; those within quotes close nothing.
fn end_of_reference(text: &str) -> Option<usize> {
    let mut quoted = false;
    text.char_indices().find_map(|(at, c)| {
        quoted ^= c == '"';
        (!quoted && text[at..].starts_with("}}")).then_some(at)
    })
}

fn parse_reference(written: &str) -> Result<Piece, String> {
    let rule = || {
        format!(
            "{{{{{}}}}} is no reference: name a part of the event and the steps into it, joined by dots, as in \
             {{{{data.order.id}}}}; put a step with other characters than letters, digits, _ and - into double quotes",
            shorten(written)
        )
    };
    let mut steps = Vec::new();
    let mut first_is_quoted = false;
    let mut rest = written;
    loop {
        let (step, after) = match rest.strip_prefix('"') {
            Some(quoted) => {
                first_is_quoted |= steps.is_empty();
                quoted.split_once('"').ok_or_else(rule)?
            }
            None => {
                let end = rest.find('.').unwrap_or(rest.len());
                let plain = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
                if end == 0 || !rest[..end].chars().all(plain) {
                    return Err(rule());
                }
                rest.split_at(end)
            }
        };
        steps.push(step.to_owned());
        match after.strip_prefix('.') {
            Some(next) => rest = next,
            None if after.is_empty() => break,
            None => return Err(rule()),
        }
    }
    if first_is_quoted {
        return match steps.as_slice() {
            [text] => Ok(Piece::Fixed(text.clone())),
            _ => Err(rule()),
        };
    }
    let first = steps[0].as_str();
    if !PARTS.contains(&first) {
        return Err(format!("an event has no part `{}`; it has {}", shorten(first), PARTS.join(", ")));
    }
    match (first, steps.len()) {
        ("data", _) | (_, 1) | ("headers", 2) => {}
        _ => return Err(format!("{{{{{}}}}} refers to a part of text: `{first}` has no parts", shorten(written))),
    }
    Ok(Piece::Part(Reference { written: written.to_owned(), steps }))
}

fn fill(node: &Node, event: &Value) -> Result<Value, Missing> {
    Ok(match node {
        Node::Fixed(value) => value.clone(),
        Node::Part(reference) => reference.follow(event)?.clone(),
        Node::Text(pieces) => {
            let mut text = String::new();
            for piece in pieces {
                match piece {
                    Piece::Fixed(fixed) => text.push_str(fixed),
                    Piece::Part(reference) => match reference.follow(event)? {
                        Value::String(part) => text.push_str(part),
                        Value::Number(part) => text.push_str(&part.to_string()),
                        Value::Bool(part) => text.push_str(if *part { "true" } else { "false" }),
                        Value::Null => return Err(reference.missing("is null, which cannot stand within text")),
                        Value::Array(_) => return Err(reference.missing("is a list, which cannot stand within text")),
                        Value::Object(_) => return Err(reference.missing("is a map, which cannot stand within text")),
                    },
                }
            }
            text.into()
        }
        Node::List(items) => items.iter().map(|item| fill(item, event)).collect::<Result<_, _>>().map(Value::Array)?,
        Node::Map(entries) => entries
            .iter()
            .map(|(key, node)| Ok((key.clone(), fill(node, event)?)))
            .collect::<Result<Map<_, _>, _>>()
            .map(Value::Object)?,
    })
}

impl Reference {
    fn follow<'a>(&self, event: &'a Value) -> Result<&'a Value, Missing> {
        let step = |value: &'a Value, step: &String| match value {
            Value::Object(map) => map.get(step),
            Value::Array(items) => items.get(step.parse::<usize>().ok()?),
            _ => None,
        };
        self.steps.iter().try_fold(event, step).ok_or_else(|| self.missing("is not there"))
    }

    fn missing(&self, problem: &'static str) -> Missing {
        let steps = self.steps.iter().map(|step| step.replace('~', "~0").replace('/', "~1"));
        let pointer = steps.fold(String::new(), |pointer, step| pointer + "/" + &step);
        Missing { reference: self.written.clone(), pointer, problem }
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(60).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn event() -> Value {
        json!({
            "type": "order.paid", "source": "/shop", "id": "7",
            "headers": { "subject": "s", "x.y": "dotted", "x-a": "dashed" },
            "data": { "order": { "id": 117, "paid": true, "note": null, "lines": [{ "sku": "a" }, { "sku": "b" }] }, "": "e" },
        })
    }

    fn filled(template: Value) -> Result<Value, String> {
        let template = Template::parse("with", template).map_err(|bad| bad[0].to_string())?;
        template.fill(&event()).map_err(|missing| missing.to_string())
    }

    #[test]
    fn a_whole_reference_keeps_its_type_and_one_within_text_becomes_text() {
        let cases = [
            (json!("{{data.order.id}}"), json!(117)),
            (json!("{{ data.order.id }}"), json!(117)),
            (json!("order {{data.order.id}} of {{source}}: {{data.order.paid}}"), json!("order 117 of /shop: true")),
            (json!("{{data.order}}"), event()["data"]["order"].clone()),
            (json!("{{data.order.note}}"), json!(null)),
            (json!("{{data}}"), event()["data"].clone()),
            (json!("{{data.order.lines.1.sku}}"), json!("b")),
            (json!("{{data.\"\"}}"), json!("e")),
            (json!("{{headers.subject}}{{headers.\"x.y\"}}{{headers.x-a}}"), json!("sdotteddashed")),
            (json!("{{\"{{\"}}x}}"), json!("{{x}}")),
            (
                json!({ "a": [1, "{{id}}", { "b": "{{type}}" }], "c": 1.5, "d": {}, "{{id}}": null }),
                json!({ "a": [1, "7", { "b": "order.paid" }], "c": 1.5, "d": {}, "{{id}}": null }),
            ),
            (json!(""), json!("")),
            (json!("a } b { c }}"), json!("a } b { c }}")),
        ];
        for (template, expected) in cases {
            assert_eq!(filled(template.clone()), Ok(expected), "{template}");
        }
        assert_eq!(Template::data().fill(&event()), Ok(event()["data"].clone()));
    }

    #[test]
    fn a_part_that_is_not_there_is_named() {
        for (template, told) in [
            ("{{data.order.total}}", "{{data.order.total}} is not there"),
            ("{{data.order.lines.2}}", "{{data.order.lines.2}} is not there"),
            ("{{data.order.lines.x}}", "{{data.order.lines.x}} is not there"),
            ("{{data.order.id.x}}", "{{data.order.id.x}} is not there"),
            ("{{time}}", "{{time}} is not there"),
            ("{{headers.none}}", "{{headers.none}} is not there"),
            ("x {{data.order.note}}", "{{data.order.note}} is null, which cannot stand within text"),
            ("x {{data.order.lines}}", "{{data.order.lines}} is a list, which cannot stand within text"),
            ("x {{data}}", "{{data}} is a map, which cannot stand within text"),
        ] {
            assert_eq!(filled(json!(template)), Err(told.to_owned()));
        }
    }

    #[test]
    fn what_is_no_reference_is_told_before_any_event_comes_and_all_of_it_at_once() {
        for (template, told) in [
            ("{{", "ends with }}"),
            ("a {{id", "ends with }}"),
            ("{{}}", "no reference"),
            ("{{data.}}", "no reference"),
            ("{{.data}}", "no reference"),
            ("{{data..x}}", "no reference"),
            ("{{data x}}", "no reference"),
            ("{{data.\"x}}", "ends with }}"),
            ("{{data.\"x\"y}}", "no reference"),
            ("{{\"x\".y}}", "no reference"),
            ("{{date}}", "no part `date`; it has type, source"),
            ("{{id.x}}", "`id` has no parts"),
            ("{{headers.a.b}}", "`headers` has no parts"),
        ] {
            let error = filled(json!(template)).expect_err(template);
            assert!(error.contains(told), "{template}: {error}");
        }
        let bad =
            Template::parse("with", json!({ "a": "{{x}}", "b": [1, "{{"], "c": "{{id}}" })).expect_err("two are bad");
        let places: Vec<_> = bad.iter().map(|bad| bad.place.as_str()).collect();
        assert_eq!(places, ["with.a", "with.b.1"]);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[{}\"a-z. \u{e9}]{0,30}") {
            _ = filled(json!(text));
        }

        #[test]
        fn text_without_two_braces_is_itself(text in "[^{]{0,30}") {
            prop_assert_eq!(filled(json!(text)), Ok(json!(text)));
        }
    }
}
