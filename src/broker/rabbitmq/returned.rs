//! What came back from the broker because it found no queue.

use lapin::{BasicProperties, message::BasicReturnMessage};
use tracing::warn;

use super::{
    addresses::{Address, Addresses},
    ledger::Ledger,
};

/// A message that came back, as it is to be published again.
pub(super) struct Again {
    pub(super) number: u64,
    pub(super) address: Address,
    pub(super) body: Vec<u8>,
    pub(super) properties: BasicProperties,
}

/// What came back and is not confirmed yet.
#[derive(Default)]
pub(super) struct Returned(Vec<Again>);

impl Returned {
    /// Takes back a message that went straight to its queue. From now on its kind goes to the exchange, and so does this
    /// one, once it is confirmed. The error says what is wrong with a message that must not have come.
    pub(super) fn take_back(
        &mut self,
        BasicReturnMessage { delivery, .. }: BasicReturnMessage,
        ledger: &Ledger,
        addresses: &Addresses,
    ) -> Result<(), Stray> {
        if addresses.is_exchange(&delivery.exchange) {
            return Err(Stray::FromExchange);
        }
        let id = delivery.properties.message_id().as_ref().and_then(|id| id.as_str().parse().ok());
        let is_new = |number| self.0.iter().all(|again| again.number != number);
        let (number, kind) = id.and_then(|id| ledger.find(id, is_new)).ok_or(Stray::Unknown)?;
        if addresses.gone(kind) {
            warn!(%kind, "the queue of a kind is gone: its jobs go to the exchange, which keeps what has no queue");
        }
        let address = addresses.through_exchange(kind);
        self.0.push(Again { number, address, body: delivery.data, properties: delivery.properties });
        Ok(())
    }

    /// The message with this number, if it came back.
    pub(super) fn take(&mut self, number: u64) -> Option<Again> {
        let place = self.0.iter().position(|again| again.number == number)?;
        Some(self.0.swap_remove(place))
    }
}

/// A message that came back and must not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Stray {
    /// With the net under the exchange intact nothing ever does.
    #[error("a message came back unroutable, so the exchange for unroutable ones does not work")]
    FromExchange,
    /// It is none that is on its way.
    #[error("a message came back that was not sent")]
    Unknown,
}
