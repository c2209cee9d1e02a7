//! One line out of a queue.

use std::{fmt, sync::Arc};

use async_trait::async_trait;

use super::queue::Queue;
use crate::broker::{Receipt, Subscription};

/// One line out of a queue.
pub(super) struct Line {
    queue: Arc<Queue>,
    number: usize,
}

impl Line {
    pub(super) fn new(queue: Arc<Queue>, number: usize) -> Self {
        Self { queue, number }
    }
}

#[async_trait]
impl Subscription for Line {
    fn settle(&self, receipts: &[Receipt]) {
        self.queue.settle(self.number, receipts);
    }

    fn give_back(&self, receipts: &[Receipt]) {
        self.queue.give_back(self.number, receipts);
    }

    fn set_prefetch(&self, prefetch: u16) {
        self.queue.set_prefetch(self.number, prefetch);
    }

    async fn stop(&self) {
        self.queue.stop(self.number).await;
    }

    fn resume(&self) {
        self.queue.resume(self.number);
    }

    async fn close(&self) {
        self.queue.close(self.number).await;
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Line({}, {})", self.queue.kind(), self.number)
    }
}
