//! A job's envelope as AMQP properties, and back.
//!
//! What is at its default is not sent: the table of headers costs the broker most of all. What comes in may be from
//! anyone, so nothing is believed before it is checked.

use std::sync::{Arc, LazyLock};

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable, ShortString},
};
use uuid::Uuid;

use crate::{
    broker::BadEnvelope,
    id,
    job::{Envelope, Key, Kind, Micros, Suspicion, Tenant, Trace},
};

const CONTENT_TYPE: &str = "application/msgpack";

const VERSION: &str = "x-warren-version";
const RUN: &str = "x-warren-run";
const ATTEMPT: &str = "x-warren-attempt";
const TENANT: &str = "x-warren-tenant";
/// `true`, or the digest that an idempotency key promises, in hexadecimal.
const KEYED: &str = "x-warren-keyed";
const SUSPECT: &str = "x-warren-suspect";
const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";
/// The broker's own count of earlier deliveries, absent at the first.
const DELIVERY_COUNT: &str = "x-delivery-count";

/// The kind of what was published for none.
static NO_KIND: LazyLock<Kind> = LazyLock::new(|| Kind::new("unknown").expect("a good name"));

/// Headers that a broker adds to what it delivers.
const BY_BROKER: [&str; 5] = [DELIVERY_COUNT, "x-acquired-count", "x-death", "x-first-death-", "x-last-death-"];

/// What the broker is given.
pub(super) fn properties(envelope: &Envelope) -> BasicProperties {
    let mut id = [0; 36];
    let id: &str = envelope.id.hyphenated().encode_lower(&mut id);
    let mut properties = BasicProperties::default()
        .with_delivery_mode(2)
        .with_content_type(CONTENT_TYPE.into())
        .with_message_id(id.into())
        .with_type(envelope.kind.as_str().into())
        .with_timestamp(u64::try_from(envelope.created_at / 1_000_000).unwrap_or(0));
    if let Some(source) = &envelope.source {
        properties = properties.with_app_id(source.as_ref().into());
    }
    if let Some(root) = envelope.root {
        properties = properties.with_correlation_id(root.to_string().into());
    }
    let mut headers = FieldTable::default();
    let mut number = |name: &str, value: u32, default: u32| {
        if value != default {
            headers.insert(name.into(), AMQPValue::LongLongInt(value.into()));
        }
    };
    number(VERSION, envelope.version.into(), 1);
    number(RUN, envelope.run, 1);
    number(ATTEMPT, envelope.attempt.into(), 0);
    let mut text = |name: &str, value: &str| {
        headers.insert(name.into(), AMQPValue::LongString(value.into()));
    };
    if envelope.tenant != Tenant::DEFAULT {
        text(TENANT, envelope.tenant.as_str());
    }
    match envelope.key {
        Key::None => {}
        Key::Keyed => text(KEYED, "true"),
        Key::Digest(digest) => text(KEYED, &blake3::Hash::from_bytes(digest).to_hex()),
    }
    if let Some(trace) = &envelope.trace {
        text(TRACEPARENT, &trace.parent);
        if let Some(state) = &trace.state {
            text(TRACESTATE, state);
        }
    }
    if envelope.suspicion != Suspicion::None {
        headers.insert(SUSPECT.into(), AMQPValue::ShortInt(envelope.suspicion.as_number()));
    }
    if headers.inner().is_empty() { properties } else { properties.with_headers(headers) }
}

/// What the broker gave, read as a job of `kind`.
pub(super) fn envelope(
    kind: Option<&Kind>,
    properties: &BasicProperties,
    body: &[u8],
) -> Result<Envelope, BadEnvelope> {
    let read = match kind {
        Some(kind) => read(kind, properties),
        None => Err("its routing key is no kind".into()),
    };
    let kind = kind.unwrap_or(&NO_KIND);
    read.map_err(|problem| {
        let text = |field: &Option<ShortString>| field.as_ref().map_or("", ShortString::as_str).to_owned();
        // Those that the broker adds on the way differ each time.
        let by_sender = |name: &&ShortString| !BY_BROKER.iter().any(|prefix| name.as_str().starts_with(prefix));
        let headers = properties.headers().iter().flat_map(FieldTable::inner);
        let sent: Vec<_> = headers.filter(|(name, _)| by_sender(name)).collect();
        BadEnvelope {
            id: id::derived(&[
                kind.as_str().as_bytes(),
                text(properties.message_id()).as_bytes(),
                text(properties.correlation_id()).as_bytes(),
                text(properties.kind()).as_bytes(),
                text(properties.app_id()).as_bytes(),
                format!("{sent:?}").as_bytes(),
                &properties.timestamp().unwrap_or(0).to_le_bytes(),
                body,
            ]),
            kind: kind.clone(),
            problem,
        }
    })
}

