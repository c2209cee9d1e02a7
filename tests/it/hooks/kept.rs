//! What is kept of a webhook's body: nothing of it is lost, and so much of it is taken.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};

use super::{
    open, received,
    signer::{Hook, Signer},
    taken,
};
use crate::harness::http::parts;

#[tokio::test(flavor = "multi_thread")]
async fn json_that_breaks_a_rule_of_bodies_is_kept_byte_for_byte_and_what_is_no_json_is_text() {
    let Some(mut signer) = Signer::start() else { return };
    let (installation, _up, http) = open();
    let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    let cases = [
        "{\"amount\": 18446744073709551616}".to_owned(),
        "[-9223372036854775809]".to_owned(),
        "{\"a\": 1, \"a\": 2}".to_owned(),
        "{\"n\": 1e999}".to_owned(),
        "[\"\\ud800\"]".to_owned(),
        // As the data of an event it stands a level deeper.
        nested(64),
        nested(65),
        nested(5000),
        "\u{feff}{\"a\": 1, \"a\": 2}".to_owned(),
    ];
    for (index, body) in cases.iter().enumerate() {
        let hook = Hook::github(&mut signer, "push", &format!("d-{index}"), body);
        let event = taken(&installation, &http, &hook).await;
        assert_eq!(event["data_base64"], BASE64.encode(body), "{body:.60}");
        assert_eq!(event["data"], Value::Null, "{body:.60}");
    }
    for (index, body) in ["a=1&b=2", "{\"a\": 1", "{a: 1}", "[1] [2]", "NaN"].iter().enumerate() {
        let hook = Hook::github(&mut signer, "push", &format!("t-{index}"), body);
        let event = taken(&installation, &http, &hook).await;
        assert_eq!((&event["data"], &event["data_base64"]), (&json!(body), &Value::Null));
    }
    for (index, body) in ["18446744073709551615", "[-9223372036854775808]", &nested(63)].iter().enumerate() {
        let hook = Hook::github(&mut signer, "push", &format!("j-{index}"), body);
        let event = taken(&installation, &http, &hook).await;
        assert_eq!(event["data"], body.parse::<Value>().unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn so_much_of_a_body_is_taken_as_the_documentation_says_and_no_more() {
    let (_installation, up, http) = open();
    let status = async |body: Vec<u8>| {
        let (status, answer) = parts(Hook::bearer(&body).request(&http).send().await.unwrap()).await;
        (status, answer["code"].as_str().unwrap().to_owned())
    };
    let bytes = |count: usize| vec![0xff; count];
    let text = |count: usize| vec![b'x'; count];
    // `[0.5,0.5]`: nine bytes for each once it is encoded.
    let fractions = |count: usize| format!("[{}0.5]", "0.5,".repeat(count / 4)).into_bytes();
    let (taken, too_large) = ((202, "accepted".to_owned()), (413, "too_large".to_owned()));
    let (mebibyte, rest) = (1 << 20, 1024);
    for (what, fits, does_not) in [
        ("text", text(mebibyte - rest), text(mebibyte)),
        ("bytes", bytes(mebibyte / 4 * 3 - rest), bytes(mebibyte / 4 * 3)),
        ("fractions", fractions(mebibyte / 9 * 4 - rest), fractions(mebibyte / 9 * 4)),
    ] {
        assert_eq!(status(fits).await, taken, "{what}");
        assert_eq!(status(does_not).await, too_large, "{what}");
    }
    assert_eq!(received(&up, "other", "refused").await, 3);
}
