//! warren: an event-driven message-queue worker system.
//!
//! The library behind the one binary. `src/README.md` is the map: one picture, the way of a job, the invariants, and where
//! to look.

pub mod admin;
pub mod app;
pub mod broker;
pub mod cli;
pub mod clock;
pub mod config;
pub mod crash;
pub mod dead_letters;
pub mod dispatcher;
mod foreign;
pub mod gateway;
pub mod health;
pub mod id;
pub mod job;
pub mod keeper;
pub mod keyring;
pub mod keys;
pub mod nearest;
pub mod pruner;
pub mod retry;
pub mod route;
pub mod runtime;
pub mod schema;
pub mod shutdown;
pub mod sqlite;
pub mod store;
pub mod telemetry;
