//! An event that no route took is kept.

use warren_messages::{codec, event::Received};
use warren_workers::{event::Keep, testing};

#[tokio::test]
async fn an_event_is_its_own_output_byte_for_byte() {
    let text = r#"{"type":"a.b","source":"/x","id":"7","headers":{"subject":"s"},"data":{"n":[1,0.1,null]}}"#;
    let event: Received = codec::from_json(text.as_bytes()).expect("an event");
    let done = testing::perform(&Keep, event.clone()).await;
    let Ok(output) = done.result;
    // As long as the body that was accepted, so that it always fits.
    assert_eq!(codec::encode(&output).expect("small"), codec::encode(&event).expect("small"));
    assert!(done.emissions.is_empty());
}
