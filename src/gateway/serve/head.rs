//! Reads along with what a connection of HTTP/1 brings, to know what hyper does not tell: when a head begins, and whether
//! it gives the length of its body twice.
//!
//! hyper takes a request with both a Content-Length and chunks by its chunks, closes the connection after it, and shows
//! only the chunks. That is safe, and yet whoever sends such a thing means to have it read differently by someone.
//! Requests may come in one behind the other, several in one segment, before the first of them is answered; so this reads
//! on behind a head, past its body, to the next one. It agrees with hyper about where a body ends, or hyper refuses the
//! request. Of HTTP/2 nothing is read here: its heads are frames, which h2 bounds.

/// As much of a line as tells its name.
const KEPT: usize = b"transfer-encoding:".len();
const LENGTH: &[u8] = b"content-length:";

/// The heads that have come in, and the one that is coming in.
#[derive(Debug, Default)]
pub(super) struct Heads {
    part: Part,
    line: [u8; KEPT],
    /// Of the line that is coming in, to its full length.
    long: usize,
    lines: usize,
    length: Option<Length>,
    encoding: bool,
    /// How many have come in whole.
    whole: u64,
    /// The last of them gives both a Content-Length and a Transfer-Encoding.
    contradicts: bool,
    http2: bool,
}

/// What is coming in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Part {
    #[default]
    Head,
    /// So much of a body, or of a chunk with the end of its line.
    Body {
        left: u64,
        chunked: bool,
    },
    /// The line before a chunk.
    Size(u64),
    /// What stands behind the size.
    Extension(u64),
    SizeEnd(u64),
    /// Behind the last chunk: an empty line, or fields and then an empty line.
    Last,
    LastEnd,
    Trailer,
    TrailerEnd,
    /// What hyper refuses, or reads no further behind.
    Lost,
}

/// What a Content-Length says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Length {
    Bytes(u64),
    Unreadable,
}

impl Heads {
    /// Takes in what came.
    pub(super) fn read(&mut self, mut bytes: &[u8]) {
        while let Some(first) = bytes.first().copied() {
            let taken = match self.part {
                Part::Head => self.read_head(bytes),
                Part::Body { left, chunked } => {
                    let taken = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                    self.part = match (left - taken as u64, chunked) {
                        (0, true) => Part::Size(0),
                        (0, false) => Part::Head,
                        (left, chunked) => Part::Body { left, chunked },
                    };
                    taken
                }
                Part::Lost => return,
                part => {
                    self.part = between_chunks(part, first);
                    1
                }
            };
            bytes = &bytes[taken..];
        }
    }

    /// How many have come in whole.
    pub(super) fn whole(&self) -> u64 {
        self.whole
    }

    /// Whether the last that came in whole gives the length of its body twice.
    pub(super) fn contradicts(&self) -> bool {
        self.contradicts
    }

    /// Whether one has begun that is not whole. Empty lines may stand before it.
    pub(super) fn has_begun(&self) -> bool {
        self.part == Part::Head && (self.lines > 0 || !self.is_blank())
    }

    /// Whether the first line of one has come in that is not whole.
    pub(super) fn has_first_line(&self) -> bool {
        self.lines > 0
    }

    /// Whether there are none: the connection speaks HTTP/2.
    pub(super) fn is_http2(&self) -> bool {
        self.http2
    }

    /// Takes in a head as far as the end of a line, and answers how much that was.
    fn read_head(&mut self, bytes: &[u8]) -> usize {
        let end = memchr::memchr(b'\n', bytes);
        let piece = &bytes[..end.unwrap_or(bytes.len())];
        let before = self.long.min(KEPT);
        let kept = piece.len().min(KEPT - before);
        self.line[before..before + kept].copy_from_slice(&piece[..kept]);
        let known = self.long;
        self.long += piece.len();
        if self.long >= LENGTH.len() && self.line[..LENGTH.len()].eq_ignore_ascii_case(LENGTH) {
            self.read_length(&piece[LENGTH.len().saturating_sub(known)..], known <= LENGTH.len());
        }
        if end.is_none() {
            return piece.len();
        }
        self.end_line();
        piece.len() + 1
    }

    /// Takes in more of the value of a Content-Length. Where two differ, hyper refuses the request.
    fn read_length(&mut self, value: &[u8], is_first: bool) {
        let mut length = self.length.filter(|_| !is_first).unwrap_or(Length::Bytes(0));
        for byte in value {
            length = match (byte, length) {
                (b' ' | b'\t' | b'\r', length) => length,
                (b'0'..=b'9', Length::Bytes(bytes)) => {
                    let more = bytes.checked_mul(10).and_then(|bytes| bytes.checked_add(u64::from(byte - b'0')));
                    more.map_or(Length::Unreadable, Length::Bytes)
                }
                _ => Length::Unreadable,
            };
        }
        self.length = Some(length);
    }

    fn is_blank(&self) -> bool {
        self.long == 0 || self.long == 1 && self.line[0] == b'\r'
    }

    fn end_line(&mut self) {
        if !self.is_blank() {
            self.lines += 1;
            let line = &self.line[..self.long.min(KEPT)];
            if self.lines == 1 && self.whole == 0 && line.starts_with(b"PRI * HTTP/2.0") {
                self.http2 = true;
                self.part = Part::Lost;
            }
            self.encoding |= line.eq_ignore_ascii_case(b"transfer-encoding:");
        } else if self.lines > 0 {
            self.end_head();
        }
        self.long = 0;
    }

    fn end_head(&mut self) {
        self.whole += 1;
        self.lines = 0;
        self.contradicts = self.length.is_some() && self.encoding;
        self.part = match (self.length.take(), std::mem::take(&mut self.encoding)) {
            (None, false) | (Some(Length::Bytes(0)), false) => Part::Head,
            (Some(Length::Bytes(left)), false) => Part::Body { left, chunked: false },
            (None, true) => Part::Size(0),
            (Some(Length::Unreadable), false) | (Some(_), true) => Part::Lost,
        };
    }
}

