//! What is asked of a store about API keys, and how both stores keep what a key allows.

use std::time::Duration;

use async_trait::async_trait;
use tracing::error;

use super::StoreError;
use crate::{
    job::{Micros, Tenant},
    keys::{Digest, Grants, Key, KeyId},
};

/// The name of the value that grows with every change of a key.
pub(super) const REVISION: &str = "keys";

/// What is asked about API keys. No key itself is ever kept, only what it hashes to.
#[async_trait]
pub trait Keys: Send + Sync {
    /// Adds a key. False if there is one with its id, or one with its name that is not revoked.
    async fn create_key(&self, key: &Key) -> Result<bool, StoreError>;

    /// All keys, the revoked ones too, unless nothing but their use has changed since a revision.
    async fn keys(&self, known: Option<i64>) -> Result<Option<StoredKeys>, StoreError>;

    /// Gives a key another secret; the one that it had stays good for so long, and one before that no longer. False if
    /// there is no such key, or it is revoked.
    async fn rotate_key(&self, id: KeyId, digest: Digest, overlap: Duration) -> Result<bool, StoreError>;

    /// Revokes a key for good, whether this build understands it or not. False if there is no such key, or it is revoked
    /// already.
    async fn revoke_key(&self, id: &str) -> Result<bool, StoreError>;

    /// Notes when keys were last used. Never goes back in time.
    async fn touch_keys(&self, used: &[(KeyId, Micros)]) -> Result<(), StoreError>;
}

/// All keys of an installation.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredKeys {
    /// Grows with every change of a key.
    pub revision: i64,
    /// Those that this build understands, the oldest first.
    pub keys: Vec<Key>,
    /// Those beside them: nobody gets in with them.
    pub not_understood: Vec<StrangeKey>,
}

/// What is known of a key that this build does not understand.
#[derive(Debug, Clone, PartialEq)]
pub struct StrangeKey {
    /// Its id.
    pub id: String,
    /// What its owner calls it.
    pub name: String,
    /// Whose jobs it sends and sees.
    pub tenant: String,
    /// When it was made.
    pub created_at: Micros,
    /// From when on it is good no more.
    pub expires_at: Option<Micros>,
    /// When it was revoked.
    pub revoked_at: Option<Micros>,
    /// When it was last used.
    pub last_used_at: Option<Micros>,
}

/// A row of either store.
#[derive(Debug)]
pub(super) struct KeyRow {
    pub(super) id: String,
    pub(super) env: String,
    pub(super) name: String,
    pub(super) tenant: String,
    pub(super) grants: String,
    pub(super) digest: Vec<u8>,
    pub(super) previous: Option<Vec<u8>>,
    pub(super) previous_until: Option<Micros>,
    pub(super) created_at: Micros,
    pub(super) expires_at: Option<Micros>,
    pub(super) revoked_at: Option<Micros>,
    pub(super) last_used_at: Option<Micros>,
}

impl KeyRow {
    fn strange(&self) -> StrangeKey {
        StrangeKey {
            id: self.id.clone(),
            name: self.name.clone(),
            tenant: self.tenant.clone(),
            created_at: self.created_at,
            expires_at: self.expires_at,
            revoked_at: self.revoked_at,
            last_used_at: self.last_used_at,
        }
    }

    fn into_key(self) -> Result<Key, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let digest = |bytes: &[u8]| Digest::from_bytes(bytes).ok_or_else(|| "its hash is none".to_owned());
        let previous = match (self.previous, self.previous_until) {
            (Some(previous), Some(until)) => Some((digest(&previous)?, until)),
            _ => None,
        };
        Ok(Key {
            id: self.id.parse().map_err(|error| text(&error))?,
            env: self.env.parse().map_err(|error| text(&error))?,
            name: self.name,
            tenant: Tenant::new(&self.tenant).map_err(|error| text(&error))?,
            grants: Grants::from_json(&self.grants)?,
            digest: digest(&self.digest)?,
            previous,
            created_at: Some(self.created_at),
            expires_at: self.expires_at,
            revoked_at: self.revoked_at,
            last_used_at: self.last_used_at,
        })
    }
}

/// Keys from rows. One that is not understood is left out, and its loss is told: to guess at it could allow too much.
pub(super) fn understood(revision: i64, rows: Vec<KeyRow>) -> StoredKeys {
    let mut stored = StoredKeys { revision, keys: Vec::with_capacity(rows.len()), not_understood: Vec::new() };
    for row in rows {
        let strange = row.strange();
        match row.into_key() {
            Ok(key) => stored.keys.push(key),
            Err(problem) => {
                error!(key = strange.id, problem, "this build does not understand a key, and lets nobody in with it");
                stored.not_understood.push(strange);
            }
        }
    }
    stored
}
