//! Many jobs in one request: a JSON array, or one object a line.
//!
//! Read, submitted and answered piece by piece: the request is never held whole, and of the answer only what a client has
//! not read yet. Every item is answered for itself, in order, and a bad one spoils no other.

use std::{borrow::Cow, collections::HashSet, sync::Arc};

use axum::{
    body::Body,
    response::{IntoResponse as _, Response},
};
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::{HeaderMap, HeaderValue, StatusCode, header::CONTENT_TYPE};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use uuid::Uuid;
use warren_messages::{codec::MAX_BYTES, invalid::without_values};

use super::{
    Gateway,
    body::Incoming,
    caller::Caller,
    problem::{Item as ProblemItem, Problem},
    request,
    room::Room,
    submit::{Name, Submission, Submitted},
};
use crate::{
    job::{Kind, State},
    nearest::{did_you_mean, shorten},
    runtime::registry::Format,
};

/// How many jobs one request may hold.
const MOST: usize = 100_000;
/// How long an item may be: its body, and what stands around it.
const LONGEST: usize = MAX_BYTES + 4096;
/// How many are submitted at once.
const AT_ONCE: usize = 500;
/// How much of a request is awaited before its items are submitted, if its sender has said that so much comes. They come in
/// by a few kilobytes, and those that wait for the broker keep all behind them waiting; who has not said how long his request
/// is may want an answer before he sends more.
const TOGETHER: usize = 64 << 10;
/// About how long the answer to an item is that was taken.
const VERDICT: usize = 128;
/// How long a request may be, unpacked.
const WHOLE: usize = 256 << 20;

/// One job of many.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Item<'a> {
    #[serde(borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    #[schemars(with = "serde_json::Value")]
    body: Option<&'a RawValue>,
    #[serde(default)]
    key: Option<String>,
    #[serde(default)]
    delay: Option<String>,
    #[serde(default)]
    run_at: Option<String>,
}

/// What became of one.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
enum Verdict {
    Taken {
        index: usize,
        status: u16,
        id: Uuid,
        kind: Kind,
        state: State,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        replayed: bool,
    },
    Refused {
        index: usize,
        #[serde(flatten)]
        problem: ProblemItem,
    },
}

/// The schema of a request.
pub(super) fn items(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "minItems": 1, "maxItems": MOST, "items": generator.subschema_for::<Item>() })
}

/// The schema of an answer.
pub(super) fn verdicts(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "properties": {
            "results": { "type": "array", "items": generator.subschema_for::<Verdict>() },
            "accepted": { "type": "integer" },
            "refused": { "type": "integer" },
        },
        "required": ["results", "accepted", "refused"],
    })
}

/// How items stand beside each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    Array,
    Lines,
}

impl Layout {
    fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let named = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("application/json");
        match named.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
            "application/json" => Ok(Self::Array),
            "application/x-ndjson" | "application/jsonl" | "application/ndjson" => Ok(Self::Lines),
            media => {
                let detail = format!(
                    "the content type `{}` is not taken for many jobs: send application/json (an array) or \
                     application/x-ndjson (one object a line)",
                    shorten(media)
                );
                Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_content_type", detail))
            }
        }
    }
}

/// A piece of a request that was found to be one item, or why there is none.
type Piece = Result<Bytes, Problem>;

/// Cuts a request into its items. Looks at brackets and quotes only: whether an item is JSON, its own reading tells.
#[derive(Debug)]
pub(super) struct Splitter {
    layout: Layout,
    buffer: BytesMut,
    /// How far the buffer was looked at.
    seen: usize,
    depth: usize,
    in_text: bool,
    escaped: bool,
    /// In an array: before its bracket, within it, or behind it.
    part: Part,
    /// The rest of a line that is too long is passed over.
    skipping: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Before,
    Within,
    Behind,
}

impl Splitter {
    pub(super) fn new(layout: Layout) -> Self {
        let (seen, depth) = (0, 0);
        Self {
            layout,
            buffer: BytesMut::new(),
            seen,
            depth,
            in_text: false,
            escaped: false,
            part: Part::Before,
            skipping: false,
        }
    }

    /// Takes in more of the request. `Err` ends it: what follows cannot be cut.
    pub(super) fn push(&mut self, bytes: &[u8], items: &mut Vec<Piece>) -> Result<(), Problem> {
        self.buffer.extend_from_slice(bytes);
        match self.layout {
            Layout::Lines => {
                self.push_lines(items);
                Ok(())
            }
            Layout::Array => self.push_array(items),
        }
    }

