//! All keys of an installation, in memory.
//!
//! Owns who is let in. To ask it costs one hash and one look into a map: no waiting, no database. It reads the store once a
//! second, so that a revocation counts everywhere within two; while the store cannot be read it goes on with what it knows,
//! and expiry still counts. It promises that nothing is let in by ignorance: where it has never read the store, a key that
//! does not stand in the configuration is neither good nor bad. It knows nothing of HTTP.

pub mod limits;

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use self::limits::Limits;
use crate::{
    clock,
    health::{Condition, Health},
    job::{Micros, chain},
    keys::{self, Key, KeyId, Malformed},
    store::{Store, StoreError, StoredKeys},
};

/// How often the store is read.
const READ_EVERY: Duration = Duration::from_secs(1);
/// How long a first reading may take before a process starts without it.
const FIRST_READING: Duration = Duration::from_secs(3);
/// How often it is written down which keys were used.
const NOTE_EVERY: Duration = Duration::from_secs(5);
/// How old what is known may be before operators are told.
const STALE: Duration = Duration::from_secs(5);

/// All keys of an installation, in memory.
pub struct Keyring {
    store: Arc<dyn Store>,
    configured: HashMap<KeyId, Arc<Held>>,
    /// Whether it is taken that there are none while that is not known.
    assume_none: bool,
    known: RwLock<Arc<Known>>,
}

/// One key, and what it has done in this process.
#[derive(Debug)]
pub struct Held {
    /// The key.
    pub key: Key,
    usage: Arc<Usage>,
}

#[derive(Debug)]
struct Usage {
    limits: Limits,
    /// When it was last used, and up to when that is written down.
    last: AtomicI64,
    noted: AtomicI64,
}

/// What is known at a time.
#[derive(Default)]
struct Known {
    /// Those of the store and those of the configuration.
    keys: HashMap<KeyId, Arc<Held>>,
    /// As of which revision, if the store was ever read.
    revision: Option<i64>,
    /// Whether there is any key, good or not.
    any: bool,
}

/// Whether a request needs a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// There is at least one, be it revoked.
    Some,
    /// There is none.
    None,
    /// None is configured, and the store has never been read.
    Unknown,
}

/// Why someone is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// What was presented is no key.
    Malformed,
    /// It is no key of this installation, or one that was revoked or has expired: who asks is not told which.
    Invalid,
    /// It may be one: the store has never been read.
    Unknown,
}

impl From<Malformed> for Refused {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

impl Held {
    fn new(key: Key, before: Option<&Self>) -> Arc<Self> {
        let usage = match before {
            // What was used stays used, whatever else has changed of the key.
            Some(before) if has_same_limits(&before.key, &key) => before.usage.clone(),
            _ => {
                let last = key.last_used_at.unwrap_or(0);
                Arc::new(Usage { limits: Limits::of(&key.grants), last: last.into(), noted: last.into() })
            }
        };
        Arc::new(Self { key, usage })
    }

    /// How much may be asked for with it.
    pub fn limits(&self) -> &Limits {
        &self.usage.limits
    }
}

fn has_same_limits(one: &Key, other: &Key) -> bool {
    (one.grants.rate, one.grants.quota) == (other.grants.rate, other.grants.quota)
}

impl Keyring {
    /// With those of the configuration; those of the store come with the first reading.
    pub fn new(configured: &[Key], assume_none: bool, store: Arc<dyn Store>) -> Self {
        let configured: HashMap<_, _> = configured.iter().map(|key| (key.id, Held::new(key.clone(), None))).collect();
        let known = Known { any: !configured.is_empty(), keys: configured.clone(), revision: None };
        Self { store, configured, assume_none, known: RwLock::new(Arc::new(known)) }
    }

    fn known(&self) -> Arc<Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a request needs a key.
    pub fn need(&self) -> Need {
        let known = self.known();
        match (known.any, known.revision) {
            (true, _) => Need::Some,
            (false, Some(_)) => Need::None,
            (false, None) if self.assume_none => Need::None,
            (false, None) => Need::Unknown,
        }
    }

