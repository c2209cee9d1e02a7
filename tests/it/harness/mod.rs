//! What the tests stand on: servers, processes, proxies, and waiting for states.

pub(crate) mod canary;
pub(crate) mod counted;
pub(crate) mod engines;
pub(crate) mod front;
pub(crate) mod http;
pub(crate) mod jobs;
pub(crate) mod load;
pub(crate) mod process;
pub(crate) mod programs;
pub(crate) mod proxy;
pub(crate) mod receiver;
pub(crate) mod scale;
pub(crate) mod wait;
pub(crate) mod wire;
