//! One suite a port, run over every adapter on real servers.

mod broker;
mod store;
