//! Signatures, against the specification's own vector and its own library.

use warren_workers::webhook::sign::{Secret, SecretError, signatures};

/// The vector that the libraries of Standard Webhooks test themselves with.
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
const TIMESTAMP: i64 = 1_614_265_330;
const BODY: &[u8] = br#"{"test": 2432232314}"#;
const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

fn secret(text: &str) -> Secret {
    text.parse().expect("a good secret")
}

#[test]
fn the_vector_of_the_specification_comes_out() {
    assert_eq!(signatures(&[secret(SECRET)], ID, TIMESTAMP, BODY), SIGNATURE);
}

#[test]
fn every_secret_signs_and_a_library_that_knows_one_of_them_verifies() {
    let old = secret(SECRET);
    let new_text = "whsec_bmV3IG5ldyBuZXcgbmV3IG5ldyBuZXcgbmV3IG5ldyE=";
    let timestamp = jiff::Timestamp::now().as_second();
    let value = signatures(&[secret(new_text), old], ID, timestamp, BODY);
    assert_eq!(value.split(' ').count(), 2);
    let mut headers = std::collections::HashMap::new();
    for (name, value) in
        [("webhook-id", ID), ("webhook-timestamp", &timestamp.to_string()), ("webhook-signature", &value)]
    {
        headers.insert(name.to_owned(), value.to_owned());
    }
    for known in [SECRET, new_text] {
        let library = standardwebhooks::Webhook::new(known).expect("a good secret");
        let map: http::HeaderMap = (&headers).try_into().expect("good headers");
        library.verify(BODY, &map).expect("a signature that the library knows");
        library.verify(b"another body", &map).expect_err("a signature of this body only");
    }
}

#[test]
fn a_secret_has_its_form_and_is_never_printed() {
    assert_eq!("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse::<Secret>(), Err(SecretError::Prefix));
    assert_eq!("whsec_!".parse::<Secret>(), Err(SecretError::Base64));
    assert_eq!("whsec_c2hvcnQ=".parse::<Secret>(), Err(SecretError::Length(5)));
    assert!(!format!("{:?}", secret(SECRET)).contains("Mf"));
}