    /// The request is over.
    pub(super) fn end(&mut self, items: &mut Vec<Piece>) -> Result<(), Problem> {
        match self.layout {
            Layout::Lines => {
                let last = self.buffer.split().freeze();
                if !self.skipping && !last.trim_ascii().is_empty() {
                    items.push(Ok(last));
                }
                Ok(())
            }
            Layout::Array if self.part == Part::Behind => Ok(()),
            Layout::Array => Err(broken("the array is not closed")),
        }
    }

    fn push_lines(&mut self, items: &mut Vec<Piece>) {
        while let Some(end) = memchr::memchr(b'\n', &self.buffer[self.seen..]) {
            let line = self.buffer.split_to(self.seen + end + 1).freeze();
            self.seen = 0;
            if !std::mem::take(&mut self.skipping) && !line.trim_ascii().is_empty() {
                items.push(Ok(line));
            }
        }
        self.seen = self.buffer.len();
        if self.buffer.len() > LONGEST {
            if !self.skipping {
                items.push(Err(too_long()));
            }
            self.skipping = true;
            self.buffer.clear();
            self.seen = 0;
        }
    }

    fn push_array(&mut self, items: &mut Vec<Piece>) -> Result<(), Problem> {
        while let Some(byte) = self.buffer.get(self.seen).copied() {
            if self.escaped {
                self.escaped = false;
                self.seen += 1;
                continue;
            }
            if self.in_text {
                // Most of a request is text.
                let rest = &self.buffer[self.seen..];
                let found = memchr::memchr2(b'"', b'\\', rest);
                self.escaped = found.is_some_and(|at| rest[at] == b'\\');
                self.in_text = found.is_none_or(|_| self.escaped);
                self.seen += found.map_or(rest.len(), |at| at + 1);
                continue;
            }
            self.seen += 1;
            match (self.part, byte) {
                (_, b' ' | b'\t' | b'\r' | b'\n') => {}
                (Part::Before, b'[') => {
                    self.part = Part::Within;
                    self.drop_seen();
                }
                (Part::Before, _) => return Err(broken("many jobs are an array: begin with [")),
                (Part::Behind, _) => return Err(broken("something follows the array")),
                (Part::Within, b'"') => self.in_text = true,
                (Part::Within, b'{' | b'[') => self.depth += 1,
                (Part::Within, b']') if self.depth == 0 => {
                    self.cut(items);
                    self.part = Part::Behind;
                }
                (Part::Within, b'}' | b']') => match self.depth.checked_sub(1) {
                    Some(depth) => self.depth = depth,
                    None => return Err(broken("a bracket closes what none has opened")),
                },
                (Part::Within, b',') if self.depth == 0 => self.cut(items),
                (Part::Within, _) => {}
            }
        }
        if self.buffer.len() > LONGEST { Err(too_long()) } else { Ok(()) }
    }

    /// What stands before the last byte that was seen is an item.
    fn cut(&mut self, items: &mut Vec<Piece>) {
        let mut item = self.buffer.split_to(self.seen);
        self.seen = 0;
        item.truncate(item.len() - 1);
        if !item.trim_ascii().is_empty() {
            items.push(Ok(item.freeze()));
        }
    }

    fn drop_seen(&mut self) {
        _ = self.buffer.split_to(self.seen);
        self.seen = 0;
    }
}

fn broken(detail: &str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "invalid_json", detail)
}

fn too_long() -> Problem {
    let detail = format!("the item is longer than {LONGEST} bytes, the most that is taken");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail)
}

impl Gateway {
    /// Takes many jobs, and answers each.
    pub(super) async fn submit_many(
        self: Arc<Self>,
        caller: Caller,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Response, Problem> {
        let layout = Layout::of(headers)?;
        let mut batch = Batch {
            gateway: self,
            caller,
            layout,
            splitter: Splitter::new(layout),
            body: Incoming::streamed(headers, body, WHOLE)?,
            room: Room::default(),
            count: 0,
            keys: HashSet::new(),
        };
        // Before the answer begins it can still be a refusal of the whole.
        let first = batch.next().await?;
        if first.as_ref().is_none_or(|(items, end)| items.is_empty() && end.is_ok()) {
            let detail = "there is no job in it: send an array of {kind, body, key?, delay?, run_at?}, or one such object a line";
            return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "empty_batch", detail));
        }
        // Without a bound but that of the request: a client that reads nothing before it has sent everything must not wait
        // for itself.
        let (sender, receiver) = mpsc::unbounded_channel();
        tokio::spawn(batch.answer(first, sender));
        let answer = stream::unfold(receiver, |mut receiver: mpsc::UnboundedReceiver<Bytes>| async move {
            receiver.recv().await.map(|piece: Bytes| (Ok::<_, std::convert::Infallible>(piece), receiver))
        });
        let media = match layout {
            Layout::Array => "application/json",
            Layout::Lines => "application/x-ndjson",
        };
        let mut response = Body::from_stream(answer).into_response();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media));
        Ok(response)
    }
}