/// What comes behind a byte that stands between chunks.
fn between_chunks(part: Part, byte: u8) -> Part {
    match (part, byte) {
        (Part::Size(size) | Part::Extension(size), b'\r') => Part::SizeEnd(size),
        (Part::Size(size), b' ' | b'\t' | b';') => Part::Extension(size),
        (Part::Size(size), digit) => {
            let digit = char::from(digit).to_digit(16).map(u64::from);
            let size = digit.and_then(|digit| size.checked_mul(16)?.checked_add(digit));
            size.map_or(Part::Lost, Part::Size)
        }
        (Part::Extension(_), b'\n') => Part::Lost,
        (Part::Extension(size), _) => Part::Extension(size),
        (Part::SizeEnd(0), b'\n') => Part::Last,
        (Part::SizeEnd(size), b'\n') => {
            size.checked_add(2).map_or(Part::Lost, |left| Part::Body { left, chunked: true })
        }
        (Part::Last, b'\r') => Part::LastEnd,
        (Part::LastEnd, b'\n') => Part::Head,
        (Part::Trailer, b'\r') => Part::TrailerEnd,
        (Part::TrailerEnd, b'\n') => Part::Last,
        (Part::Last | Part::Trailer, _) => Part::Trailer,
        _ => Part::Lost,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, pieces: usize) -> Heads {
        let mut heads = Heads::default();
        text.as_bytes().chunks(pieces).for_each(|piece| heads.read(piece));
        heads
    }

    /// How many heads there are, whether the last contradicts itself, and whether another has begun.
    fn seen(text: &str, pieces: usize) -> (u64, bool, bool) {
        let heads = read(text, pieces);
        (heads.whole(), heads.contradicts(), heads.has_begun())
    }

    const PIECES: [usize; 6] = [1, 2, 3, 7, 16, 1000];

    #[test]
    fn a_head_is_seen_however_it_comes_in() {
        let both =
            "\r\nPOST / HTTP/1.1\r\nContent-Length: 2\r\nhost: x\r\nTRANSFER-ENCODING: chunked\r\n\r\n2\r\n{}\r\n";
        let turned = "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: x\r\n\r\n";
        let one = "POST / HTTP/1.1\ncontent-length-of-something: 2\ntransfer-encoding:chunked\n\nContent-Length: 3\r\n";
        for pieces in PIECES {
            assert_eq!(seen(both, pieces), (1, true, false), "{pieces}");
            assert_eq!(seen(turned, pieces), (1, true, false), "{pieces}");
            assert_eq!(seen(one, pieces), (1, false, false), "{pieces}");
            assert_eq!(seen("\r\n\n\r\n", pieces), (0, false, false));
            assert_eq!(seen("\r\nG", pieces), (0, false, true));
            assert_eq!(seen("GET / HTTP/1.1\r\nhost: x\r\n", pieces), (0, false, true));
            assert!(read("GET / HTTP/1.1\r\n", pieces).has_first_line());
            assert!(read("PRI * HTTP/2.0\r\n", pieces).is_http2());
        }
    }

    #[test]
    fn a_head_is_seen_behind_whatever_came_before_it() {
        const GET: &str = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";
        const BOTH: &str = "POST / HTTP/1.1\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n";
        let before = [
            String::new(),
            "\r\n\n".into(),
            GET.into(),
            GET.repeat(5),
            "POST / HTTP/1.1\r\ncontent-length:\t 0 \r\n\r\n".into(),
            "POST / HTTP/1.1\r\nCONTENT-LENGTH:004 \r\n\r\nGET ".into(),
            format!("POST / HTTP/1.1\ncontent-length: {}\n\n{BOTH}", BOTH.len()),
            "POST / HTTP/1.1\r\ncontent-length: 3\r\ncontent-length: 3\r\n\r\n\r\n\r".into(),
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".into(),
            // RFC 9112, section 7.1: extensions, digits of both cases, leading zeros, trailers.
            "POST / HTTP/1.1\r\ntransfer-encoding: gzip, chunked\r\n\r\n00b;a=\"b\"\r\nGET / HTTP/\r\n1A \t\r\nabcdefghijklmnopqrstuvwx\r\n\r\n0;x\r\nx: 1\r\ny: 2\n\nz\r\n\r\n".into(),
        ];
        for before in before {
            let heads = before.matches("HTTP/1.1").count() as u64 - u64::from(before.contains(BOTH));
            for pieces in PIECES {
                let label = format!("{pieces}: {before:?}");
                assert_eq!(seen(&before, pieces), (heads, false, false), "{label}");
                assert_eq!(seen(&format!("{before}{GET}"), pieces), (heads + 1, false, false), "{label}");
                assert_eq!(seen(&format!("{before}{BOTH}2\r\n{{}}\r\n"), pieces), (heads + 1, true, false), "{label}");
                assert_eq!(seen(&format!("{before}{GET}GE"), pieces), (heads + 1, false, true), "{label}");
            }
        }
    }

    #[test]
    fn behind_what_hyper_refuses_nothing_is_taken_for_a_head() {
        let refused = [
            "POST / HTTP/1.1\r\ncontent-length: -2\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-length: 99999999999999999999\r\n\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: 1\r\r\n",
        ];
        for refused in refused {
            for pieces in PIECES {
                let text = format!("{refused}GET / HTTP/1.1\r\nhost: x\r\n\r\n");
                assert_eq!(seen(&text, pieces), (1, false, false), "{pieces}: {refused:?}");
            }
        }
    }
}
