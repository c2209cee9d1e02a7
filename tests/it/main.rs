//! One binary of integration tests, against real servers and real processes.
//!
//! `tests/run` starts the servers. Without them, what needs them is left out, unless `WARREN_TEST_SERVERS=required`.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics")]

mod bad_inputs;
mod batches;
mod bench;
mod canaries;
mod cancelling;
mod cli;
mod conformance;
mod crash;
mod deploy;
mod deploys;
mod events;
mod foreign;
mod gateway;
mod growth;
mod harness;
mod hooks;
mod keeping;
mod keys;
mod limits;
mod operators;
mod outages;
mod overload;
mod poison;
mod pressure;
mod processes;
mod room;
mod runtime;
mod schemas;
mod selfdescription;
mod tls;
mod tracking;
mod tracking_sdks;
mod waiting;
mod webhooks;
