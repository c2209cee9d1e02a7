//! The job that checks an installation from end to end.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Invalid, Message, field};

/// `warren.probe` v1: does what it is told, so that every path through an installation can be taken on purpose. Every
/// field is optional; an empty probe succeeds at once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// How many bytes the output carries. At most 700,000.
    #[serde(default, deserialize_with = "field::whole", skip_serializing_if = "is_default")]
    pub payload_bytes: u32,
    /// How long the job waits before it does anything else, in milliseconds. At most 600,000.
    #[serde(default, deserialize_with = "field::whole", skip_serializing_if = "is_default")]
    pub work_ms: u32,
    /// How many attempts fail, to be retried, before the fate is met. At most 100.
    #[serde(default, deserialize_with = "field::whole", skip_serializing_if = "is_default")]
    pub fail_attempts: u16,
    /// How the job ends.
    #[serde(default, deserialize_with = "field::word", skip_serializing_if = "is_default")]
    pub fate: Fate,
    /// How many empty probes it asks for as follow-up jobs. At most 100.
    #[serde(default, deserialize_with = "field::whole", skip_serializing_if = "is_default")]
    pub follow_ups: u16,
}

/// How a probe ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// Succeeds.
    #[default]
    Ok,
    /// Fails at every attempt, to be retried.
    Retry,
    /// Fails for good at the first attempt.
    Dead,
    /// Panics.
    Panic,
    /// Never ends, but yields its thread.
    Hang,
    /// Never ends, and keeps its thread.
    Block,
    /// Ends the whole process, as a segmentation fault or the kernel's memory killer would.
    Abort,
}

/// Output is base64, a third longer than its bytes, and must stay under the limit of an output.
const MAX_PAYLOAD_BYTES: u32 = 700_000;
const MAX_WORK_MS: u32 = 600_000;
const MAX_FAIL_ATTEMPTS: u16 = 100;
const MAX_FOLLOW_UPS: u16 = 100;

impl Message for Probe {
    const KIND: &'static str = "warren.probe";
    const VERSION: u16 = 1;

    fn validate(&self) -> Result<(), Invalid> {
        let mut invalid = Invalid::default();
        let mut at_most = |pointer: &str, value: u32, max: u32| {
            if value > max {
                invalid.add(pointer, "out_of_range", format!("{value} is more than {max}, the most that is taken"));
            }
        };
        at_most("/payload_bytes", self.payload_bytes, MAX_PAYLOAD_BYTES);
        at_most("/work_ms", self.work_ms, MAX_WORK_MS);
        at_most("/fail_attempts", self.fail_attempts.into(), MAX_FAIL_ATTEMPTS.into());
        at_most("/follow_ups", self.follow_ups.into(), MAX_FOLLOW_UPS.into());
        invalid.into_result()
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
