//! One suite a port, run over every adapter on real servers.

mod broker;
mod operations;
mod rabbitmq;
mod store;
