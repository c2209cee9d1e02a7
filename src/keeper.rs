//! The keeper: what the broker could not deliver is not lost.
//!
//! Empties the two queues that nobody else reads. What the broker has given up after too many deliveries is not convicted
//! by that: it is put off, for longer each time, and runs alone when it comes again. What no queue was bound for, and what
//! cannot be read, becomes a dead letter with its exact bytes. Like every writer it obeys the fence, and settles only what
//! is recorded. The embedded broker gives nothing up.

use std::{sync::Arc, time::Duration};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use warren_messages::codec;

use crate::{
    broker::{Delivery, Leftovers, Sink, Subscription},
    clock, crash_point, foreign,
    job::{Completion, Failure, Outcome, Parking, Suspicion, chain},
    retry::Reconnect,
    store::{Record, Store, StoreError},
    telemetry::KEPT,
};

/// How long what was given up is put off.
const GIVEN_UP: Parking =
    Parking { first: Duration::from_mins(1), longest: Duration::from_hours(1), limit: Duration::from_hours(24) };

/// Why something is left over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    GivenUp,
    Unrouted,
}

/// Keeps what the broker could not deliver.
pub struct Keeper {
    record: Box<dyn Record>,
    leftovers: Arc<dyn Leftovers>,
}

struct Inbox {
    why: Why,
    line: mpsc::UnboundedSender<(Why, Delivery)>,
}

impl Sink for Inbox {
    fn deliver(&self, burst: Vec<Delivery>) {
        for delivery in burst {
            // What is out when the keeper ends comes again.
            _ = self.line.send((self.why, delivery));
        }
    }
}

impl Keeper {
    /// A keeper between a broker and a store.
    pub fn new(store: &dyn Store, leftovers: Arc<dyn Leftovers>) -> Self {
        Self { record: store.lane(), leftovers }
    }

    /// Works until it is told to stop.
    pub async fn run(mut self, stop: CancellationToken) {
        // What bounds it is the prefetch.
        let (line, mut inbox) = mpsc::unbounded_channel();
        let sink = |why| Arc::new(Inbox { why, line: line.clone() });
        let given_up: Arc<dyn Subscription> = self.leftovers.given_up(sink(Why::GivenUp));
        let unrouted = self.leftovers.unrouted(sink(Why::Unrouted));
        while let Some(Some((why, delivery))) = stop.run_until_cancelled(inbox.recv()).await {
            let receipt = delivery.receipt;
            let completion = completion(why, delivery);
            info!(job = %completion.envelope.id, kind = %completion.envelope.kind, ?why, "kept what could not be delivered");
            let kept = stop.run_until_cancelled(self.keep(completion)).await;
            if kept.is_none() {
                break;
            }
            crash_point!("keeper: recorded, not settled");
            metrics::counter!(KEPT).increment(1);
            match why {
                Why::GivenUp => given_up.settle(&[receipt]),
                Why::Unrouted => unrouted.settle(&[receipt]),
            }
        }
        given_up.close().await;
        unrouted.close().await;
    }

    /// Records, however long it takes.
    async fn keep(&mut self, completion: Completion) {
        let mut batch = Arc::new(vec![completion]);
        let mut pauses = Reconnect::new();
        loop {
            let Err(error) = self.record.record(&batch, 0..1).await else { return };
            let pause = pauses.pause();
            warn!(error = chain(&error), ?pause, "cannot record what could not be delivered; it waits");
            if let StoreError::Data(cause) = &error {
                let stripped = stripped(&batch[0], &chain(cause.as_ref()));
                batch = Arc::new(vec![stripped]);
            }
            tokio::time::sleep(pause).await;
        }
    }
}

fn completion(why: Why, delivery: Delivery) -> Completion {
    let Delivery { envelope, body, .. } = delivery;
    let envelope = match envelope {
        Ok(envelope) => envelope,
        Err(bad) => return foreign::undecodable(clock::now(), body, bad),
    };
    if codec::check(&body).is_err() {
        return foreign::no_body(envelope, body);
    }
    let outcome = match why {
        Why::GivenUp => Outcome::Parked {
            reason: "delivery_limit".into(),
            text: "the broker has given it out too often; it runs alone the next time".into(),
            parking: GIVEN_UP,
            suspicion: match envelope.suspicion {
                Suspicion::None => Suspicion::Suspected,
                suspicion => suspicion,
            },
        },
        Why::Unrouted => {
            let kind = &envelope.kind;
            let text = format!(
                "no queue is bound for the kind {kind}: no worker that was started here is for it, or its queue was \
                 deleted and `warren topology apply` was not run since"
            );
            Outcome::Dead { failure: Failure::new("unroutable", text) }
        }
    };
    Completion { envelope, body: Some(body), outcome }
}

/// What the database refuses is what came with the message: its identity and its bytes are kept.
fn stripped(completion: &Completion, cause: &str) -> Completion {
    let mut envelope = completion.envelope.clone();
    (envelope.source, envelope.trace, envelope.root) = (None, None, None);
    let failure = Failure::new("unrecordable", format!("the database refuses what came with it: {cause}"));
    Completion { envelope, body: completion.body.clone(), outcome: Outcome::Dead { failure } }
}