struct Batch {
    gateway: Arc<Gateway>,
    caller: Caller,
    layout: Layout,
    splitter: Splitter,
    body: Incoming,
    /// For what is read and not submitted yet.
    room: Room,
    count: usize,
    /// Digests of kinds and keys: what was sent may be long, and is not needed again.
    keys: HashSet<blake3::Hash>,
}

/// Items that were read together, and whether the request can be read further.
type Read = (Vec<Piece>, Result<(), Problem>);

impl Batch {
    /// The next items, as they come in; `None` behind the last. `Err` before the first of them.
    async fn next(&mut self) -> Result<Option<Read>, Problem> {
        let (mut items, mut held) = (Vec::new(), self.splitter.buffer.len());
        while items.is_empty() || items.len() < AT_ONCE && held < TOGETHER && self.body.comes_soon() {
            let end = match self.body.next().await {
                Ok(Some(data)) => {
                    let room = self.room.hold(held + data.len());
                    let end = room.and_then(|()| self.splitter.push(&data, &mut items));
                    // What is no item is not kept.
                    held = if items.is_empty() { self.splitter.buffer.len() } else { held + data.len() };
                    end
                }
                Ok(None) => {
                    let end = self.splitter.end(&mut items);
                    return match (end, items.is_empty()) {
                        (Ok(()), true) => Ok(None),
                        (Err(problem), true) if self.count == 0 => Err(problem.closing()),
                        (end, _) => Ok(Some((items, end))),
                    };
                }
                Err(problem) => Err(problem),
            };
            match end {
                Ok(()) => {}
                Err(problem) if self.count == 0 && items.is_empty() => return Err(problem.closing()),
                Err(problem) => return Ok(Some((items, Err(problem)))),
            }
        }
        Ok(Some((items, Ok(()))))
    }

