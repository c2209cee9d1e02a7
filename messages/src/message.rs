//! The contract of a message.

use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{DecodeError, Invalid};

/// A typed job body: what a producer and a worker must agree on, and nothing else.
///
/// Derive `Serialize`, `Deserialize` and `JsonSchema`, and put `#[serde(deny_unknown_fields)]` on every struct, so that
/// a misspelt field is refused and not lost. A message holds no 128-bit integer, no map with keys that are not text, no
/// `Option` inside an `Option`, no not-a-number, and for bytes only [`Bytes`](crate::Bytes): those do not survive the
/// way from JSON to MessagePack and back.
///
/// ```
/// use schemars::JsonSchema;
/// use serde::{Deserialize, Serialize};
/// use warren_messages::{Invalid, Message, codec};
///
/// /// Pays one invoice.
/// #[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
/// #[serde(deny_unknown_fields)]
/// struct PayInvoice {
///     invoice: String,
///     cents: u64,
/// }
///
/// impl Message for PayInvoice {
///     const KIND: &'static str = "invoice.pay";
///     const VERSION: u16 = 1;
///
///     fn validate(&self) -> Result<(), Invalid> {
///         let mut invalid = Invalid::default();
///         if self.cents == 0 {
///             invalid.add("/cents", "out_of_range", "an invoice of nothing is not paid: give at least 1");
///         }
///         invalid.into_result()
///     }
/// }
///
/// let message = PayInvoice { invoice: "2026-117".into(), cents: 12_900 };
/// let body = codec::encode(&message)?;
/// assert_eq!(codec::decode::<PayInvoice>(1, &body)?, message);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Message: Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static {
    /// What is to be done, as `noun.verb` in lower case: `invoice.pay`. Permanent once a message was published.
    const KIND: &'static str;

    /// The layout that this build writes, from 1. It grows by one when an older build could not read the new layout.
    const VERSION: u16;

    /// Two messages of one kind and one tenant with the same key are the same job. `None`: every message is a job.
    fn dedup_key(&self) -> Option<String> {
        None
    }

    /// The rules beyond the types. Reports every problem, not the first one.
    fn validate(&self) -> Result<(), Invalid> {
        Ok(())
    }

    /// Turns the body of an older `version` into today's layout. The default knows no other version.
    fn upcast(version: u16, body: Value) -> Result<Value, DecodeError> {
        drop(body);
        Err(DecodeError::UnknownVersion { version, reads: Self::VERSION })
    }
}
