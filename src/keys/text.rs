//! The text of a key: `wrn_<env>_<id><secret and checksum>`, made, read and hashed.
//!
//! ```text
//! wrn_live_0aZ3kq81PmXw_<32 characters of secret><6 of checksum>
//! ```
//!
//! The beginning lets scanners find keys where none should be. The id, 12 characters, finds the key. The secret has 190
//! random bits, so that a plain SHA-256 of it is as good as a slow hash. The checksum, CRC-32 of everything before it,
//! tells a typing mistake from a key that is not good, without anyone having to look. All three are written in base 62.

use std::{
    fmt,
    str::{self, FromStr},
};

use sha2::{Digest as _, Sha256};

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const PREFIX: &str = "wrn";
const ID: usize = 12;
const SECRET: usize = 32;
const CHECKSUM: usize = 6;

/// A text that is no key. Does not repeat it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is no key of warren: one reads wrn_ENV_ID_SECRET, and its last characters are a checksum of the others")]
pub struct Malformed;

/// The part of a key that finds it. No secret.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId([u8; ID]);

/// A text that is no id of a key. Does not repeat it: it may be a whole key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the id of a key is 12 letters and digits")]
pub struct BadKeyId;

/// The part of a key that tells where it belongs: `live`, `test`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Env(String);

/// A text that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("where a key belongs is 1 to 16 of the characters a-z 0-9, such as live or test")]
pub struct BadEnv;

/// What a key's text hashes to: SHA-256. Whoever has it cannot make the key from it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Digest([u8; 32]);

/// A text that is no hash. Does not repeat it: it may be a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the SHA-256 of a key is 64 hexadecimal digits, as `printf %s KEY | sha256sum` prints them; the key itself does \
         not belong here"
)]
pub struct BadDigest;

/// A whole key. Never printed but where it is made.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyText(String);

/// What someone has presented, once it is known to be well formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Presented {
    /// Which key.
    pub id: KeyId,
    /// The hash of its text.
    pub digest: Digest,
}

fn is_base62(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

fn is_env(text: &str) -> bool {
    (1..=16).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

/// Six digits in base 62 hold every CRC-32.
fn checksum(text: &str) -> [u8; CHECKSUM] {
    let mut rest = crc32fast::hash(text.as_bytes());
    let mut digits = [b'0'; CHECKSUM];
    for digit in digits.iter_mut().rev() {
        *digit = ALPHABET[(rest % 62) as usize];
        rest /= 62;
    }
    digits
}

/// Random digits in base 62, each as likely as the other.
fn random<const N: usize>() -> Result<[u8; N], getrandom::Error> {
    // The largest multiple of 62 that a byte holds; what lies above would favour some digits.
    const FAIR: u8 = 248;
    let mut digits = [0; N];
    let mut made = 0;
    while made < N {
        let mut bytes = [0; 64];
        getrandom::fill(&mut bytes)?;
        for byte in bytes.into_iter().filter(|byte| *byte < FAIR).take(N - made) {
            digits[made] = ALPHABET[usize::from(byte % 62)];
            made += 1;
        }
    }
    Ok(digits)
}

/// Reads a key. Does the same for every well-formed text, and looks nothing up.
pub fn parse(text: &str) -> Result<Presented, Malformed> {
    let mut parts = text.split('_');
    let (Some(PREFIX), Some(env), Some(id), Some(secret), None) =
        (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Malformed);
    };
    let id: KeyId = id.parse().map_err(|_| Malformed)?;
    if !is_env(env) || secret.len() != SECRET + CHECKSUM || !is_base62(secret) {
        return Err(Malformed);
    }
    // All of it is ASCII.
    let (before, sum) = text.split_at(text.len() - CHECKSUM);
    if sum.as_bytes() != checksum(before) {
        return Err(Malformed);
    }
    Ok(Presented { id, digest: Digest::of(text) })
}

/// Whether a text begins like a key, whole or not, right or wrong: enough to say that it should not be there.
pub fn looks_like_a_key(text: &str) -> bool {
    let mut parts = text.split('_');
    parts.next() == Some(PREFIX)
        && parts.next().is_some_and(is_env)
        && parts.next().is_some_and(|id| id.parse::<KeyId>().is_ok())
        && parts.next().is_some()
}

impl KeyText {
    /// A new key with an id of its own.
    pub fn mint(env: &Env) -> Result<(KeyId, Self), getrandom::Error> {
        let id = KeyId(random()?);
        Ok((id, Self::mint_for(env, id)?))
    }

    /// Another secret for a key.
    pub fn mint_for(env: &Env, id: KeyId) -> Result<Self, getrandom::Error> {
        let secret: [u8; SECRET] = random()?;
        let mut text = format!("{PREFIX}_{env}_{id}_{}", ascii(&secret));
        let sum = checksum(&text);
        text.push_str(ascii(&sum));
        Ok(Self(text))
    }

    /// For the one who is to have it.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What is kept of it.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.0)
    }
}

impl fmt::Debug for KeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyText(..)")
    }
}

/// Digits of our alphabet as text.
fn ascii(digits: &[u8]) -> &str {
    str::from_utf8(digits).unwrap_or_default()
}

impl FromStr for KeyId {
    type Err = BadKeyId;

    fn from_str(text: &str) -> Result<Self, BadKeyId> {
        let bytes = text.as_bytes().try_into().map_err(|_| BadKeyId)?;
        if is_base62(text) { Ok(Self(bytes)) } else { Err(BadKeyId) }
    }
}

