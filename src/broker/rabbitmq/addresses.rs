//! Where a job is published to: straight to its queue, while that is known to stand, and otherwise to the exchange for jobs.
//!
//! To the broker's default exchange every queue is bound by its own name, and to find one there costs the broker an eighth
//! less of all that a message costs it than to follow a binding. But no net is under that exchange: what finds no queue comes
//! back. Whoever published it then publishes it to the exchange for jobs, which has one, and says so here.

use std::{
    collections::HashMap,
    sync::{PoisonError, RwLock, RwLockReadGuard},
};

use lapin::types::ShortString;
use tokio::sync::Notify;

use super::topology::Names;
use crate::job::Kind;

/// Where a message is published to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) exchange: ShortString,
    pub(super) key: ShortString,
}

/// The addresses of jobs.
#[derive(Debug)]
pub(super) struct Addresses {
    names: Names,
    exchange: ShortString,
    /// The queues that stand, of the kinds that go straight to them.
    queues: RwLock<HashMap<Kind, ShortString>>,
    lost: Notify,
}

impl Addresses {
    /// Every job goes to the exchange.
    pub(super) fn new(names: Names) -> Self {
        let exchange = names.jobs().as_str().into();
        Self { names, exchange, queues: RwLock::default(), lost: Notify::new() }
    }

    /// Where a job of this kind goes.
    pub(super) fn of(&self, kind: &Kind) -> Address {
        match self.read().get(kind) {
            Some(queue) => Address { exchange: ShortString::default(), key: queue.clone() },
            None => self.through_exchange(kind),
        }
    }

    /// Where it goes whatever stands.
    pub(super) fn through_exchange(&self, kind: &Kind) -> Address {
        Address { exchange: self.exchange.clone(), key: kind.as_str().into() }
    }

    /// Whether a message from this exchange had the net under it.
    pub(super) fn is_exchange(&self, name: &ShortString) -> bool {
        *name == self.exchange
    }

    /// Whether jobs of this kind go straight to their queue.
    pub(super) fn is_straight(&self, kind: &Kind) -> bool {
        self.read().contains_key(kind)
    }

    /// The queue of this kind stands.
    pub(super) fn stands(&self, kind: &Kind) {
        let queue = self.names.queue(kind).as_str().into();
        self.queues.write().unwrap_or_else(PoisonError::into_inner).insert(kind.clone(), queue);
    }

    /// The queue of this kind is gone. Answers whether that is news.
    pub(super) fn gone(&self, kind: &Kind) -> bool {
        let stood = self.queues.write().unwrap_or_else(PoisonError::into_inner).remove(kind).is_some();
        self.lost.notify_one();
        stood
    }

    /// No queue may be published to without an exchange of ours.
    pub(super) fn forbidden(&self) {
        self.queues.write().unwrap_or_else(PoisonError::into_inner).clear();
        self.lost.notify_one();
    }

    /// Waits until one that stood is gone.
    pub(super) async fn lost(&self) {
        self.lost.notified().await;
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<Kind, ShortString>> {
        self.queues.read().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn a_kind_goes_straight_while_its_queue_stands_and_no_other_does() {
        let addresses = Addresses::new(Names::new("shop"));
        let [paid, mail] = ["order.paid", "mail"].map(|name| Kind::new(name).expect("a kind"));
        let address = |exchange: &str, key: &str| Address { exchange: exchange.into(), key: key.into() };
        let exchange = address("shop.jobs", "order.paid");
        assert_eq!(addresses.of(&paid), exchange);
        addresses.stands(&paid);
        assert_eq!(addresses.of(&paid), address("", "shop.order.paid"));
        assert_eq!(addresses.through_exchange(&paid), exchange);
        assert_eq!(addresses.of(&mail), address("shop.jobs", "mail"));
        assert!(addresses.is_straight(&paid) && !addresses.is_straight(&mail));
        assert!(addresses.lost().now_or_never().is_none());
        assert!(addresses.gone(&paid) && !addresses.gone(&paid));
        assert_eq!(addresses.of(&paid), exchange);
        assert!(addresses.lost().now_or_never().is_some());
        addresses.stands(&mail);
        addresses.forbidden();
        assert_eq!(addresses.of(&mail), address("shop.jobs", "mail"));
        assert!(addresses.lost().now_or_never().is_some());
    }
}