    /// Answers piece by piece; ends when the client has gone.
    async fn answer(mut self, first: Option<Read>, answer: mpsc::UnboundedSender<Bytes>) {
        let (mut accepted, mut refused) = (0_usize, 0_usize);
        let mut text = Vec::new();
        if self.layout == Layout::Array {
            text.extend_from_slice(b"{\"results\":[");
        }
        let mut next = first;
        while let Some((mut items, mut end)) = next {
            if self.count + items.len() > MOST {
                items.truncate(MOST - self.count);
                let detail =
                    format!("one request holds at most {MOST} jobs: this one and those behind it were not taken");
                end = Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "batch_too_large", detail));
            }
            for some in items.chunks(AT_ONCE) {
                let verdicts = self.submit(some).await;
                text.reserve(verdicts.len() * VERDICT);
                for verdict in verdicts {
                    let taken = matches!(verdict, Verdict::Taken { .. });
                    *(if taken { &mut accepted } else { &mut refused }) += 1;
                    self.write(&mut text, &verdict);
                }
                let mut room = Room::default();
                let overloaded = room.hold(text.len()).err();
                if answer.send(room.around(std::mem::take(&mut text))).is_err() {
                    return;
                }
                // What was taken is told, and then there is an end.
                if let Some(problem) = overloaded {
                    end = Err(problem);
                    break;
                }
            }
            if let Err(problem) = end {
                refused += 1;
                let verdict = Verdict::Refused { index: self.count, problem: problem.item() };
                self.write(&mut text, &verdict);
                break;
            }
            // Not to be held while the sender is waited for.
            drop(items);
            _ = self.room.hold(self.splitter.buffer.len());
            next = self.next().await.unwrap_or_else(|problem| Some((Vec::new(), Err(problem))));
        }
        if self.layout == Layout::Array {
            text.extend_from_slice(format!("],\"accepted\":{accepted},\"refused\":{refused}}}\n").as_bytes());
        }
        _ = answer.send(text.into());
    }

    fn write(&self, text: &mut Vec<u8>, verdict: &Verdict) {
        let (Verdict::Taken { index, .. } | Verdict::Refused { index, .. }) = verdict;
        if self.layout == Layout::Array && *index > 0 {
            text.push(b',');
        }
        // Text, numbers and lists of them: it cannot fail.
        _ = serde_json::to_writer(&mut *text, verdict);
        if self.layout == Layout::Lines {
            text.push(b'\n');
        }
    }

    async fn submit(&mut self, items: &[Piece]) -> Vec<Verdict> {
        let first = self.count;
        self.count += items.len();
        // Each was counted when it was read: a bad one has cost something too.
        let sender = self.caller.after_counting();
        let read: Vec<_> = items.iter().map(|item| self.read(item)).collect();
        let check = |item: Result<Item<'_>, Problem>| {
            let item = item?;
            self.gateway.check(Submission {
                caller: &sender,
                kind: &item.kind,
                format: Format::Json,
                body: item.body.map_or(b"{}".as_slice(), |body| body.get().as_bytes()),
                name: item.key.as_deref().map_or(Name::None, Name::Key),
                when: request::when_of(item.delay.as_deref(), item.run_at.as_deref())?,
                source: sender.name(),
                trace: None,
            })
        };
        let checked = read.into_iter().map(check).collect();
        let verdict = |(index, submitted): (usize, Result<Submitted, Problem>)| match submitted {
            Ok(Submitted { id, kind, state, replayed, .. }) => {
                Verdict::Taken { index, status: StatusCode::ACCEPTED.as_u16(), id, kind, state, replayed }
            }
            Err(problem) => Verdict::Refused { index, problem: problem.item() },
        };
        (first..).zip(self.gateway.take_all(checked).await).map(verdict).collect()
    }

    fn read<'a>(&mut self, item: &'a Piece) -> Result<Item<'a>, Problem> {
        self.caller.count(1)?;
        let text = item.as_ref().map_err(Problem::clone)?;
        let refused = |status, code, why: &str| {
            let detail = format!("the item is no object of kind, body, key, delay and run_at: {why}");
            Problem::new(status, code, detail)
        };
        let item: Item<'_> = serde_json::from_slice(text).map_err(|error| {
            let why = error.to_string();
            match error.is_data() {
                true if why.starts_with("duplicate field") => refused(StatusCode::BAD_REQUEST, "duplicate_key", &why),
                true if why.starts_with("unknown field") => {
                    // The name is whatever the sender wrote.
                    let name = why.split('`').nth(1).unwrap_or_default();
                    let hint = did_you_mean(name, ["kind", "body", "key", "delay", "run_at"]);
                    let why = format!("there is no field `{}` in it{hint}", shorten(name));
                    refused(StatusCode::UNPROCESSABLE_ENTITY, "unknown_field", &why)
                }
                true => refused(StatusCode::UNPROCESSABLE_ENTITY, "bad_item", &without_values(&why)),
                false => refused(StatusCode::BAD_REQUEST, "invalid_json", &why),
            }
        })?;
        // A derived reader also takes a list of the fields in order.
        if text.trim_ascii_start().first() != Some(&b'{') {
            return Err(refused(StatusCode::UNPROCESSABLE_ENTITY, "bad_item", "it is a list"));
        }
        if let Some(key) = &item.key {
            request::check_key(key)?;
            let mut name = blake3::Hasher::new();
            name.update(&item.kind.len().to_le_bytes()).update(item.kind.as_bytes()).update(key.as_bytes());
            if !self.keys.insert(name.finalize()) {
                let detail = "an item before this one has the same key: give each job a key of its own";
                return Err(Problem::new(StatusCode::CONFLICT, "duplicate_in_batch", detail));
            }
        }
        Ok(item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(layout: Layout, text: &str, pieces: usize) -> (Vec<String>, bool) {
        let mut splitter = Splitter::new(layout);
        let mut items = Vec::new();
        let mut well = true;
        for piece in text.as_bytes().chunks(pieces) {
            well &= splitter.push(piece, &mut items).is_ok();
        }
        well &= splitter.end(&mut items).is_ok();
        let texts = items.into_iter().map(|item| String::from_utf8_lossy(&item.unwrap_or_default()).trim().to_owned());
        (texts.collect(), well)
    }

    #[test]
    fn items_are_the_same_however_the_request_comes_in() {
        let array = r#" [ {"a": "],}\"["}, {"b": [1, {"c": []}]} ,{} ] "#;
        let lines = "{\"a\": \"],}\\\"[\"}\n\n  {\"b\": [1, {\"c\": []}]}\r\n{}";
        for pieces in [1, 2, 3, 7, 1000] {
            let expected =
                vec![r#"{"a": "],}\"["}"#.to_owned(), r#"{"b": [1, {"c": []}]}"#.to_owned(), "{}".to_owned()];
            assert_eq!(cut(Layout::Array, array, pieces), (expected.clone(), true), "{pieces}");
            assert_eq!(cut(Layout::Lines, lines, pieces), (expected, true), "{pieces}");
        }
    }

    #[test]
    fn an_array_that_is_none_is_told_so() {
        for bad in ["{}", "[{}", "[{}] x", "[}]", ""] {
            assert!(!cut(Layout::Array, bad, 3).1, "{bad}");
        }
        assert_eq!(cut(Layout::Array, "[]", 1), (Vec::new(), true));
    }
}
