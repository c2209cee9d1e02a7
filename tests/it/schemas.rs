//! Every kind's schema accepts what the typed reader accepts, and nothing else.

use std::{cell::Cell, io::Write as _, process::Stdio};

use proptest::{
    collection::vec,
    prelude::*,
    sample::{Index, select},
    strategy::ValueTree as _,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use serde_json::{Map, Value, json};
use warren_messages::{Message, analytics::Event, codec, event::Received, probe::Probe, schema, webhook::Deliver};

use crate::harness::{process::built_in_kinds, programs::python_script};

/// A kind with what its types say of a body.
struct Judged {
    kind: &'static str,
    schema: Value,
    takes: fn(&[u8]) -> bool,
}

fn judged<M: Message>() -> Judged {
    Judged { kind: M::KIND, schema: schema::of::<M>().to_value(), takes: |text| codec::from_json::<M>(text).is_ok() }
}

/// Every kind that the binary brings.
fn all() -> Vec<Judged> {
    let all = vec![judged::<Event>(), judged::<Received>(), judged::<Probe>(), judged::<Deliver>()];
    let mut named: Vec<_> = all.iter().map(|judged| judged.kind.to_owned()).collect();
    named.sort_unstable();
    let known: Vec<_> = built_in_kinds().iter().map(ToString::to_string).collect();
    assert_eq!(named, known, "each kind is judged here");
    all
}

/// Values that a schema asks for. What it does not know ends the test, so that it learns.
fn valid(schema: &Value, root: &Value) -> BoxedStrategy<Value> {
    let Some(rules) = schema.as_object() else { return anything() };
    if let Some(reference) = schema["$ref"].as_str() {
        return valid(root.pointer(reference.trim_start_matches('#')).unwrap(), root);
    }
    if let Some(forms) = rules.get("oneOf").or_else(|| rules.get("anyOf")) {
        let forms: Vec<_> = forms.as_array().unwrap().iter().map(|form| valid(form, root)).collect();
        return proptest::strategy::Union::new(forms).boxed();
    }
    if let Some(value) = rules.get("const") {
        return Just(value.clone()).boxed();
    }
    if let Some(values) = rules.get("enum") {
        return select(values.as_array().unwrap().clone()).boxed();
    }
    match &schema["type"] {
        Value::Array(types) => {
            let forms: Vec<_> = types
                .iter()
                .map(|one| {
                    let mut form = schema.clone();
                    form["type"] = one.clone();
                    valid(&form, root)
                })
                .collect();
            proptest::strategy::Union::new(forms).boxed()
        }
        Value::String(name) => match name.as_str() {
            "null" => Just(Value::Null).boxed(),
            "boolean" => any::<bool>().prop_map(Value::from).boxed(),
            "number" => any::<f64>().prop_filter_map("finite", |n| n.is_finite().then(|| n.into())).boxed(),
            "integer" => {
                let bound = |name: &str, or: i128| match &schema[name] {
                    Value::Null => or,
                    number => number.to_string().parse().unwrap(),
                };
                let (least, most) = (bound("minimum", i64::MIN.into()), bound("maximum", i64::MAX.into()));
                prop_oneof![least..=most, Just(least), Just(most)]
                    .prop_map(|n| i64::try_from(n).map_or_else(|_| json!(u64::try_from(n).unwrap()), Value::from))
                    .boxed()
            }
            "string" if schema["contentEncoding"] == "base64" => base64_text().prop_map(Value::from).boxed(),
            "string" if schema["format"] == "date-time" => time_text().prop_map(Value::from).boxed(),
            "string" => {
                assert!(rules.keys().all(|rule| ["type", "description"].contains(&rule.as_str())), "{schema}");
                any::<String>().prop_map(Value::from).boxed()
            }
            "array" => vec(valid(&schema["items"], root), 0..4).prop_map(Value::from).boxed(),
            "object" => object(schema, root),
            other => panic!("{other}: {schema}"),
        },
        Value::Null => anything(),
        other => panic!("{other}"),
    }
}

fn object(schema: &Value, root: &Value) -> BoxedStrategy<Value> {
    let required = |name: &str| schema["required"].as_array().is_some_and(|names| names.iter().any(|it| it == name));
    let fields: Vec<_> = schema["properties"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, rules)| {
            let value = valid(rules, root);
            let value = if required(name) { value.prop_map(Some).boxed() } else { proptest::option::of(value).boxed() };
            let name = name.clone();
            value.prop_map(move |value| value.map(|value| (name.clone(), value))).boxed()
        })
        .collect();
    let more = match &schema["additionalProperties"] {
        Value::Bool(false) => Just(Vec::new()).boxed(),
        Value::Object(_) => vec((any::<String>(), valid(&schema["additionalProperties"], root)), 0..3).boxed(),
        // A free object. One with fields of its own that takes what it does not know would lose it: messages refuse that.
        Value::Null if schema["properties"].is_null() => vec((any::<String>(), anything()), 0..3).boxed(),
        other => panic!("additionalProperties is {other}: {schema}"),
    };
    (fields, more)
        .prop_map(|(fields, more)| more.into_iter().chain(fields.into_iter().flatten()).collect::<Map<_, _>>().into())
        .boxed()
}

