//! Job ids that say where they came from.
//!
//! A job id is a UUIDv8 of 90 free bits and a tag of 32. The tag is a keyed hash over the tenant and the other bits, so
//! that a gateway can tell an id of its own from any other with no database, and a foreign tenant's id looks like an
//! unknown one. An unkeyed id begins with its time in milliseconds; a keyed one is a keyed hash of its key, so that the
//! same key always gives the same job. Which secret verifies the tag tells the two apart.

use std::{
    fmt,
    str::FromStr,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use subtle::ConstantTimeEq;
use uuid::Uuid;

use crate::job::{Kind, Micros, Tenant};

/// 32 secret bytes, written as 64 hexadecimal digits. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 32]);

/// A text that is no secret. Does not repeat it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an id secret is 64 hexadecimal digits; `warren config keys` makes one")]
pub struct BadSecret;

impl Secret {
    /// A new one from the operating system.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// For the file that keeps it.
    pub fn reveal(&self) -> String {
        blake3::Hash::from_bytes(self.0).to_hex().to_string()
    }

    /// Tells two secrets apart without giving either away.
    pub fn fingerprint(&self) -> String {
        let bytes = blake3::derive_key("warren v1 fingerprint of an id secret", &self.0);
        blake3::Hash::from_bytes(bytes).to_hex()[..16].to_owned()
    }
}

impl FromStr for Secret {
    type Err = BadSecret;

    fn from_str(text: &str) -> Result<Self, BadSecret> {
        let hash = blake3::Hash::from_hex(text).map_err(|_| BadSecret)?;
        Ok(Self(*hash.as_bytes()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({})", self.fingerprint())
    }
}

/// Makes ids and knows them again.
#[derive(Debug)]
pub struct Minter {
    keyed: [u8; 32],
    keyed_tags: [u8; 32],
    /// The first one mints, all verify.
    tags: Vec<[u8; 32]>,
    /// Counts, from a random start: two ids of one process never meet, those of two hardly ever do.
    sequence: AtomicU64,
    fingerprints: Fingerprints,
}

/// As a keyed id's source: a key that a message itself gives. Keys of different origins are never the same key.
pub const DEDUP_KEY: &str = "dedup-key";
/// As a keyed id's source: a key that came as an idempotency key.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// What tells that two processes make the same ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprints {
    /// Of the secret behind keyed ids.
    pub dedup: String,
    /// Of the secrets behind the tags of unkeyed ids.
    pub tags: Vec<String>,
}

/// What an id says of itself to the tenant who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Minted at random at this time.
    Unkeyed(Micros),
    /// Made from a key.
    Keyed,
    /// Not made here, or not for this tenant.
    Foreign,
}

const SEQUENCE_BITS: u32 = 42;
const SEQUENCE_MASK: u64 = (1 << SEQUENCE_BITS) - 1;

impl Minter {
    /// `tags` must not be empty: its first one mints.
    pub fn new(dedup: &Secret, tags: &[Secret]) -> Result<Self, getrandom::Error> {
        let mut start = [0; 8];
        getrandom::fill(&mut start)?;
        Ok(Self {
            keyed: blake3::derive_key("warren v1 keyed job id", &dedup.0),
            keyed_tags: blake3::derive_key("warren v1 tag of a keyed job id", &dedup.0),
            tags: tags.iter().map(|tag| blake3::derive_key("warren v1 tag of an unkeyed job id", &tag.0)).collect(),
            sequence: AtomicU64::new(u64::from_ne_bytes(start)),
            fingerprints: Fingerprints {
                dedup: dedup.fingerprint(),
                tags: tags.iter().map(Secret::fingerprint).collect(),
            },
        })
    }

    /// What to compare with other processes.
    pub fn fingerprints(&self) -> &Fingerprints {
        &self.fingerprints
    }

    /// A new id that begins with the time.
    pub fn mint(&self, tenant: &Tenant, now: Micros) -> Uuid {
        let millis = u64::try_from(now / 1000).unwrap_or(0) & 0xffff_ffff_ffff;
        let sequence = self.sequence.fetch_add(1, Relaxed) & SEQUENCE_MASK;
        let free = (u128::from(millis) << SEQUENCE_BITS) | u128::from(sequence);
        tagged(free, tenant, &self.tags[0])
    }

    /// The id of a key.
    pub fn keyed(&self, tenant: &Tenant, source: &str, kind: &Kind, key: &str) -> Uuid {
        let mut hasher = blake3::Hasher::new_keyed(&self.keyed);
        for part in [tenant.as_str(), source, kind.as_str(), key] {
            // The length first, or ("ab", "c") would be ("a", "bc").
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        let mut bits = [0; 16];
        hasher.finalize_xof().fill(&mut bits);
        tagged(u128::from_le_bytes(bits) >> (128 - 90), tenant, &self.keyed_tags)
    }

    /// What an id says of itself.
    pub fn origin(&self, tenant: &Tenant, id: Uuid) -> Origin {
        if id.get_version_num() != 8 {
            return Origin::Foreign;
        }
        let free = free_bits(id);
        let verifies = |key: &[u8; 32]| bool::from(tagged(free, tenant, key).as_bytes().ct_eq(id.as_bytes()));
        if self.tags.iter().any(verifies) {
            let millis = u64::try_from(free >> SEQUENCE_BITS).unwrap_or(0);
            Origin::Unkeyed(Micros::try_from(millis).unwrap_or(0).saturating_mul(1000))
        } else if verifies(&self.keyed_tags) {
            Origin::Keyed
        } else {
            Origin::Foreign
        }
    }
}

/// The milliseconds since the epoch that an unkeyed id begins with. Of any other UUID of version 8 it is noise.
pub fn millis(id: Uuid) -> Option<u64> {
    (id.get_version_num() == 8).then(|| u64::try_from(id.as_u128() >> 80).unwrap_or(0))
}

/// The id of a message that brings none that can be believed: the same message gives the same id.
pub fn derived(parts: &[&[u8]]) -> Uuid {
    let mut hasher = blake3::Hasher::new_derive_key("warren v1 id of an undecodable message");
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    let mut bytes = [0; 16];
    hasher.finalize_xof().fill(&mut bytes);
    Uuid::new_v8(bytes)
}

/// Lays 90 bits around the version and the variant of a UUIDv8, and the tag behind them.
///
/// ```text
/// 48 free bits | version 8 | 12 free bits | variant | 30 free bits | 32 bits of tag
/// ```
fn tagged(free: u128, tenant: &Tenant, key: &[u8; 32]) -> Uuid {
    let high = (free >> 42) & 0xffff_ffff_ffff;
    let middle = (free >> 30) & 0xfff;
    let low = free & 0x3fff_ffff;
    let untagged = (high << 80) | (8 << 76) | (middle << 64) | (0b10 << 62) | (low << 32);
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(&untagged.to_be_bytes()[..12]);
    hasher.update(tenant.as_str().as_bytes());
    let hash = hasher.finalize();
    let tag = hash.as_bytes()[..4].iter().fold(0, |tag, byte| (tag << 8) | u128::from(*byte));
    Uuid::from_u128(untagged | tag)
}

fn free_bits(id: Uuid) -> u128 {
    let bits = id.as_u128();
    ((bits >> 80) << 42) | (((bits >> 64) & 0xfff) << 30) | ((bits >> 32) & 0x3fff_ffff)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn secret(byte: u8) -> Secret {
        Secret([byte; 32])
    }

    fn minter() -> Minter {
        Minter::new(&secret(1), &[secret(2)]).expect("random start")
    }

    #[test]
    fn an_unkeyed_id_is_a_version_8_uuid_that_begins_with_its_milliseconds() {
        let id = minter().mint(&Tenant::DEFAULT, 1_790_000_000_123_456);
        assert_eq!(id.get_version_num(), 8);
        assert_eq!(id.get_variant(), uuid::Variant::RFC4122);
        // 1,790,000,000,123 in hexadecimal, by hand.
        assert_eq!(&id.simple().to_string()[..12], "01a0c4506c7b");
    }

    #[test]
    fn an_id_is_known_again_by_its_tenant_and_by_no_other() {
        let minter = minter();
        let other = Tenant::new("other").expect("a good name");
        let id = minter.mint(&Tenant::DEFAULT, 5_000_123);
        assert_eq!(minter.origin(&Tenant::DEFAULT, id), Origin::Unkeyed(5_000_000));
        assert_eq!(minter.origin(&other, id), Origin::Foreign);
        let kind = Kind::new("a.b").expect("a good name");
        let keyed = minter.keyed(&other, "", &kind, "k");
        assert_eq!(minter.origin(&other, keyed), Origin::Keyed);
        assert_eq!(minter.origin(&Tenant::DEFAULT, keyed), Origin::Foreign);
        assert_eq!(minter.origin(&Tenant::DEFAULT, Uuid::from_u128(id.as_u128() ^ (1 << 90))), Origin::Foreign);
        assert_eq!(minter.origin(&Tenant::DEFAULT, Uuid::nil()), Origin::Foreign);
    }

    #[test]
    fn a_key_gives_one_id_in_every_process_and_every_part_of_it_counts() {
        let (a, b) = (minter(), minter());
        let kind = |name| Kind::new(name).expect("a good name");
        let other = Tenant::new("other").expect("a good name");
        let id = a.keyed(&Tenant::DEFAULT, "shop", &kind("a.b"), "order-1");
        assert_eq!(id, b.keyed(&Tenant::DEFAULT, "shop", &kind("a.b"), "order-1"));
        let all = HashSet::from([
            id,
            a.keyed(&other, "shop", &kind("a.b"), "order-1"),
            a.keyed(&Tenant::DEFAULT, "sho", &kind("a.b"), "order-1"),
            a.keyed(&Tenant::DEFAULT, "shop", &kind("a.c"), "order-1"),
            a.keyed(&Tenant::DEFAULT, "shop", &kind("a.b"), "order-2"),
        ]);
        assert_eq!(all.len(), 5);
    }

    #[test]
    fn a_rotated_tag_key_still_verifies_and_no_longer_mints() {
        let before = Minter::new(&secret(1), &[secret(2)]).expect("random start");
        let after = Minter::new(&secret(1), &[secret(3), secret(2)]).expect("random start");
        let old = before.mint(&Tenant::DEFAULT, 1_000_000);
        assert_eq!(after.origin(&Tenant::DEFAULT, old), Origin::Unkeyed(1_000_000));
        let new = after.mint(&Tenant::DEFAULT, 1_000_000);
        assert_eq!(before.origin(&Tenant::DEFAULT, new), Origin::Foreign);
    }

    #[test]
    fn a_hundred_thousand_ids_of_one_millisecond_differ() {
        let minter = minter();
        let ids: HashSet<_> = (0..100_000).map(|_| minter.mint(&Tenant::DEFAULT, 7_000)).collect();
        assert_eq!(ids.len(), 100_000);
    }

    #[test]
    fn a_secret_is_64_hexadecimal_digits_and_is_not_printed() {
        let text = "00112233445566778899aabbccddeeff".repeat(2);
        let secret: Secret = text.parse().expect("64 digits");
        assert_eq!(secret.reveal(), text);
        assert!(!format!("{secret:?}").contains(&text[..8]));
        assert_eq!("00".parse::<Secret>(), Err(BadSecret));
    }
}
