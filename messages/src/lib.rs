//! What a warren message is, and the messages that warren brings.
//!
//! A message is a plain Rust struct that implements [`Message`]: it has a permanent kind, a version of its layout, rules
//! beyond its types, and a JSON Schema. [`codec`] turns it into the bytes that travel and back; nothing else in warren
//! may. This crate knows neither brokers nor workers nor stores: a producer can depend on it alone.

pub mod codec;
pub mod field;
pub mod invalid;
pub mod json;
mod malformed;
pub mod message;
mod packed;
pub mod schema;

pub mod analytics;
mod bytes;
pub mod event;
pub mod probe;
mod url_text;
pub mod webhook;

pub use crate::{
    bytes::Bytes,
    codec::{DecodeError, EncodeError},
    invalid::{Invalid, Problem},
    json::{Json, Object},
    message::Message,
    url_text::UrlText,
};
