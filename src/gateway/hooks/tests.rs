//! Every scheme against vectors that others published, and against bytes that nobody meant.

use http::{HeaderName, HeaderValue};
use proptest::prelude::*;

use super::*;

const NOW: i64 = 1_614_265_330;

/// The vector that the libraries of Standard Webhooks test themselves with.
const STANDARD_SECRET: &[u8] = &[
    0x31, 0xf2, 0x90, 0xf6, 0xbf, 0x06, 0x29, 0x8a, 0xab, 0x4f, 0x08, 0xd4, 0x3c, 0x3f, 0x08, 0x2c, 0xf6, 0x48, 0xa3,
    0x62, 0xda, 0x2d, 0xa4, 0xb0,
];
const STANDARD_BODY: &[u8] = br#"{"test": 2432232314}"#;
const STANDARD_HEADERS: [(&str, &str); 3] = [
    ("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek"),
    ("webhook-timestamp", "1614265330"),
    ("webhook-signature", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="),
];

/// Twilio's published example, and those that its libraries test themselves with.
const TWILIO_URL: &str = "https://mycompany.com/myapp.php";
const TWILIO_QUERY: &str = "foo=1&bar=2";
const TWILIO_FORM: &[u8] =
    b"Digits=1234&To=%2B18005551212&From=%2B14158675309&Caller=%2B14158675309&CallSid=CA1234567890ABCDE";

struct Sent<'a> {
    scheme: Scheme,
    secrets: Vec<SourceSecret>,
    headers: HeaderMap,
    query: Option<&'a str>,
    body: &'a [u8],
    now: i64,
}

impl<'a> Sent<'a> {
    fn new(scheme: Scheme, secret: &[u8], headers: &[(&'static str, &str)], body: &'a [u8]) -> Self {
        let header = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap())
        };
        let headers = headers.iter().map(header).collect();
        Self { scheme, secrets: vec![secret.into()], headers, query: None, body, now: NOW }
    }

    fn verify(&self) -> Result<Verified, Refused> {
        let received = Received {
            headers: &self.headers,
            query: self.query,
            body: self.body,
            secrets: &self.secrets,
            tolerance: Duration::from_mins(5),
            now: self.now,
        };
        verify(&self.scheme, &received)
    }

    fn code(&self) -> &'static str {
        self.verify().expect_err("it is not good").code()
    }
}

