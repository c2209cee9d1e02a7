//! From types to bytes: the one place where a worker and its message lose their types.
//!
//! Everything else in warren knows a [`Handler`]: the gateway asks it whether a body is one of its kind, the executor
//! hands it a body and gets back what came of it. The list of workers is explicit and stands in `main.rs`.

use std::{
    any::type_name,
    collections::{BTreeMap, btree_map::Entry},
    future::Future,
    pin::Pin,
    sync::Arc,
    time::Instant,
};

use bytes::Bytes;
use jiff::Timestamp;
use uuid::Uuid;
use warren_messages::{DecodeError, EncodeError, Invalid, Message, codec};
use warren_workers::{
    Context, Disposition, Job, Policy, WorkError as _, Worker,
    context::{Control, Emission},
};

use super::problems::every_problem;
use crate::{
    job::{BadName, Failure, Kind, Micros, Tenant},
    schema::Schema,
};

/// The kinds that this build knows.
#[derive(Clone, Default)]
pub struct Registry {
    kinds: BTreeMap<Kind, Registered>,
}

/// One kind.
#[derive(Clone)]
pub struct Registered {
    /// How its jobs are run.
    pub policy: Policy,
    /// Its worker.
    pub handler: Arc<dyn Handler>,
}

/// Why a worker was not registered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// Two workers would share a queue.
    #[error("two workers are registered for the kind {0}")]
    Twice(Kind),
    /// Its name breaks the rule.
    #[error("a worker is registered under the name `{name}`")]
    BadName {
        /// The name.
        name: String,
        /// The rule.
        #[source]
        rule: BadName,
    },
    /// Its policy cannot be run.
    #[error("the policy of the kind {kind} cannot be run: {}", problems.join("; "))]
    Policy {
        /// Which kind.
        kind: Kind,
        /// Every reason.
        problems: Vec<String>,
    },
}

impl Registry {
    /// Adds a worker under the kind of its message.
    pub fn register<W: Worker>(self, worker: W) -> Result<Self, RegisterError> {
        self.register_as(W::Message::KIND, worker)
    }

    /// Adds a worker under another kind: one more queue for the same work.
    pub fn register_as<W: Worker>(mut self, name: &str, worker: W) -> Result<Self, RegisterError> {
        let kind = Kind::new(name).map_err(|rule| RegisterError::BadName { name: name.to_owned(), rule })?;
        let policy = worker.policy();
        let problems = policy.problems();
        if !problems.is_empty() {
            return Err(RegisterError::Policy { kind, problems });
        }
        let schema = Schema::new(&kind, W::Message::VERSION, warren_messages::schema::of::<W::Message>);
        let handler = Arc::new(Typed { worker: Arc::new(worker), schema });
        self.add(kind, Registered { policy, handler })?;
        Ok(self)
    }

    /// Adds a kind that does the work of one that is there, with a queue and a policy of its own. False if that one is not
    /// there.
    pub fn register_like(&mut self, name: &str, like: &str) -> Result<bool, RegisterError> {
        let kind = Kind::new(name).map_err(|rule| RegisterError::BadName { name: name.to_owned(), rule })?;
        let Some((_, registered)) = self.get(like) else { return Ok(false) };
        let registered = Registered { handler: registered.handler.under(&kind), policy: registered.policy };
        self.add(kind, registered)?;
        Ok(true)
    }

    fn add(&mut self, kind: Kind, registered: Registered) -> Result<(), RegisterError> {
        match self.kinds.entry(kind) {
            Entry::Occupied(taken) => Err(RegisterError::Twice(taken.key().clone())),
            Entry::Vacant(free) => {
                free.insert(registered);
                Ok(())
            }
        }
    }

    /// A kind by its name.
    pub fn get(&self, name: &str) -> Option<(&Kind, &Registered)> {
        self.kinds.get_key_value(name)
    }

    /// All kinds, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&Kind, &Registered)> {
        self.kinds.iter()
    }

    /// The names of all kinds.
    pub fn kinds(&self) -> Vec<Kind> {
        self.kinds.keys().cloned().collect()
    }

    /// Changes the policy of a kind. False if there is no such kind.
    pub fn change_policy(&mut self, name: &str, change: impl FnOnce(&mut Policy)) -> Result<bool, RegisterError> {
        let Ok(kind) = Kind::new(name) else { return Ok(false) };
        let Some(registered) = self.kinds.get_mut(&kind) else { return Ok(false) };
        change(&mut registered.policy);
        match registered.policy.problems() {
            problems if problems.is_empty() => Ok(true),
            problems => Err(RegisterError::Policy { kind, problems }),
        }
    }
}

/// A body that was found to be one of its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// Encoded anew, in the layout of this build.
    pub body: Vec<u8>,
    /// That layout.
    pub version: u16,
    /// The key that the message itself gives.
    pub dedup_key: Option<String>,
    /// Over the canonical JSON of the body, if it was asked for.
    pub digest: Option<[u8; 32]>,
}

/// The format of a body that comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// JSON text.
    Json,
    /// A MessagePack map.
    MessagePack,
}

