//! The examples of the specification, and what breaks it.

use proptest::prelude::*;
use serde_json::json;

use super::{batch::split, *};

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(
            http::HeaderName::from_bytes(name.as_bytes()).expect("a name"),
            HeaderValue::from_bytes(value.as_bytes()).expect("a value"),
        );
    }
    headers
}

/// The attributes that every example of the specification has.
fn example(id: &str) -> Vec<(&'static str, String)> {
    vec![
        ("ce-specversion", "1.0".into()),
        ("ce-type", "com.example.someevent".into()),
        ("ce-source", "/mycontext".into()),
        ("ce-id", id.into()),
        ("ce-time", "2018-04-05T17:31:00Z".into()),
        ("ce-comexampleextension1", "value".into()),
        ("ce-comexampleothervalue", "5".into()),
    ]
}

fn binary_example(id: &str, content_type: &str, body: &[u8]) -> CloudEvent {
    let mut pairs = example(id);
    pairs.push(("content-type", content_type.into()));
    let pairs: Vec<_> = pairs.iter().map(|(name, value)| (*name, value.as_str())).collect();
    binary(&headers(&pairs), body).expect("the specification's own example")
}

fn problems(problem: &Problem) -> Vec<(String, String)> {
    problem.problems().into_iter().map(|problem| (problem.pointer, problem.code.into_owned())).collect()
}

// Each pair is one event of the JSON format's section 3.2, and the same "re-encoded using HTTP Binary Content Mode".

#[test]
fn bytes_are_the_same_event_in_both_modes() {
    let text = br#"{
        "specversion" : "1.0",
        "type" : "com.example.someevent",
        "source" : "/mycontext",
        "id" : "A234-1234-1234",
        "time" : "2018-04-05T17:31:00Z",
        "comexampleextension1" : "value",
        "comexampleothervalue" : 5,
        "datacontenttype" : "application/vnd.apache.thrift.binary",
        "data_base64" : "AP+A"
    }"#;
    let event = structured(text).expect("the specification's own example");
    assert_eq!(event, binary_example("A234-1234-1234", "application/vnd.apache.thrift.binary", b"\x00\xff\x80"));
    assert_eq!(event.data, Data::Bytes(vec![0, 255, 128]));
    assert_eq!(event.time, Some(Timestamp::from_second(1_522_949_460).expect("in range")));
    let rest: Vec<_> = event.rest.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let expected = [
        ("comexampleextension1", "value"),
        ("comexampleothervalue", "5"),
        ("datacontenttype", "application/vnd.apache.thrift.binary"),
    ];
    assert_eq!(rest, expected);
}

#[test]
fn text_is_the_same_event_in_both_modes() {
    let text = br#"{
        "specversion" : "1.0",
        "type" : "com.example.someevent",
        "source" : "/mycontext",
        "id" : "B234-1234-1234",
        "time" : "2018-04-05T17:31:00Z",
        "comexampleextension1" : "value",
        "comexampleothervalue" : 5,
        "unsetextension": null,
        "datacontenttype" : "application/xml",
        "data" : "<much wow=\"xml\"/>"
    }"#;
    let event = structured(text).expect("the specification's own example");
    assert_eq!(event, binary_example("B234-1234-1234", "application/xml", b"<much wow=\"xml\"/>"));
    assert_eq!(event.data, Data::Json(json!("<much wow=\"xml\"/>")));
}

#[test]
fn json_is_the_same_event_in_both_modes() {
    let text = br#"{
        "specversion" : "1.0",
        "type" : "com.example.someevent",
        "source" : "/mycontext",
        "subject": null,
        "id" : "C234-1234-1234",
        "time" : "2018-04-05T17:31:00Z",
        "comexampleextension1" : "value",
        "comexampleothervalue" : 5,
        "datacontenttype" : "application/json",
        "data" : { "appinfoA" : "abc", "appinfoB" : 123, "appinfoC" : true }
    }"#;
    let event = structured(text).expect("the specification's own example");
    let body = br#"{ "appinfoA" : "abc", "appinfoB" : 123, "appinfoC" : true }"#;
    assert_eq!(event, binary_example("C234-1234-1234", "application/json", body));
    assert_eq!(event.data, Data::Json(json!({ "appinfoA": "abc", "appinfoB": 123, "appinfoC": true })));
}

#[test]
fn a_json_string_is_not_read_once_more() {
    let text = br#"{
        "specversion" : "1.0", "type" : "com.example.someevent", "source" : "/mycontext", "subject": null,
        "id" : "D234-1234-1234", "time" : "2018-04-05T17:31:00Z", "comexampleextension1" : "value",
        "comexampleothervalue" : 5, "data" : "I'm just a string"
    }"#;
    let event = structured(text).expect("the specification's own example");
    let same = binary_example("D234-1234-1234", "application/json", b"\"I'm just a string\"");
    assert_eq!(event.data, same.data);
    assert_eq!(event.data, Data::Json(json!("I'm just a string")));
    // "If the quotes were missing, this would have been an invalid event".
    let mut pairs = example("D");
    pairs.push(("content-type", "application/json".into()));
    let pairs: Vec<_> = pairs.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let problem = binary(&headers(&pairs), b"I'm just a string").expect_err("the quotes are missing");
    assert_eq!(problem.code(), "invalid_json");
}