    /// Whose key this is. Does the same work for every well-formed text.
    pub fn authenticate(&self, text: &str) -> Result<Arc<Held>, Refused> {
        let presented = keys::parse(text)?;
        let known = self.known();
        let held = known.keys.get(&presented.id);
        let now = clock::now();
        let is_good = keys::verify(held.map(|held| &held.key), &presented.digest, now);
        match held {
            Some(held) if is_good => {
                held.usage.last.fetch_max(now, Relaxed);
                Ok(held.clone())
            }
            None if known.revision.is_none() => Err(Refused::Unknown),
            _ => Err(Refused::Invalid),
        }
    }

    /// Reads the store once, but does not wait long for it.
    pub async fn read_first(&self) {
        match timeout(FIRST_READING, self.read()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(error = chain(&error), "the keys cannot be read yet"),
            Err(_) => warn!("the keys cannot be read yet: the database does not answer"),
        }
    }

    async fn read(&self) -> Result<(), StoreError> {
        let before = self.known();
        let Some(StoredKeys { revision, keys, not_understood }) = self.store.keys(before.revision).await? else {
            return Ok(());
        };
        let any = !self.configured.is_empty() || !keys.is_empty() || !not_understood.is_empty();
        let held = |key: Key| {
            let same = before.keys.get(&key.id).map(AsRef::as_ref);
            (key.id, Held::new(key, same))
        };
        let mut keys: HashMap<_, _> = keys.into_iter().map(held).collect();
        keys.extend(self.configured.iter().map(|(id, held)| (*id, held.clone())));
        let known = Known { keys, revision: Some(revision), any };
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(known);
        debug!(revision, "read the keys");
        Ok(())
    }

    /// Keeps what is known up to date, and writes down what was used, until told to stop.
    pub async fn keep(self: Arc<Self>, health: Arc<Health>, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(READ_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut read, mut noted) = (Instant::now(), Instant::now());
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            match stop.run_until_cancelled(self.read()).await {
                Some(Ok(())) => read = Instant::now(),
                Some(Err(error)) => debug!(error = chain(&error), "the keys cannot be read"),
                None => break,
            }
            health.set("keys", self.condition(read.elapsed()));
            if noted.elapsed() >= NOTE_EVERY {
                noted = Instant::now();
                _ = stop.run_until_cancelled(self.note()).await;
            }
        }
        // What this process saw last is not worth a late end.
        _ = timeout(Duration::from_secs(1), self.note()).await;
    }

    fn condition(&self, age: Duration) -> Condition {
        let known = self.known();
        match known.revision {
            Some(_) if age < STALE => Condition::Ready,
            Some(_) => {
                let age = age.as_secs();
                Condition::Warning(format!(
                    "they were last read {age} s ago: what was revoked since is still good here"
                ))
            }
            None if known.any => Condition::Warning("only those of the configuration are known yet".into()),
            None if self.assume_none => Condition::Warning("it is taken that there are none".into()),
            None => Condition::NotReady("it is not known yet whether there are any".into()),
        }
    }

    async fn note(&self) {
        let known = self.known();
        let used: Vec<_> = known
            .keys
            .values()
            .filter(|held| !self.configured.contains_key(&held.key.id))
            .map(|held| (held, held.usage.last.load(Relaxed)))
            .filter(|(held, last)| *last > held.usage.noted.load(Relaxed))
            .collect();
        if used.is_empty() {
            return;
        }
        let rows: Vec<(KeyId, Micros)> = used.iter().map(|(held, last)| (held.key.id, *last)).collect();
        match self.store.touch_keys(&rows).await {
            Ok(()) => used.iter().for_each(|(held, last)| held.usage.noted.store(*last, Relaxed)),
            Err(error) => debug!(error = chain(&error), "cannot note which keys were used"),
        }
    }
}
