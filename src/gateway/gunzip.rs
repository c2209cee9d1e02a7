//! Unpacks gzip (RFC 1952) piece by piece, and never more of it than is allowed.
//!
//! A kilobyte of gzip may hold a megabyte of nothing. So what comes out is counted while it comes out, against a limit and
//! against what went in; each step gives a piece of bounded size, and nothing is set aside for what a header claims.

use std::io::Write as _;

use flate2::write::MultiGzDecoder;

/// How many times its packed size a body may have.
pub(super) const RATIO: u64 = 20;
/// A body up to this size may have any ratio: text that repeats itself is no attack as long as it is small.
pub(super) const ANY_RATIO: u64 = 1 << 20;

/// Why something cannot be unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GunzipError {
    /// It is no gzip, is damaged or cut off, or something else follows it.
    Damaged,
    /// It is longer than the limit once it is unpacked.
    TooLarge,
    /// It is suspiciously larger than it was.
    Bomb,
}

/// A gzip stream that is being unpacked.
#[derive(Debug)]
pub(super) struct Gunzip {
    decoder: MultiGzDecoder<Vec<u8>>,
    at_most: u64,
    any_ratio: bool,
    packed: u64,
    unpacked: u64,
}

impl Gunzip {
    /// One that unpacks to at most so many bytes.
    pub(super) fn new(at_most: usize) -> Self {
        let decoder = MultiGzDecoder::new(Vec::new());
        Self { decoder, at_most: at_most as u64, any_ratio: false, packed: 0, unpacked: 0 }
    }

    /// The same, however often what it holds repeats itself: only the size counts.
    pub(super) fn of_any_ratio(self) -> Self {
        Self { any_ratio: true, ..self }
    }

    /// Takes a step: answers how much of the input was used, and what came out, 128 KiB at most. Call it again with the
    /// rest of the input.
    pub(super) fn step(&mut self, input: &[u8]) -> Result<(usize, Vec<u8>), GunzipError> {
        let used = self.decoder.write(input).map_err(|_| GunzipError::Damaged)?;
        if used == 0 && !input.is_empty() && self.decoder.get_ref().is_empty() {
            // It neither takes nor gives: it never will.
            return Err(GunzipError::Damaged);
        }
        self.packed += used as u64;
        if used == input.len() {
            // What can be known of it is given out now, and not with what comes in next.
            self.decoder.flush().map_err(|_| GunzipError::Damaged)?;
        }
        Ok((used, self.take()?))
    }

    /// The input is over: answers the last of what came out.
    pub(super) fn finish(mut self) -> Result<Vec<u8>, GunzipError> {
        if self.packed == 0 {
            return Ok(Vec::new());
        }
        self.decoder.try_finish().map_err(|_| GunzipError::Damaged)?;
        self.take()
    }