#[test]
fn null_is_data_and_no_data_is_none() {
    let event = |data: &str| {
        let text = format!(r#"{{"specversion":"1.0","type":"t","source":"s","id":"i"{data}}}"#);
        structured(text.as_bytes()).expect("an event").data
    };
    assert_eq!(event(r#","data":null"#), Data::Json(json!(null)));
    assert_eq!(event(""), Data::None);
    assert_eq!(event(r#","data_base64":null"#), Data::None);
    assert_eq!(event(r#","data_base64":"""#), Data::Bytes(Vec::new()));
}

#[test]
fn a_header_is_unquoted_and_decoded_once() {
    // The HTTP binding's own example, and what its rules say of older senders.
    let cases: [(&[u8], Option<&str>); 14] = [
        (b"Euro%20%E2%82%AC%20%F0%9F%98%80", Some("Euro \u{20ac} \u{1f600}")),
        (b"Euro%20%e2%82%ac", Some("Euro \u{20ac}")),
        (b"%C0%A0", None),
        (b"%ff", None),
        (b"100%25", Some("100%")),
        (b"100%2525", Some("100%25")),
        (b"%41bc", Some("Abc")),
        (b"100%", Some("100%")),
        (b"%zz", Some("%zz")),
        (b"\"two words\"", Some("two words")),
        (br#""a \"b\" \\ %20c""#, Some("a \"b\" \\  c")),
        (br#"say "hi" twice"#, Some("say \"hi\" twice")),
        ("caf\u{e9}".as_bytes(), Some("caf\u{e9}")),
        // What Node sends for it.
        (b"caf\xe9", Some("caf\u{e9}")),
    ];
    for (bytes, expected) in cases {
        assert_eq!(header_text(bytes).as_deref(), expected, "{}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn everything_that_is_wrong_with_an_event_is_told_at_once() {
    let text = json!({
        "specversion": "0.3", "type": "", "source": 7.5, "time": "yesterday", "Subject": "x", "my_ext": "x", "n": 1e10,
        "big": 2_147_483_648_u32, "list": [], "ctl": "a\nb", "data": 1, "data_base64": "AA==",
    });
    let problem = structured(text.to_string().as_bytes()).expect_err("nothing of it is right");
    assert_eq!(problem.code(), INVALID_EVENT);
    let mut found = problems(&problem);
    found.sort();
    let expected = [
        ("/Subject", "bad_attribute_name"),
        ("/big", "wrong_type"),
        ("/ctl", "bad_value"),
        ("/data_base64", "one_of"),
        ("/id", "missing_attribute"),
        ("/list", "wrong_type"),
        ("/my_ext", "bad_attribute_name"),
        ("/n", "wrong_type"),
        ("/source", "wrong_type"),
        ("/specversion", "bad_value"),
        ("/time", "bad_value"),
        ("/type", "bad_value"),
    ];
    assert_eq!(found, expected.map(|(pointer, code)| (pointer.to_owned(), code.to_owned())));
}

#[test]
fn everything_that_is_wrong_with_headers_is_told_at_once() {
    let headers = headers(&[
        ("ce-id", "1"),
        ("ce-id", "2"),
        ("ce-source", "%ff"),
        ("ce-type", ""),
        ("ce-my_ext", "x"),
        ("ce-data", "x"),
        ("ce-datacontenttype", "text/plain"),
        ("ce-subject", "a%0Ab"),
    ]);
    let problem = binary(&headers, b"").expect_err("nothing of it is right");
    let mut codes: Vec<_> = problem.problems().into_iter().map(|problem| (problem.detail, problem.code)).collect();
    codes.sort();
    let told: Vec<_> =
        codes.iter().map(|(detail, code)| (detail.split(' ').nth(2).unwrap_or(""), code.as_ref())).collect();
    let expected = [
        ("ce-data", "bad_attribute_name"),
        ("ce-datacontenttype", "bad_attribute_name"),
        ("ce-id", "duplicate_key"),
        ("ce-my_ext", "bad_attribute_name"),
        ("ce-source", "bad_value"),
        ("ce-specversion", "missing_attribute"),
        ("ce-subject", "bad_value"),
        ("ce-type", "bad_value"),
    ];
    assert_eq!(told, expected, "{codes:?}");
}

#[test]
fn a_trace_is_that_of_the_extension() {
    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let text = |parent: &str| json!({ "specversion": "1.0", "type": "t", "source": "s", "id": "i", "traceparent": parent, "tracestate": "a=b" });
    let event = structured(text(PARENT).to_string().as_bytes()).expect("an event");
    let trace = event.trace().expect("it has one");
    assert_eq!((trace.parent.as_str(), trace.state.as_deref()), (PARENT, Some("a=b")));
    let event = structured(text("nonsense").to_string().as_bytes()).expect("an event");
    assert!(event.trace().is_none());
}

#[test]
fn data_is_read_by_its_content_type() {
    let read = |content_type: Option<&str>, bytes: &[u8]| Data::read(content_type, bytes).expect("it can be read");
    let text = |text: &str| Data::Json(text.into());
    assert_eq!(read(Some("application/json; charset=utf-8"), b"[1]"), Data::Json(json!([1])));
    assert_eq!(read(Some("Application/Problem+JSON"), b"[1]"), Data::Json(json!([1])));
    assert_eq!(read(Some("text/json"), b"\xef\xbb\xbf[1]"), Data::Json(json!([1])));
    assert_eq!(read(Some("text/plain"), b"[1]"), text("[1]"));
    assert_eq!(read(Some("text/plain; charset=iso-8859-1"), b"caf\xe9"), Data::Bytes(b"caf\xe9".to_vec()));
    assert_eq!(read(Some("image/svg+xml"), b"<svg/>"), text("<svg/>"));
    assert_eq!(read(Some("application/octet-stream"), b"[1]"), Data::Bytes(b"[1]".to_vec()));
    assert_eq!(read(Some("nonsense"), b"x"), Data::Bytes(b"x".to_vec()));
    assert_eq!(read(None, b"{\"a\":1}"), Data::Json(json!({ "a": 1 })));
    assert_eq!(read(None, b"plain"), text("plain"));
    assert_eq!(read(None, b"\xff"), Data::Bytes(vec![255]));
    assert_eq!(read(Some("application/json"), b""), Data::None);
    for (bytes, code) in
        [(&b"{\"a\":1,\"a\":2}"[..], "duplicate_key"), (b"{", "invalid_json"), (b"\xff", "bad_encoding")]
    {
        let problem = Data::read(Some("application/json"), bytes).expect_err("it is none");
        assert_eq!(problem.code(), code);
    }
}

proptest! {
    /// Whatever headers and bytes come in: an event that keeps the rules, or a problem, and never a panic.
    #[test]
    fn any_headers_and_bytes_are_an_event_or_a_problem(
        pairs in proptest::collection::vec(("[a-z0-9_-]{0,12}", proptest::collection::vec(any::<u8>(), 0..40)), 0..8),
        whole in any::<bool>(),
        content_type in proptest::option::of("[a-z/+;= ]{0,30}|application/json|text/plain"),
        body in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            if let (Ok(name), Ok(value)) =
                (http::HeaderName::try_from(format!("{PREFIX}{name}")), HeaderValue::from_bytes(&value))
            {
                headers.append(name, value);
            }
        }
        if whole {
            for name in REQUIRED {
                headers.insert(http::HeaderName::try_from(format!("{PREFIX}{name}")).unwrap(), HeaderValue::from_static("1.0"));
            }
        }
        if let Some(content_type) = content_type {
            headers.insert(CONTENT_TYPE, HeaderValue::try_from(content_type).unwrap());
        }
        _ = Mode::of(&headers);
        if let Ok(event) = binary(&headers, &body) {
            let texts = [&event.id, &event.source, &event.event_type];
            prop_assert!(texts.iter().all(|text| !text.is_empty() && !text.chars().any(char::is_control)));
        }
        _ = structured(&body);
        _ = split(&body);
    }

    /// JSON that is nearly an event.
    #[test]
    fn any_members_are_an_event_or_a_problem(
        members in proptest::collection::btree_map("id|source|type|time|specversion|data|data_base64|[a-z]{1,4}|.{0,4}",
            prop_oneof![
                Just(json!(null)), Just(json!("1.0")), any::<bool>().prop_map(Value::from), any::<i64>().prop_map(Value::from),
                ".{0,20}".prop_map(Value::from), Just(json!([1])), Just(json!({ "a": 1 })),
            ], 0..10),
    ) {
        let text = Value::Object(members.into_iter().collect()).to_string();
        if let Ok(event) = structured(text.as_bytes()) {
            prop_assert!(event.rest.keys().all(|name| name.bytes().all(|byte| byte.is_ascii_alphanumeric())));
        }
    }

    /// What a sender encodes by the rules of the binding comes out as it went in.
    #[test]
    fn an_encoded_header_comes_out_as_it_went_in(text in "\\PC{0,30}") {
        let encoded: String = text.bytes().map(|byte| match byte {
            b'!' | b'#'..=b'$' | b'&'..=b'~' => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        }).collect();
        prop_assert_eq!(header_text(encoded.as_bytes()), Some(text));
    }
}