impl KeyId {
    /// Its text.
    pub fn as_str(&self) -> &str {
        ascii(&self.0)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Default for Env {
    fn default() -> Self {
        Self("live".into())
    }
}

impl FromStr for Env {
    type Err = BadEnv;

    fn from_str(text: &str) -> Result<Self, BadEnv> {
        if is_env(text) { Ok(Self(text.to_owned())) } else { Err(BadEnv) }
    }
}

impl fmt::Display for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Digest {
    /// What no text hashes to, as far as anyone knows: it stands where there is nothing to compare with.
    pub const NONE: Self = Self([0; 32]);

    /// The hash of a key's text.
    pub fn of(text: &str) -> Self {
        Self(Sha256::digest(text.as_bytes()).into())
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// From the bytes that a store keeps.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digest(..)")
    }
}

impl FromStr for Digest {
    type Err = BadDigest;

    fn from_str(text: &str) -> Result<Self, BadDigest> {
        let hash = blake3::Hash::from_hex(text).map_err(|_| BadDigest)?;
        Ok(Self(*hash.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Made with Python: `zlib.crc32` written in base 62, and `hashlib.sha256`.
    const VECTORS: [(&str, &str); 3] = [
        (
            "wrn_live_0123456789AB_abcdefghijklmnopqrstuvwxyz0123454FxKpH",
            "ed94a82fc38e21e9f700f8d36156c27b2e21d351e06e079cb8f976915bdb2859",
        ),
        (
            "wrn_test_zzzzzzzzzzzz_ZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZ2TUNzf",
            "994aff3cb51902c93d944efd84119636d176caef4f2dbeda58dd0dc853103299",
        ),
        (
            "wrn_a_aB3dE6gH9jK2_Q7rT0uW4xY8zA1cD5fG9hJ3kL6mN2pS42UGhyt",
            "5fd188a81a751a3ef26e804228280e717efa5e7b7084a1d689efaa4c293efbda",
        ),
    ];

    #[test]
    fn keys_that_another_program_has_made_are_read() {
        for (text, hash) in VECTORS {
            let presented = parse(text).unwrap();
            assert_eq!(presented.id.as_str(), text.split('_').nth(2).unwrap());
            assert_eq!(presented.digest.to_string(), hash);
            assert_eq!(hash.parse(), Ok(presented.digest));
        }
    }

    #[test]
    fn a_new_key_is_well_formed_and_no_two_are_alike() {
        let env: Env = "test".parse().unwrap();
        let (id, first) = KeyText::mint(&env).unwrap();
        let second = KeyText::mint_for(&env, id).unwrap();
        assert_ne!(first, second);
        for text in [&first, &second] {
            assert_eq!(parse(text.reveal()), Ok(Presented { id, digest: text.digest() }));
            assert_eq!(text.reveal().len(), "wrn_test_".len() + 12 + 1 + 38);
            assert!(!format!("{text:?}").contains(&text.reveal()[9..]), "a key is not printed");
        }
        assert_ne!(KeyText::mint(&env).unwrap().0, id);
    }

    #[test]
    fn random_digits_are_all_there_and_none_is_favoured() {
        let mut seen = [0_u32; 128];
        for _ in 0..2000 {
            for digit in random::<31>().unwrap() {
                seen[usize::from(digit)] += 1;
            }
        }
        // 62,000 digits, so 1,000 of each, with a standard deviation of 32.
        for digit in ALPHABET {
            let count = seen[usize::from(*digit)];
            assert!((800..1200).contains(&count), "{}: {count}", char::from(*digit));
        }
    }

    #[test]
    fn what_begins_like_a_key_is_told_even_if_it_is_none() {
        let (whole, _) = VECTORS[0];
        for text in [whole, &whole[..30], "wrn_live_0123456789AB_"] {
            assert!(looks_like_a_key(text), "{text}");
        }
        for text in ["", "wrn", "wrn_live", "wrn_live_0123456789AB", "wrn_a_b_c", "job.wrn_live_x"] {
            assert!(!looks_like_a_key(text), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in any::<String>(), cut in 0_usize..70) {
            _ = parse(&text);
            _ = looks_like_a_key(&text);
            let (whole, _) = VECTORS[0];
            _ = parse(&format!("{}{text}", &whole[..cut.min(whole.len())]));
            _ = parse(&format!("wrn_{text}_{text}_{text}"));
        }

        #[test]
        fn one_character_that_is_another_makes_a_key_no_key(place in any::<prop::sample::Index>(), other in any::<char>()) {
            let (_, text) = KeyText::mint(&Env::default()).unwrap();
            let mut characters: Vec<_> = text.reveal().chars().collect();
            let place = place.index(characters.len());
            prop_assume!(characters[place] != other);
            characters[place] = other;
            let changed: String = characters.into_iter().collect();
            prop_assert_eq!(parse(&changed), Err(Malformed));
        }

        #[test]
        fn one_of_its_own_characters_that_is_another_makes_a_key_no_key(place in any::<prop::sample::Index>(),
                                                                       other in prop::sample::select(&ALPHABET[..])) {
            let (_, text) = KeyText::mint(&Env::default()).unwrap();
            let mut bytes = text.reveal().as_bytes().to_vec();
            let place = place.index(bytes.len());
            prop_assume!(bytes[place] != other);
            bytes[place] = other;
            prop_assert_eq!(parse(std::str::from_utf8(&bytes).unwrap()), Err(Malformed));
        }

        #[test]
        fn two_neighbours_that_change_places_make_a_key_no_key(place in any::<prop::sample::Index>()) {
            let (_, text) = KeyText::mint(&Env::default()).unwrap();
            let mut bytes = text.reveal().as_bytes().to_vec();
            let place = place.index(bytes.len() - 1);
            prop_assume!(bytes[place] != bytes[place + 1]);
            bytes.swap(place, place + 1);
            prop_assert_eq!(parse(std::str::from_utf8(&bytes).unwrap()), Err(Malformed));
        }
    }
}
