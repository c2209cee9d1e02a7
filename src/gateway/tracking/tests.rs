//! What needs no socket to be seen: how times are corrected, and ids that nobody gave.

use super::*;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// The four times of one event: originalTimestamp, sentAt, receivedAt, timestamp.
#[test]
fn a_clock_that_is_off_is_corrected_by_how_far_it_is_off() {
    let cases = [
        // A clock that is right, and an event that waited 4 ms; the answer took 328 ms on its way.
        (
            "2015-12-10T04:08:31.577Z",
            "2015-12-10T04:08:31.581Z",
            "2015-12-10T04:08:31.909Z",
            "2015-12-10T04:08:31.905Z",
        ),
        // An hour fast: sent 30 s after it happened, so it happened 30 s before it came in.
        ("2026-03-01T11:00:00Z", "2026-03-01T11:00:30Z", "2026-03-01T10:00:31Z", "2026-03-01T10:00:01Z"),
        // Ten years slow.
        ("2016-03-01T10:00:00Z", "2016-03-01T10:00:30Z", "2026-03-01T10:00:31Z", "2026-03-01T10:00:01Z"),
        // Imported: a day old when it was sent.
        ("2026-02-28T10:00:00Z", "2026-03-01T10:00:00Z", "2026-03-01T10:00:00.25Z", "2026-02-28T10:00:00.25Z"),
        // Offsets do not matter.
        ("2026-03-01T12:00:00+02:00", "2026-03-01T05:00:30-05:00", "2026-03-01T10:00:30Z", "2026-03-01T10:00:00Z"),
        // Ahead of its own sending, by less than five minutes and by more.
        ("2026-03-01T10:04:59Z", "2026-03-01T10:00:00Z", "2026-03-01T10:00:00Z", "2026-03-01T10:04:59Z"),
        ("2026-03-01T10:05:01Z", "2026-03-01T10:00:00Z", "2026-03-01T10:00:00Z", "2026-03-01T10:05:00Z"),
        // At either end of what is taken, by a clock that is ahead of ours and by one that is behind.
        ("0001-01-01T00:00:00Z", "2026-03-01T10:00:09Z", "2026-03-01T10:00:00Z", "0001-01-01T00:00:00Z"),
        ("0001-01-01T00:00:00Z", "2026-03-01T09:59:51Z", "2026-03-01T10:00:00Z", "0001-01-01T00:00:09Z"),
        ("9999-01-01T00:00:00Z", "-009999-01-03T00:00:00Z", "2026-03-01T10:00:00Z", "2026-03-01T10:05:00Z"),
    ];
    for (original, sent, received, expected) in cases {
        let ts = happened(Some(at(original)), Some(at(sent)), at(received));
        assert_eq!(ts, at(expected), "{original} sent at {sent}");
    }
}

#[test]
fn what_is_not_said_is_not_corrected() {
    let received = at("2026-03-01T10:00:00Z");
    let said = at("2026-03-01T08:00:00Z");
    assert_eq!(happened(Some(said), None, received), said);
    assert_eq!(happened(None, Some(said), received), received);
    assert_eq!(happened(None, None, received), received);
    let ahead = at("2026-03-01T12:00:00Z");
    assert_eq!(happened(Some(ahead), None, received), at("2026-03-01T10:05:00Z"));
}

#[test]
fn events_without_an_id_get_one_each() {
    let ids: HashSet<_> = (0..100).map(|_| new_message_id()).collect();
    assert_eq!(ids.len(), 100);
    assert!(ids.iter().all(|id| id.parse::<uuid::Uuid>().is_ok_and(|id| id.get_version_num() == 4)));
}
