//! What a warren worker is, and the workers that warren brings.
//!
//! A [`Worker`] performs one kind of job: it takes a typed message and returns a typed output or an error that states
//! its own fate. It knows no broker, no database and no HTTP server; what it may ask of the world around it is in
//! [`Context`]. That is why it can be tested with [`testing::perform`] and nothing else.

pub mod context;
pub mod policy;
pub mod testing;
pub mod worker;

pub mod analytics;
pub mod event;
pub mod probe;
pub mod webhook;

pub use crate::{
    context::{Context, EmitError},
    policy::{Backoff, Policy, Retention},
    worker::{Disposition, Job, WorkError, Worker},
};

/// The worker in thirty lines, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