fn standard(headers: &[(&'static str, &str)]) -> Sent<'static> {
    Sent::new(Scheme::StandardWebhooks, STANDARD_SECRET, headers, STANDARD_BODY)
}

fn twilio(signature: &str, query: &'static str, body: &'static [u8]) -> Sent<'static> {
    let scheme = Scheme::Twilio { url: TWILIO_URL.into() };
    let sent = Sent::new(scheme, b"12345", &[("x-twilio-signature", signature)], body);
    Sent { query: Some(query), ..sent }
}

#[test]
fn the_vector_of_standard_webhooks_is_good_under_both_names_and_among_others() {
    let verified = standard(&STANDARD_HEADERS).verify().expect("the vector");
    assert_eq!((verified.id.as_str(), verified.event.as_str()), ("msg_p5jXN8AQM9LWM0D4loKWxJek", "event"));
    assert_eq!(verified.time, Some(Timestamp::from_second(NOW).unwrap()));
    let [(_, id), (_, timestamp), (_, signature)] = STANDARD_HEADERS;
    standard(&[("svix-id", id), ("svix-timestamp", timestamp), ("svix-signature", signature)]).verify().expect("Svix");
    let list = format!("v1a,AAAA v1,{} v2,x {signature} v1,!", "A".repeat(43) + "=");
    standard(&[("webhook-id", id), ("webhook-timestamp", timestamp), ("webhook-signature", &list)])
        .verify()
        .expect("one of the list");
}

#[test]
fn a_standard_webhook_is_refused_for_what_is_missing_wrong_or_of_another_kind() {
    let [(_, id), (_, timestamp), (_, signature)] = STANDARD_HEADERS;
    let asymmetric = signature.replace("v1,", "v1a,");
    let of_another = "v1,AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    for (id, timestamp, signature) in [
        (id, timestamp, ""),
        (id, timestamp, "v1,"),
        (id, timestamp, asymmetric.as_str()),
        (id, timestamp, of_another),
        (id, timestamp, &signature[3..]),
        (id, timestamp, &signature[..signature.len() - 1]),
        ("", timestamp, signature),
        ("msg.1", timestamp, signature),
        ("msg_p5jXN8AQM9LWM0D4loKWxJej", timestamp, signature),
        (id, "1614265331", signature),
        (id, "01614265330", signature),
    ] {
        let headers = [("webhook-id", id), ("webhook-timestamp", timestamp), ("webhook-signature", signature)];
        assert_eq!(standard(&headers).code(), "bad_signature", "{headers:?}");
    }
    for left_out in 0..3 {
        let mut headers = STANDARD_HEADERS.to_vec();
        headers.remove(left_out);
        assert_eq!(standard(&headers).code(), "bad_signature", "{headers:?}");
    }
    for timestamp in ["", "now", "-1614265330", "+1614265330", "1614265330.0", "99999999999999999999", "0x10"] {
        let headers = [("webhook-id", id), ("webhook-timestamp", timestamp), ("webhook-signature", signature)];
        assert_eq!(standard(&headers).code(), "stale_timestamp", "{timestamp}");
    }
}

#[test]
fn the_tolerance_holds_both_ways_to_the_second() {
    for (now, code) in [(-301, Some("stale_timestamp")), (-300, None), (300, None), (301, Some("stale_timestamp"))] {
        let sent = Sent { now: NOW + now, ..standard(&STANDARD_HEADERS) };
        assert_eq!(sent.verify().err().map(|refused| refused.code()), code, "{now} s");
    }
    let Refused::Stale(detail) = Sent { now: NOW + 360, ..standard(&STANDARD_HEADERS) }.verify().unwrap_err() else {
        panic!("it is stale")
    };
    assert!(detail.contains("lies 360 s behind") && detail.contains("1614265690"), "{detail}");
}

#[test]
fn the_example_of_github_is_good_and_a_changed_byte_is_not() {
    let good = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
    let secret = b"It's a Secret to Everybody";
    let headers = [("x-hub-signature-256", good), ("x-github-event", "push"), ("x-github-delivery", "72d3162e")];
    let sent = |headers: &[_], body| Sent::new(Scheme::GithubSha256, secret, headers, body);
    let verified = sent(&headers, b"Hello, World!").verify().expect("the example");
    assert_eq!(verified, Verified { id: "72d3162e".into(), event: "push".into(), time: None });
    assert_eq!(sent(&headers, b"Hello, World?").code(), "bad_signature");
    let other = good.replace('7', "8");
    for bad in ["", "sha256=", &good[7..], "sha1=757107ea0eb2509fc211221cce984b8a37570b6d", &other] {
        assert_eq!(sent(&[("x-hub-signature-256", bad)], b"Hello, World!").code(), "bad_signature", "{bad}");
    }
    // Who signs as GitHub does may say nothing else.
    let verified = sent(&headers[..1], b"Hello, World!").verify().expect("the example");
    assert_eq!(verified.event, "event");
    assert_eq!(verified.id, sent(&headers[..1], b"Hello, World!").verify().unwrap().id);
    assert!(verified.id.starts_with("body-"));
}

#[test]
fn the_examples_of_twilio_are_good() {
    let verified = twilio("RSOYDt4T1cUTdK1PDd93/VVr8B8=", TWILIO_QUERY, TWILIO_FORM).verify().expect("the example");
    assert_eq!(verified.event, "event");
    // Values of one name are sorted, and equal ones count once.
    let repeated = b"Sid=CA123&SidAccount=AC123&Digits=5678&Digits=1234&Digits=1234";
    twilio("IK+Dwps556ElfBT0I3Rgjkr1wJU=", TWILIO_QUERY, repeated).verify().expect("several values");
    let query = "foo=1&bar=2&bodySHA256=0a1ff7634d9ab3b95db5c9a2dfe9416e41502b283a80c7cf19632632f96e6620";
    let json = br#"{"property": "value", "boolean": true}"#;
    twilio("a9nBmqA0ju/hNViExpshrM61xv4=", query, json).verify().expect("a body by its digest");
    assert_eq!(twilio("a9nBmqA0ju/hNViExpshrM61xv4=", query, b"{}").code(), "bad_signature");
    assert_eq!(twilio("RSOYDt4T1cUTdK1PDd93/VVr8B8=", TWILIO_QUERY, json).code(), "bad_signature");
    assert_eq!(twilio("RSOYDt4T1cUTdK1PDd93/VVr8B8=", "foo=1&bar=3", TWILIO_FORM).code(), "bad_signature");
    assert_eq!(twilio("RSOYDt4T1cUTdK1PDd93", TWILIO_QUERY, TWILIO_FORM).code(), "bad_signature");
}

#[test]
fn of_several_secrets_any_will_do() {
    let mut sent = standard(&STANDARD_HEADERS);
    sent.secrets = vec![b"the new one".as_slice().into(), STANDARD_SECRET.into()];
    sent.verify().expect("the old one still signs");
    sent.secrets.pop();
    assert_eq!(sent.code(), "bad_signature");
}

#[test]
fn a_token_is_good_whole_and_not_in_part() {
    let sent = |value: &str, secret: &[u8]| {
        Sent::new(
            Scheme::Bearer,
            secret,
            &[("authorization", value), ("x-event-id", "7"), ("x-event-type", "a.b")],
            b"{}",
        )
    };
    let verified = sent("bearer 0123456789abcdef", b"0123456789abcdef").verify().expect("the token");
    assert_eq!(verified, Verified { id: "7".into(), event: "a.b".into(), time: None });
    for bad in
        ["Bearer 0123456789abcde", "Bearer 0123456789abcdef0", "Bearer ", "0123456789abcdef", "Basic 0123456789abcdef"]
    {
        assert_eq!(sent(bad, b"0123456789abcdef").code(), "bad_signature", "{bad}");
    }
}

fn any_scheme() -> impl Strategy<Value = Scheme> {
    prop_oneof![
        Just(Scheme::StandardWebhooks),
        Just(Scheme::GithubSha256),
        Just(Scheme::Stripe),
        Just(Scheme::Twilio { url: TWILIO_URL.into() }),
        Just(Scheme::Bearer),
    ]
}

/// Something that a header may hold: any bytes, or pieces of what belongs there in any order.
fn any_value() -> impl Strategy<Value = Vec<u8>> {
    let pieces = ["v1,", "v1a,", "v1=", "t=", "sha256=", ",", "=", " ", "Bearer ", "1614265330", "g0hM9Ss", "00", "."];
    let pieced =
        prop::collection::vec(prop::sample::select(pieces.to_vec()), 0..12).prop_map(|some| some.concat().into());
    prop_oneof![prop::collection::vec(any::<u8>(), 0..80), pieced]
}

proptest! {
    #[test]
    fn whatever_comes_in_is_refused_and_nothing_panics(
        scheme in any_scheme(),
        values in prop::collection::vec(any_value(), 7),
        query in proptest::option::of("[ -~]{0,60}"),
        body in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let names = [
            "webhook-id", "webhook-timestamp", "webhook-signature", "x-hub-signature-256", "stripe-signature",
            "x-twilio-signature", "authorization",
        ];
        let mut sent = Sent::new(scheme, b"a secret that nobody guesses", &[], &body);
        for (name, value) in names.into_iter().zip(&values) {
            if let Ok(value) = HeaderValue::from_bytes(value) {
                sent.headers.insert(name, value);
            }
        }
        sent.query = query.as_deref();
        prop_assert!(sent.verify().is_err());
    }

    #[test]
    fn what_a_good_webhook_says_of_itself_is_a_name_whatever_stands_there(
        body in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let authorization = [("authorization", "Bearer 0123456789abcdef")];
        let sent = Sent::new(Scheme::Bearer, b"0123456789abcdef", &authorization, &body);
        let verified = sent.verify().expect("the token");
        prop_assert!(!verified.id.is_empty() && !verified.event.is_empty());
    }
}