    fn take(&mut self) -> Result<Vec<u8>, GunzipError> {
        let out = std::mem::take(self.decoder.get_mut());
        self.unpacked += out.len() as u64;
        if self.unpacked > self.at_most {
            return Err(GunzipError::TooLarge);
        }
        if !self.any_ratio && self.unpacked > ANY_RATIO && self.unpacked > self.packed.saturating_mul(RATIO) {
            return Err(GunzipError::Bomb);
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use flate2::{Compression, write::GzEncoder};
    use proptest::prelude::*;

    use super::*;

    /// Everything that comes out, and the largest piece of it.
    fn unpack(packed: &[u8], at_most: usize, pieces: usize) -> (Result<Vec<u8>, GunzipError>, usize) {
        let mut gunzip = Gunzip::new(at_most);
        let (mut whole, mut largest) = (Vec::new(), 0);
        for mut piece in packed.chunks(pieces) {
            while !piece.is_empty() {
                match gunzip.step(piece) {
                    Ok((used, out)) => {
                        piece = &piece[used..];
                        largest = largest.max(out.len());
                        whole.extend(out);
                    }
                    Err(error) => return (Err(error), largest),
                }
            }
        }
        match gunzip.finish() {
            Ok(out) => {
                largest = largest.max(out.len());
                whole.extend(out);
                (Ok(whole), largest)
            }
            Err(error) => (Err(error), largest),
        }
    }

    fn pack(plain: &[u8], level: u32) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level));
        encoder.write_all(plain).expect("into memory");
        encoder.finish().expect("into memory")
    }

    /// `printf 'hello hello hello hello\n' | gzip -n9`, by GNU gzip 1.12.
    const HELLO: &[u8] = &[
        0x1f, 0x8b, 0x08, 0x00, 0x00, 0x00, 0x00, 0x00, 0x02, 0x03, 0xcb, 0x48, 0xcd, 0xc9, 0xc9, 0x57, 0xc8, 0x40,
        0x27, 0xb9, 0x00, 0x00, 0x88, 0x59, 0x0b, 0x18, 0x00, 0x00, 0x00,
    ];

    #[test]
    fn what_is_cut_off_damaged_or_followed_by_something_else_is_refused() {
        let packed = pack(b"{\"a\": 1}", 9);
        assert_eq!(unpack(&packed, 100, 3).0.as_deref(), Ok(b"{\"a\": 1}".as_slice()));
        for end in 1..packed.len() {
            assert_eq!(unpack(&packed[..end], 100, 4).0, Err(GunzipError::Damaged), "{end} bytes of it");
        }
        assert_eq!(unpack(&[&packed, b"x".as_slice()].concat(), 100, 1000).0, Err(GunzipError::Damaged));
        assert_eq!(unpack(b"{\"a\": 1}", 100, 1000).0, Err(GunzipError::Damaged));
        let mut damaged = packed.clone();
        let checksum = damaged.len() - 8;
        damaged[checksum] ^= 1;
        assert!(unpack(&damaged, 100, 1000).0.is_err(), "another checksum");
        // Members one after another are one stream.
        assert_eq!(
            unpack(&[packed.clone(), packed].concat(), 100, 7).0.as_deref(),
            Ok(b"{\"a\": 1}{\"a\": 1}".as_slice())
        );
    }

    #[test]
    fn a_bomb_is_refused_by_its_size_or_by_its_ratio() {
        let bomb = pack(&vec![0; 64 << 20], 9);
        assert!(bomb.len() < 100_000);
        assert_eq!(unpack(&bomb, 1 << 20, 16_384).0, Err(GunzipError::TooLarge));
        assert_eq!(unpack(&bomb, 1 << 30, 16_384).0, Err(GunzipError::Bomb));
        let small = vec![0; 1 << 20];
        assert_eq!(unpack(&pack(&small, 9), 1 << 20, 16_384).0, Ok(small));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn any_bytes_are_unpacked_or_refused_within_the_limit(
            bytes in prop::collection::vec(any::<u8>(), 0..4096),
            begins_well in any::<bool>(),
            at_most in 0_usize..10_000,
            pieces in 1_usize..5000,
        ) {
            let header = if begins_well { &HELLO[..10] } else { &[] };
            let (whole, largest) = unpack(&[header, &bytes].concat(), at_most, pieces);
            prop_assert!(whole.map_or(0, |whole| whole.len()) <= at_most);
            prop_assert!(largest <= 128 << 10);
        }

        #[test]
        fn any_gzip_comes_out_as_it_went_in_if_the_limit_allows_it_and_not_at_all_otherwise(
            seed in prop::collection::vec(any::<u8>(), 1..300),
            times in 1_usize..2000,
            level in 0_u32..10,
            at_most in 0_usize..600_000,
            pieces in 1_usize..70_000,
        ) {
            let plain = seed.repeat(times);
            let (whole, largest) = unpack(&pack(&plain, level), at_most, pieces);
            prop_assert!(largest <= 128 << 10, "{} at once", largest);
            if plain.len() <= at_most {
                prop_assert_eq!(whole, Ok(plain));
            } else {
                prop_assert_eq!(whole, Err(GunzipError::TooLarge));
            }
        }

        #[test]
        fn damaged_gzip_never_comes_out_as_something_else(
            plain in prop::collection::vec(any::<u8>(), 1..2000),
            at in any::<prop::sample::Index>(),
            flip in 1_u8..,
        ) {
            let mut packed = pack(&plain, 6);
            let at = at.index(packed.len());
            packed[at] ^= flip;
            if let (Ok(whole), _) = unpack(&packed, 1 << 20, 1000) {
                // What was hit says nothing about the content: its name, its time or its origin; or a repeat within equal
                // bytes came from another place.
                prop_assert_eq!(whole, plain);
            }
        }
    }

    #[test]
    fn what_gzip_itself_has_packed_is_read() {
        assert_eq!(unpack(HELLO, 100, 1).0.as_deref(), Ok(b"hello hello hello hello\n".as_slice()));
    }
}
