//! warren.

pub mod broker;
pub mod clock;
pub mod id;
pub mod job;
pub mod retry;
pub mod runtime;
pub mod sqlite;
pub mod store;
pub mod telemetry;