fn anything() -> BoxedStrategy<Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_filter_map("finite", |n| n.is_finite().then(|| n.into())),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            vec((any::<String>(), inner), 0..4).prop_map(|fields| fields.into_iter().collect::<Map<_, _>>().into()),
        ]
    })
    .boxed()
}

/// Right and almost right.
fn base64_text() -> impl Strategy<Value = String> {
    "([A-Za-z0-9+/]{4}){0,3}([A-Za-z0-9+/][AQgw]==|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)?"
}

fn time_text() -> impl Strategy<Value = String> {
    // No month is shorter than 28 days.
    "(000[1-9]|[1-9][0-9]{3})-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,9})?\
     (Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
}

/// What a sender may put where something else belongs. Among it what readers differ about.
fn wrong() -> impl Strategy<Value = Value> {
    let numbers = [
        json!(-1),
        json!(0),
        json!(-0.0),
        json!(1.0),
        json!(1.5),
        json!(255),
        json!(256),
        json!(65535),
        json!(65535.0),
        json!(65536),
        json!(65536.0),
        json!(4_294_967_295_u64),
        json!(4_294_967_296_u64),
        json!(4_294_967_295.0),
        json!(i64::MIN),
        json!(u64::MAX),
        json!(1e19),
        json!(1e20),
        json!(-1e20),
        json!(1e300),
        json!(5e-324),
    ];
    let texts = [
        "",
        " ",
        "1",
        "null",
        "true",
        "ok",
        "OK",
        "retry",
        "AA==",
        "AA=",
        "AA",
        "AB==",
        "AAA=",
        "AAB=",
        "A===",
        "AAAA=",
        "AAAA AAAA",
        "-_==",
        "2026-12-24",
        "2026-12-24T18:00:00",
        "2026-12-24T18:00:00Z",
        "2026-12-24t18:00:00z",
        "2026-12-24 18:00:00Z",
        "2026-12-24T18:00Z",
        "20261224T180000Z",
        "2026-02-29T00:00:00Z",
        "2024-02-29T00:00:00Z",
        "2026-02-30T00:00:00Z",
        "2026-04-31T00:00:00Z",
        "2026-13-01T00:00:00Z",
        "2026-00-01T00:00:00Z",
        "2026-01-00T00:00:00Z",
        "2026-12-24T24:00:00Z",
        "2016-12-31T23:59:60Z",
        "2026-12-24T18:60:00Z",
        "2026-12-24T18:00:00+01:00",
        "2026-12-24T18:00:00+0100",
        "2026-12-24T18:00:00+01",
        "2026-12-24T18:00:00+24:00",
        "2026-12-24T18:00:00+23:59",
        "2026-12-24T18:00:00-00:00",
        "2026-12-24T18:00:00+01:60",
        "2026-12-24T18:00:00.Z",
        "2026-12-24T18:00:00,5Z",
        "2026-12-24T18:00:00.123456789Z",
        "2026-12-24T18:00:00.1234567890Z",
        "2026-12-24T18:00:00+01:00[Europe/Berlin]",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59-23:59",
        "9999-02-29T00:00:00Z",
        "+002026-12-24T18:00:00Z",
        "\u{662}026-12-24T18:00:00Z",
        "2026-12-24T18:00:00\u{2212}01:00",
    ];
    prop_oneof![
        3 => select(numbers.to_vec()),
        4 => select(texts.to_vec()).prop_map(Value::from),
        1 => select(vec![json!({ "ok": null }), json!({ "ok": {} }), json!(["ok"]), json!([]), json!({}), json!([1]), json!([[], null])]),
        1 => any::<bool>().prop_map(Value::from),
        1 => Just(Value::Null),
        1 => anything(),
    ]
}

/// What is done to a good body.
#[derive(Debug, Clone)]
enum Change {
    Drop(Index),
    Replace(Index, Value),
    Add(Index, String, Value),
    Wrap(Index),
    /// A map as the list of its values, in order.
    Flatten(Index),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        any::<Index>().prop_map(Change::Drop),
        (any::<Index>(), wrong()).prop_map(|(at, value)| Change::Replace(at, value)),
        (any::<Index>(), prop_oneof![Just("work_ms".to_owned()), any::<String>()], wrong())
            .prop_map(|(at, name, value)| Change::Add(at, name, value)),
        any::<Index>().prop_map(Change::Wrap),
        any::<Index>().prop_map(Change::Flatten),
    ]
}

