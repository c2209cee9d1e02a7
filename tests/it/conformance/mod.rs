//! One suite a port, run over every adapter on real servers.

pub(crate) mod broker;
mod claims;
mod keys;
mod operations;
mod postgres;
mod rabbitmq;
mod store;
mod straight;
