//! The workers that warren brings, each with no queue behind it.

#[path = "workers/analytics.rs"]
mod analytics;
#[path = "workers/event.rs"]
mod event;
#[path = "workers/guard.rs"]
mod guard;
#[path = "workers/probe.rs"]
mod probe;
#[path = "workers/receiver.rs"]
mod receiver;
#[path = "workers/sign.rs"]
mod sign;
#[path = "workers/webhook.rs"]
mod webhook;
