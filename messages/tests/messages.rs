//! What holds for every message, judged by bytes and texts that were not made by the code under test.

#[path = "messages/codec.rs"]
mod codec;
#[path = "messages/golden.rs"]
mod golden;
#[path = "messages/rules.rs"]
mod rules;
