//! What people did is kept as it came.

use warren_messages::{analytics::Event, codec};
use warren_workers::{analytics::Keep, testing};

#[tokio::test]
async fn an_event_is_its_own_output() {
    let text = br#"{"call":"page","event":"Index","anonymous_id":"a1","ts":"2026-03-01T10:00:00Z","message_id":"m",
        "props":{"url":"https://x","n":[1,null]},"ctx":{"ip":"8.8.8.8"}}"#;
    let event: Event = codec::from_json(text).expect("an event");
    let done = testing::perform(&Keep, event.clone()).await;
    assert_eq!(done.result.expect("it cannot fail"), event);
}
