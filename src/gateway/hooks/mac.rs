//! Signatures, computed and compared.

use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::Sha256;
use subtle::{Choice, ConstantTimeEq as _};

use crate::config::SourceSecret;

/// HMAC-SHA-256 over pieces that follow each other.
pub(super) fn sha256(secret: &SourceSecret, pieces: &[&[u8]]) -> [u8; 32] {
    keyed::<Hmac<Sha256>>(secret, pieces).into_bytes().into()
}

/// HMAC-SHA-1 over pieces that follow each other. Sound as a MAC, whatever became of SHA-1 alone.
pub(super) fn sha1(secret: &SourceSecret, pieces: &[&[u8]]) -> [u8; 20] {
    keyed::<Hmac<Sha1>>(secret, pieces).into_bytes().into()
}

fn keyed<M: Mac + KeyInit>(secret: &SourceSecret, pieces: &[&[u8]]) -> hmac::digest::CtOutput<M> {
    #[expect(clippy::expect_used, reason = "HMAC takes a key of any length")]
    let mut mac = <M as KeyInit>::new_from_slice(secret.bytes()).expect("any length");
    for piece in pieces {
        mac.update(piece);
    }
    mac.finalize()
}

/// Whether any of the signatures is that of any of the secrets. Takes as long for a near miss as for a far one.
pub(super) fn any_good<const N: usize>(
    secrets: &[SourceSecret],
    given: &[[u8; N]],
    sign: impl Fn(&SourceSecret) -> [u8; N],
) -> bool {
    let mut good = Choice::from(0);
    for secret in secrets {
        let expected = sign(secret);
        for given in given {
            good |= expected.as_slice().ct_eq(given.as_slice());
        }
    }
    good.into()
}

/// Reads 32 bytes in hexadecimal.
pub(super) fn unhex(text: &str) -> Option<[u8; 32]> {
    blake3::Hash::from_hex(text).ok().map(|hash| *hash.as_bytes())
}