/// How often the broker gave this message out before.
pub(super) fn given_before(properties: &BasicProperties, redelivered: bool) -> u32 {
    let count = properties
        .headers()
        .as_ref()
        .and_then(|table| table.inner().get(DELIVERY_COUNT))
        .and_then(integer)
        .and_then(|count| u32::try_from(count).ok());
    // Not every broker counts what a consumer gave back or lost with its channel.
    count.unwrap_or(0).max(redelivered.into())
}

fn read(kind: &Kind, properties: &BasicProperties) -> Result<Envelope, String> {
    let id = match properties.message_id() {
        None => return Err("it has no message_id: give it a UUID".into()),
        Some(id) => Uuid::try_parse(id.as_str()).map_err(|_| "its message_id is no UUID".to_owned())?,
    };
    let created_at = properties.timestamp().map_or(0, |seconds| {
        // AMQP counts in seconds; an unkeyed id of ours knows the milliseconds too.
        let exact = id::millis(id).filter(|millis| millis / 1000 == seconds);
        Micros::try_from(exact.unwrap_or_else(|| seconds.saturating_mul(1000))).unwrap_or(0).saturating_mul(1000)
    });
    let mut envelope = Envelope::new(id, kind.clone(), 1, created_at);
    if let Some(source) = properties.app_id() {
        envelope.source = Some(Arc::from(source.as_str()));
    }
    if let Some(root) = properties.correlation_id() {
        // Other clients put their own correlation here; ours is a job's id.
        envelope.root = Uuid::try_parse(root.as_str()).ok();
    }
    if let Some(headers) = properties.headers() {
        for (name, value) in headers.inner() {
            read_header(&mut envelope, name.as_str(), value)?;
        }
    }
    Ok(envelope)
}

fn read_header(envelope: &mut Envelope, name: &str, value: &AMQPValue) -> Result<(), String> {
    let number = |max: u32| {
        integer(value)
            .and_then(|number| u32::try_from(number).ok())
            .filter(|number| *number <= max)
            .ok_or_else(|| format!("its header {name} is no whole number from 0 to {max}"))
    };
    let text = || text(value).ok_or_else(|| format!("its header {name} is no text"));
    match name {
        VERSION => envelope.version = u16::try_from(number(u16::MAX.into())?).unwrap_or(u16::MAX),
        RUN => envelope.run = number(i32::MAX.cast_unsigned())?,
        ATTEMPT => envelope.attempt = u16::try_from(number(i16::MAX.cast_unsigned().into())?).unwrap_or(u16::MAX),
        TENANT => envelope.tenant = Tenant::new(text()?).map_err(|error| error.to_string())?,
        KEYED => {
            envelope.key = match blake3::Hash::from_hex(text()?) {
                Ok(digest) => Key::Digest(*digest.as_bytes()),
                Err(_) => Key::Keyed,
            }
        }
        SUSPECT => {
            envelope.suspicion = match value {
                AMQPValue::Boolean(suspect) => Suspicion::from_number((*suspect).into()),
                _ => Suspicion::from_number(number(i16::MAX.cast_unsigned().into())?.into()),
            }
        }
        TRACEPARENT => trace(envelope).parent = text()?.into(),
        TRACESTATE => trace(envelope).state = Some(text()?.into()),
        _ => {}
    }
    Ok(())
}

fn trace(envelope: &mut Envelope) -> &mut Trace {
    envelope.trace.get_or_insert_with(|| Box::new(Trace { parent: String::new(), state: None }))
}

/// Clients of other languages choose the width of an integer by themselves.
fn integer(value: &AMQPValue) -> Option<i64> {
    match *value {
        AMQPValue::ShortShortInt(number) => Some(number.into()),
        AMQPValue::ShortShortUInt(number) => Some(number.into()),
        AMQPValue::ShortInt(number) => Some(number.into()),
        AMQPValue::ShortUInt(number) => Some(number.into()),
        AMQPValue::LongInt(number) => Some(number.into()),
        AMQPValue::LongUInt(number) => Some(number.into()),
        AMQPValue::LongLongInt(number) => Some(number),
        _ => None,
    }
}

fn text(value: &AMQPValue) -> Option<&str> {
    match value {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
        AMQPValue::ShortString(text) => Some(text.as_str()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_out_before_is_told_by_the_count_or_by_the_flag_alone() {
        let counted = |count| {
            let mut headers = FieldTable::default();
            headers.insert(DELIVERY_COUNT.into(), AMQPValue::LongLongInt(count));
            BasicProperties::default().with_headers(headers)
        };
        assert_eq!(given_before(&BasicProperties::default(), false), 0);
        assert_eq!(given_before(&BasicProperties::default(), true), 1);
        assert_eq!(given_before(&counted(3), true), 3);
        assert_eq!(given_before(&counted(0), true), 1, "the broker does not count every return");
    }
}