/// Why a body was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// It is not of its format, or not of its kind.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// It breaks the rules of its kind, or of this installation.
    #[error("the body breaks the rules of its kind")]
    Invalid(#[source] Invalid),
    /// It does not fit into a message once it is encoded.
    #[error("the body is too large once it is encoded")]
    TooLarge,
}

/// One delivery, as a handler needs it.
#[derive(Debug)]
pub struct Task {
    /// Which job.
    pub id: Uuid,
    /// Whose.
    pub tenant: Tenant,
    /// When it was accepted.
    pub created_at: Micros,
    /// The layout of its body.
    pub version: u16,
    /// Its body.
    pub body: Bytes,
    /// Which attempt this is, from 1.
    pub attempt: u16,
    /// When its time is up.
    pub deadline: Instant,
    /// The line to whoever runs it.
    pub control: Arc<Control>,
}

/// What came of one attempt.
#[derive(Debug)]
pub enum Performed {
    /// It was done.
    Done {
        /// Encoded.
        output: Vec<u8>,
        /// What it asked for.
        emissions: Vec<Emission>,
    },
    /// It was not done.
    Failed {
        /// What is to become of it.
        disposition: Disposition,
        /// Why.
        failure: Failure,
    },
    /// Its body cannot be read.
    Unreadable(DecodeError),
    /// The process of its own in which it ran has ended without a word.
    Crashed {
        /// How.
        how: String,
    },
}

/// A worker without its types.
pub trait Handler: Send + Sync {
    /// Reads, checks and encodes a body that comes in. `with_digest` asks for the digest of its canonical JSON. What is
    /// refused is told with every problem that can be found.
    fn accept(&self, format: Format, body: &[u8], with_digest: bool) -> Result<Accepted, Rejected>;

    /// One attempt. Does not guard against panics.
    fn perform(self: Arc<Self>, task: Task) -> Pin<Box<dyn Future<Output = Performed> + Send>>;

    /// The JSON Schema of the layout that this build writes.
    fn schema(&self) -> &Schema;

    /// The same under another name.
    fn under(&self, kind: &Kind) -> Arc<dyn Handler>;
}

struct Typed<W> {
    worker: Arc<W>,
    schema: Schema,
}

impl<W: Worker> Handler for Typed<W> {
    fn accept(&self, format: Format, body: &[u8], with_digest: bool) -> Result<Accepted, Rejected> {
        let message: W::Message = match format {
            Format::Json => codec::from_json(body),
            Format::MessagePack => codec::decode(W::Message::VERSION, body),
        }
        .map_err(|error| every_problem::<W::Message>(&self.schema, format, body, error))?;
        let mut invalid = message.validate().err().unwrap_or_default();
        if let Err(forbidden) = self.worker.check(&message) {
            invalid.append(forbidden);
        }
        invalid.into_result().map_err(Rejected::Invalid)?;
        let body = codec::encode(&message).map_err(|_| Rejected::TooLarge)?;
        let digest = if with_digest {
            // serde_json sorts the keys of a map, so equal bodies are equal text.
            let canonical = codec::to_json(&body)?.to_string();
            Some(*blake3::hash(canonical.as_bytes()).as_bytes())
        } else {
            None
        };
        Ok(Accepted { body, version: W::Message::VERSION, dedup_key: message.dedup_key(), digest })
    }

    fn perform(self: Arc<Self>, task: Task) -> Pin<Box<dyn Future<Output = Performed> + Send>> {
        Box::pin(async move {
            let message = match codec::decode::<W::Message>(task.version, &task.body) {
                Ok(message) => message,
                Err(error) => return Performed::Unreadable(error),
            };
            // What follows may take long; the encoded body is not needed for it.
            drop(task.body);
            let mut cx = Context::new(task.attempt, task.deadline, task.control);
            let job = Job {
                id: task.id,
                tenant: task.tenant.into_name(),
                created_at: Timestamp::from_microsecond(task.created_at).unwrap_or_default(),
                message,
            };
            match self.worker.perform(job, &mut cx).await {
                Ok(output) => match codec::encode(&output) {
                    Ok(output) => Performed::Done { output, emissions: cx.into_emissions() },
                    Err(error) => {
                        let code = match error {
                            EncodeError::TooLarge { .. } => "result_too_large",
                            EncodeError::Unsupported(_) => "bad_result",
                        };
                        let failure = Failure::from_error(code, &error);
                        Performed::Failed { disposition: Disposition::Retry, failure }
                    }
                },
                Err(error) => Performed::Failed {
                    disposition: error.disposition(),
                    failure: Failure::from_error(error.code(), &error),
                },
            }
        })
    }

    fn schema(&self) -> &Schema {
        &self.schema
    }

    fn under(&self, kind: &Kind) -> Arc<dyn Handler> {
        let schema = Schema::new(kind, W::Message::VERSION, warren_messages::schema::of::<W::Message>);
        Arc::new(Self { worker: self.worker.clone(), schema })
    }
}

impl std::fmt::Debug for Registered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct(type_name::<Self>()).field("policy", &self.policy).finish_non_exhaustive()
    }
}
