//! Frozen bytes. `golden/*.msgpack` was written by Python's msgpack from the JSON beside it: what this crate writes and
//! reads must be what any other client writes and reads, in this build and in every later one.

use std::path::{Path, PathBuf};

use serde_json::Value;
use warren_messages::{Message, analytics::Event, codec, event::Received, probe::Probe, webhook::Deliver};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn read(name: &str) -> Vec<u8> {
    std::fs::read(golden(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn reads_and_writes<M: Message + PartialEq + std::fmt::Debug>(name: &str) {
    let (text, bytes) = (read(&format!("{name}.json")), read(&format!("{name}.msgpack")));
    let from_json: M = codec::from_json(&text).unwrap_or_else(|error| panic!("{name}: {error:?}"));
    let from_bytes: M = codec::decode(M::VERSION, &bytes).unwrap_or_else(|error| panic!("{name}: {error:?}"));
    assert_eq!(from_json, from_bytes, "{name}");
    from_json.validate().unwrap_or_else(|invalid| panic!("{name}: {invalid}"));
    assert_eq!(codec::encode(&from_json).expect("small"), bytes, "{name}: other bytes than Python's");
    let value: Value = serde_json::from_slice(&text).expect("JSON");
    assert_eq!(codec::to_json(&bytes).expect("a map"), value, "{name}: another value than the JSON beside it");
    // Typed, MessagePack, JSON value, typed again.
    let again: M = serde_json::from_value(value).expect("its own JSON");
    assert_eq!(again, from_json, "{name}");
}

#[test]
fn a_webhook_reads_and_writes_what_another_client_does() {
    reads_and_writes::<Deliver>("webhook.deliver.v1");
    reads_and_writes::<Deliver>("webhook.deliver.bytes.v1");
}

#[test]
fn a_received_event_reads_and_writes_what_another_client_does() {
    reads_and_writes::<Received>("event.received.v1");
    reads_and_writes::<Received>("event.received.bytes.v1");
}

#[test]
fn a_probe_reads_and_writes_what_another_client_does() {
    reads_and_writes::<Probe>("warren.probe.v1");
    reads_and_writes::<Probe>("warren.probe.empty.v1");
}

#[test]
fn a_tracked_event_reads_and_writes_what_another_client_does() {
    reads_and_writes::<Event>("analytics.event.v1");
    reads_and_writes::<Event>("analytics.event.least.v1");
}

fn schema_is_frozen<M: Message>() {
    let schema = serde_json::to_string_pretty(&warren_messages::schema::of::<M>()).expect("JSON") + "\n";
    let name = format!("{}.v{}.schema.json", M::KIND, M::VERSION);
    // A schema that has changed on purpose is written anew, and its difference read.
    if std::env::var("WARREN_GOLDEN").is_ok_and(|value| value == "write") {
        std::fs::write(golden(&name), &schema).expect("the folder of golden files");
    }
    let frozen = String::from_utf8(read(&name)).expect("UTF-8");
    assert_eq!(schema, frozen, "the layout of {name} has changed: a field that others rely on needs a new version");
}

#[test]
fn a_published_schema_does_not_change() {
    schema_is_frozen::<Event>();
    schema_is_frozen::<Deliver>();
    schema_is_frozen::<Received>();
    schema_is_frozen::<Probe>();
}
