//! Bytes from anyone.

use proptest::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;
use warren_messages::{
    DecodeError, EncodeError, Json, Message,
    codec::{self, MAX_BYTES},
    probe::Probe,
};

/// A message with everything that has gone wrong somewhere on the way between formats.
#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Order {
    id: Uuid,
    lines: Vec<Line>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    note: Option<Json>,
    status: Status,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Line {
    cents: u64,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Status {
    Open,
    PaidBy { card: String },
}

impl Message for Order {
    const KIND: &'static str = "order.ship";
    const VERSION: u16 = 3;

    fn upcast(version: u16, mut body: Value) -> Result<Value, DecodeError> {
        // Version 2 had one line and no list.
        if version == 2 {
            let cents = body["cents"].take();
            body.as_object_mut().expect("a map").remove("cents");
            body["lines"] = json!([{ "cents": cents }]);
            Ok(body)
        } else {
            Err(DecodeError::UnknownVersion { version, reads: Self::VERSION })
        }
    }
}

fn order() -> Value {
    json!({ "id": "0190aaaa-bbbb-7ccc-8ddd-eeeeffff0000", "lines": [{ "cents": 5 }], "status": { "paid_by": { "card": "x" } } })
}

fn text(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn malformed_at(bytes: &[u8]) -> usize {
    match codec::decode::<Order>(3, bytes) {
        Err(DecodeError::Malformed { offset, .. }) => offset,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_job_that_came_as_json_is_the_same_to_its_typed_worker() {
    let order: Order = codec::from_json(&text(&order())).expect("a good order");
    let bytes = codec::encode(&order).expect("small");
    assert_eq!(codec::decode::<Order>(3, &bytes).expect("its own bytes"), order);
}

#[test]
fn an_older_layout_is_brought_up_and_a_newer_one_is_not_guessed_at() {
    let old = json!({ "id": "0190aaaa-bbbb-7ccc-8ddd-eeeeffff0000", "cents": 5, "status": "open" });
    let bytes = codec::encode(&old).expect("small");
    assert_eq!(codec::decode::<Order>(2, &bytes).expect("brought up").lines, [Line { cents: 5 }]);
    assert_eq!(codec::decode::<Order>(4, &bytes), Err(DecodeError::UnknownVersion { version: 4, reads: 3 }));
    assert_eq!(codec::decode::<Order>(1, &bytes), Err(DecodeError::UnknownVersion { version: 1, reads: 3 }));
}

#[test]
fn bytes_that_are_no_map_are_refused() {
    // Empty; an array of the fields in order, which rmp-serde takes for a struct; an integer; text; JSON.
    assert_eq!(codec::decode::<Order>(3, &[]), Err(DecodeError::Empty));
    for bytes in [&[0x94, 1, 2, 3, 4][..], &[7], &[0xa1, b'x'], b"{\"id\":1}"] {
        assert_eq!(codec::decode::<Order>(3, bytes), Err(DecodeError::NotAMap), "{bytes:02x?}");
    }
    assert_eq!(codec::from_json::<Order>(b" [1]"), Err(DecodeError::NotAMap));
}

#[test]
fn lengths_that_lie_are_refused_at_once() {
    // A map of 1: key "id", then a str32 that claims 4 GiB; and an array32 that claims 4 billion items.
    assert_eq!(malformed_at(&[0x81, 0xa2, b'i', b'd', 0xdb, 0xff, 0xff, 0xff, 0xff, b'x']), 10);
    malformed_at(&[0x81, 0xa5, b'l', b'i', b'n', b'e', b's', 0xdd, 0xff, 0xff, 0xff, 0xff]);
    // A map16 that claims 65,535 entries and ends.
    malformed_at(&[0xde, 0xff, 0xff]);
}

#[test]
fn what_follows_the_body_is_refused() {
    let mut bytes = codec::encode(&order()).expect("small");
    let end = bytes.len();
    bytes.extend([0xc0, 0xc0]);
    assert_eq!(malformed_at(&bytes), end);
}

#[test]
fn depth_is_bounded_alike_in_both_formats() {
    let nested = |depth: usize| {
        // Outer map, then arrays.
        let mut value = json!(1);
        for _ in 0..depth - 1 {
            value = json!([value]);
        }
        let mut order = order();
        order["note"] = value;
        order
    };
    for depth in [2, 63, 64] {
        let order: Order = codec::from_json(&text(&nested(depth))).unwrap_or_else(|error| panic!("{depth}: {error}"));
        let bytes = codec::encode(&order).expect("small");
        codec::decode::<Order>(3, &bytes).unwrap_or_else(|error| panic!("{depth}: {error}"));
    }
    assert_eq!(codec::from_json::<Order>(&text(&nested(65))), Err(DecodeError::TooDeep));
    // One too many, and so many that a reader without a bound takes the process with it.
    for depth in [65, 900, 100_000] {
        let mut bytes = vec![0x81, 0xa4, b'n', b'o', b't', b'e'];
        bytes.extend(std::iter::repeat_n(0x91, depth - 1));
        bytes.push(1);
        assert_eq!(codec::decode::<Order>(3, &bytes), Err(DecodeError::TooDeep), "{depth}");
        let text = format!("{{\"note\":{}1{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1));
        assert_eq!(codec::from_json::<Order>(text.as_bytes()), Err(DecodeError::TooDeep), "{depth}");
    }
    // Brackets within text open nothing.
    let mut order = order();
    order["note"] = json!("[".repeat(500) + "\\\"[[");
    codec::from_json::<Order>(&text(&order)).expect("flat");
}

#[test]
fn size_is_bounded_in_both_directions() {
    let mut order = order();
    order["note"] = json!("x".repeat(MAX_BYTES));
    assert!(matches!(codec::from_json::<Order>(&text(&order)), Err(DecodeError::TooLarge { .. })));
    assert!(matches!(codec::encode(&order), Err(EncodeError::TooLarge { .. })));
    assert!(matches!(codec::decode::<Order>(3, &vec![0x80; MAX_BYTES + 1]), Err(DecodeError::TooLarge { .. })));
}

fn problem(body: &str) -> (String, String) {
    match codec::from_json::<Order>(body.as_bytes()) {
        Err(DecodeError::Unfit(invalid)) => {
            let problem = &invalid.problems()[0];
            (problem.pointer.clone(), problem.code.to_string())
        }
        other => panic!("{body}: {other:?}"),
    }
}

#[test]
fn a_body_that_does_not_fit_is_told_where_and_how() {
    const ID: &str = r#""id":"0190aaaa-bbbb-7ccc-8ddd-eeeeffff0000""#;
    let cases = [
        (format!(r#"{{{ID},"lines":[],"status":"open","colour":1}}"#), "/colour", "unknown_field"),
        (format!(r#"{{{ID},"lines":[{{"cents":1}},{{}}],"status":"open"}}"#), "/lines/1/cents", "missing_field"),
        (format!(r#"{{{ID},"lines":[{{"cents":"1"}}],"status":"open"}}"#), "/lines/0/cents", "wrong_type"),
        (format!(r#"{{{ID},"lines":[{{"cents":-1}}],"status":"open"}}"#), "/lines/0/cents", "bad_value"),
        (format!(r#"{{{ID},{ID},"lines":[],"status":"open"}}"#), "/id", "duplicate_key"),
        (format!(r#"{{{ID},"lines":[],"status":"open","note":{{"a":1,"a":2}}}}"#), "/note/a", "duplicate_key"),
        (format!(r#"{{{ID},"lines":[],"status":"closed"}}"#), "/status", "unknown_value"),
        (r#"{"id":"7","lines":[],"status":"open"}"#.to_owned(), "/id", "bad_value"),
    ];
    for (body, pointer, code) in cases {
        assert_eq!(problem(&body), (pointer.to_owned(), code.to_owned()), "{body}");
    }
}

#[test]
fn a_msgpack_body_that_does_not_fit_is_told_where_too() {
    let mut order = order();
    order["lines"] = json!([{ "cents": 1 }, { "cents": true }]);
    let bytes = codec::encode(&order).expect("small");
    match codec::decode::<Order>(3, &bytes) {
        Err(DecodeError::Unfit(invalid)) => assert_eq!(invalid.problems()[0].pointer, "/lines/1/cents"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn broken_json_is_told_with_its_place() {
    let place = |text: &[u8]| match codec::from_json::<Order>(text) {
        Err(DecodeError::Malformed { offset, detail }) => (offset, detail),
        other => panic!("{other:?}"),
    };
    let (offset, detail) = place(b"{\"id\": 1,\n \"lines\" 2}");
    assert_eq!(offset, 19);
    assert!(detail.contains("line 2 column 10"), "{detail}");
    place(b"{\"id\": 1");
}

#[test]
fn characters_that_are_none_are_told_with_their_place() {
    // U+1F600 as a pair; then what is half of one, or no UTF-8 at all.
    for (text, at) in [
        (&b"{\"id\": \"\\ud83d\\ude00\\ud800\"}"[..], 20),
        (b"{\"id\": \"\\\\\\udc00\\ud800\"}", 10),
        (b"{\"id\": \"\\ud800\\u0041\"}", 8),
        (b"{\"id\": \"a\xff\"}", 9),
    ] {
        match codec::from_json::<Order>(text) {
            Err(DecodeError::BadText { offset, .. }) => assert_eq!(offset, at, "{}", text.escape_ascii()),
            other => panic!("{}: {other:?}", text.escape_ascii()),
        }
    }
}

#[test]
fn numbers_that_are_none_are_told_with_their_place() {
    for number in ["1e999", "-1e400", "NaN", "Infinity", "-Infinity"] {
        let text = format!("{{\"lines\": [{{\"cents\": {number}}}]}}");
        assert_eq!(problem(&text), ("/lines/0/cents".into(), "bad_number".into()), "{number}");
    }
    // What only looks like one is no JSON.
    for word in ["Nan", "none", "-x", "+1"] {
        let read = codec::from_json::<Order>(format!("{{\"id\": {word}}}").as_bytes());
        assert!(matches!(read, Err(DecodeError::Malformed { .. })), "{word}: {read:?}");
    }
}

#[test]
fn a_byte_order_mark_is_passed_over() {
    let mut bytes = b"\xef\xbb\xbf".to_vec();
    bytes.extend(text(&order()));
    codec::from_json::<Order>(&bytes).expect("a good order");
}

#[test]
fn an_integer_that_would_be_rounded_is_refused_with_its_place() {
    let with = |number: &str| {
        let note = format!(r#"{{"a":["x-18446744073709551616",{number}]}}"#);
        format!(r#"{{"id":"0190aaaa-bbbb-7ccc-8ddd-eeeeffff0000","lines":[],"status":"open","note":{note}}}"#)
    };
    for number in ["18446744073709551616", "-9223372036854775809", "100000000000000000000000000"] {
        assert_eq!(problem(&with(number)), ("/note/a/1".into(), "bad_value".into()), "{number}");
    }
    for number in ["18446744073709551615", "-9223372036854775808", "1e300", "1e-7", "0.1", "123456789012345678.5"] {
        let order: Order = codec::from_json(with(number).as_bytes()).expect(number);
        let kept = &codec::to_json(&codec::encode(&order).expect("small")).expect("a map")["note"]["a"][1];
        assert_eq!(*kept, serde_json::from_str::<Value>(number).expect("a number"), "{number}");
    }
    let broken = codec::from_json::<Order>(b"{\"a\":18446744073709551616,}");
    assert!(matches!(broken, Err(DecodeError::Malformed { .. })), "{broken:?}");
}

#[test]
fn a_number_that_is_none_is_refused_in_a_free_value() {
    // {"note": NaN} as a MessagePack float64, which JSON cannot say.
    let mut bytes = vec![0x81, 0xa4, b'n', b'o', b't', b'e', 0xcb];
    bytes.extend(f64::NAN.to_be_bytes());
    assert!(matches!(codec::decode::<Order>(3, &bytes), Err(DecodeError::Unfit(_))));
}

#[test]
fn any_json_is_read_as_strictly_as_a_body() {
    for text in ["[1, {\"a\": null}]", "7", "\"x\"", "null", "\u{feff}{}"] {
        let plain: Value = serde_json::from_str(text.trim_start_matches('\u{feff}')).expect("JSON");
        assert_eq!(codec::any_json(text.as_bytes()), Ok(plain), "{text}");
    }
    let deep = "[".repeat(65) + &"]".repeat(65);
    assert_eq!(codec::any_json(deep.as_bytes()), Err(DecodeError::TooDeep));
    assert_eq!(codec::any_json(b""), Err(DecodeError::Empty));
    for (text, pointer) in [("[{\"a\":1,\"a\":2}]", "/0/a"), ("[1, 18446744073709551616]", "/1")] {
        match codec::any_json(text.as_bytes()) {
            Err(DecodeError::Unfit(invalid)) => assert_eq!(invalid.problems()[0].pointer, pointer),
            other => panic!("{text}: {other:?}"),
        }
    }
    assert!(matches!(codec::any_json(b"\"\\ud800\""), Err(DecodeError::BadText { offset: 1, .. })));
    for text in ["1e999", "NaN"] {
        assert!(matches!(codec::any_json(text.as_bytes()), Err(DecodeError::Unfit(_))), "{text}");
    }
    for text in ["{", "{} {}"] {
        assert!(matches!(codec::any_json(text.as_bytes()), Err(DecodeError::Malformed { .. })), "{text}");
    }
}

/// Any JSON value, and its text.
fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-1e9..1e9).prop_map(Value::from),
        ".{0,40}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 64, 20, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..20).prop_map(Value::from),
            proptest::collection::btree_map(".{0,6}", inner, 0..20).prop_map(|map| map.into_iter().collect()),
        ]
    })
}

proptest! {
    /// What rmp-serde makes of a tree is the oracle.
    #[test]
    fn a_free_value_is_the_same_bytes_as_a_tree_of_it_and_comes_back(value in any_value()) {
        let tree = codec::encode(&value).expect("small");
        let text = value.to_string();
        for json in [serde_json::from_str(&text).expect("a value"), Json::from(value.clone())] {
            prop_assert_eq!(&codec::encode(&json).expect("small"), &tree);
            prop_assert_eq!(json.to_text(), &*text);
            prop_assert_eq!(&json.to_value(), &value);
        }
    }
}

#[test]
fn a_long_free_value_takes_the_shortest_form_for_its_length() {
    for length in [0, 15, 16, 17, 65_535, 65_536, 100_000] {
        let (items, names): (Vec<_>, Vec<_>) = (0..length).map(|n| (n, format!("\"{n}\":{n}"))).unzip();
        for text in [serde_json::to_string(&items).expect("numbers"), format!("{{{}}}", names.join(","))] {
            let tree: Value = serde_json::from_str(&text).expect("JSON");
            let json: Json = serde_json::from_str(&text).expect("JSON");
            assert_eq!(json.to_value(), tree, "{length}");
            let bytes = |bytes: Result<Vec<u8>, _>| bytes.map_or(0, |bytes| bytes.len());
            assert_eq!(bytes(codec::encode(&json)), bytes(codec::encode(&tree)), "{length}");
        }
    }
}

#[test]
fn a_free_map_keeps_the_order_of_its_sender() {
    let text = r#"{"b":1,"a":{"z":[{"y":2,"x":3}],"c":null},"":"last"}"#;
    let json: Json = serde_json::from_str(text).expect("JSON");
    assert_eq!(json.to_text(), text);
    assert_eq!(codec::encode(&json).expect("small")[..4], [0x83, 0xa1, b'b', 1]);
}

#[test]
fn a_name_that_a_free_map_has_twice_is_found_however_far_apart_and_deep() {
    let many: Vec<_> = (0..50_000).map(|n| format!("\"{n}\":0")).collect();
    let many = many.join(",");
    for (text, name) in [
        (format!("{{\"7\":1,{many}}}"), "7"),
        (format!("{{\"a\":{{{many}}},\"b\":[{{\"7\":1,{many},\"x\":{{}}}}]}}"), "7"),
        (r#"{"a":{"b":1},"b":{"b":1},"":0,"a":2}"#.into(), "a"),
        (r#"{"\u0061":1,"a":2}"#.into(), "a"),
    ] {
        let error = serde_json::from_str::<Json>(&text).expect_err(name);
        assert!(error.to_string().starts_with(&format!("duplicate key `{name}`")), "{error}");
    }
    serde_json::from_str::<Json>(r#"{"a":{"a":{"a":1}},"b":{"a":1}}"#).expect("each is in another map");
}

#[test]
fn an_extension_type_is_refused() {
    // {"note": ext type 5}
    let bytes = [0x81, 0xa4, b'n', b'o', b't', b'e', 0xd4, 5, 0];
    assert!(codec::decode::<Order>(3, &bytes).is_err());
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        _ = codec::decode::<Order>(3, &bytes);
        _ = codec::from_json::<Order>(&bytes);
        _ = codec::to_json(&bytes);
        _ = codec::decode::<Probe>(1, &bytes);
    }

    #[test]
    fn damaged_bytes_never_panic(at in 0_usize..90, with in any::<u8>()) {
        let mut bytes = codec::encode(&order()).expect("small");
        let at = at % bytes.len();
        bytes[at] = with;
        _ = codec::decode::<Order>(3, &bytes);
    }
}