fn places(value: &Value, here: String, all: &mut Vec<String>) {
    let escape = |name: &str| name.replace('~', "~0").replace('/', "~1");
    match value {
        Value::Object(map) => {
            map.iter().for_each(|(name, value)| places(value, format!("{here}/{}", escape(name)), all));
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, value)| places(value, format!("{here}/{i}"), all));
        }
        _ => {}
    }
    all.push(here);
}

fn apply(body: &mut Value, change: Change) {
    let mut all = Vec::new();
    places(body, String::new(), &mut all);
    let (Change::Drop(at) | Change::Replace(at, _) | Change::Add(at, ..) | Change::Wrap(at) | Change::Flatten(at)) =
        &change;
    let pointer = at.get(&all).clone();
    let place = body.pointer_mut(&pointer).unwrap();
    match change {
        Change::Drop(_) => {
            let Some((around, name)) = pointer.rsplit_once('/') else { return };
            match body.pointer_mut(around).unwrap() {
                Value::Object(map) => _ = map.remove(&name.replace("~1", "/").replace("~0", "~")),
                Value::Array(items) => _ = items.remove(name.parse::<usize>().unwrap()),
                _ => {}
            }
        }
        Change::Replace(_, value) => *place = value,
        Change::Add(_, name, value) => match place {
            Value::Object(map) => _ = map.insert(name, value),
            Value::Array(items) => items.push(value),
            _ => {}
        },
        Change::Wrap(_) => *place = json!([place.take()]),
        Change::Flatten(_) => {
            if let Value::Object(map) = place {
                *place = std::mem::take(map).into_iter().map(|(_, value)| value).collect();
            }
        }
    }
}

fn bodies(judged: &Judged) -> impl Strategy<Value = Value> {
    (valid(&judged.schema, &judged.schema), vec(change(), 0..4)).prop_map(|(mut body, changes)| {
        for change in changes {
            apply(&mut body, change);
        }
        body
    })
}

#[test]
fn every_schema_accepts_exactly_what_the_typed_reader_accepts() {
    for judged in all() {
        let validator = jsonschema::options().should_validate_formats(true).build(&judged.schema).unwrap();
        let (taken, refused) = (Cell::new(0), Cell::new(0));
        let mut runner = TestRunner::new(Config { cases: 4000, failure_persistence: None, ..Config::default() });
        let strategy = bodies(&judged);
        runner
            .run(&strategy, |body| {
                let (by_schema, by_types) = (validator.is_valid(&body), (judged.takes)(body.to_string().as_bytes()));
                let counter = if by_types { &taken } else { &refused };
                counter.set(counter.get() + 1);
                prop_assert_eq!(by_schema, by_types, "{}: {}", judged.kind, body);
                Ok(())
            })
            .unwrap_or_else(|error| panic!("the schema says the left, the types the right: {error}"));
        let (taken, refused) = (taken.get(), refused.get());
        assert!(
            taken > 400 && refused > 400,
            "{}: {taken} taken, {refused} refused: both are to be tried",
            judged.kind
        );
    }
}

#[test]
fn another_implementation_of_json_schema_says_the_same() {
    for judged in all() {
        // The same bodies each time: what is tried at random is tried above.
        let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        let mut runner = TestRunner::new_with_rng(Config::default(), rng);
        let strategy = bodies(&judged);
        let bodies: Vec<_> = (0..2000).map(|_| strategy.new_tree(&mut runner).unwrap().current()).collect();
        let mut lines = format!("{}\n", judged.schema);
        lines.extend(bodies.iter().map(|body| format!("{body}\n")));
        let Some(mut python) = python_script("schemas.py") else { return };
        let mut child = python.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("Python");
        let mut stdin = child.stdin.take().unwrap();
        let writer = std::thread::spawn(move || stdin.write_all(lines.as_bytes()));
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap().unwrap();
        assert!(output.status.success(), "{output:?}");
        let verdicts: Vec<_> =
            std::str::from_utf8(&output.stdout).unwrap().lines().map(|line| line == "True").collect();
        assert_eq!(verdicts.len(), bodies.len());
        for (body, verdict) in bodies.iter().zip(verdicts) {
            assert_eq!((judged.takes)(body.to_string().as_bytes()), verdict, "Python says the right, of {body}");
        }
    }
}
