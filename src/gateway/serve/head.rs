//! Reads along with the head of a request of HTTP/1, to know what hyper does not tell: when it begins, and whether it
//! gives the length of its body twice.
//!
//! hyper takes a request with both a Content-Length and chunks by its chunks, closes the connection after it, and shows
//! only the chunks. That is safe, and yet whoever sends such a thing means to have it read differently by someone.

/// As much of a line as tells its name.
const KEPT: usize = b"transfer-encoding:".len();

/// The head of a request, as far as it has come in.
#[derive(Debug, Default)]
pub(super) struct Head {
    line: [u8; KEPT],
    /// Of the line that is coming in, to its full length.
    long: usize,
    lines: usize,
    length: bool,
    encoding: bool,
    whole: bool,
}

/// What is known of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// Nothing but empty lines has come.
    Nothing,
    /// It has begun.
    Begun,
    /// It is none: the connection speaks HTTP/2.
    Http2,
    /// It has come in.
    Whole {
        /// It gives both a Content-Length and a Transfer-Encoding.
        contradicts: bool,
    },
}

impl Head {
    /// Takes in more of it. What follows it is not looked at.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Seen {
        for byte in bytes {
            if self.whole {
                break;
            }
            if *byte != b'\n' {
                if let Some(place) = self.line.get_mut(self.long) {
                    *place = *byte;
                }
                self.long += 1;
            } else if self.end_line() {
                return Seen::Http2;
            }
        }
        match (self.whole, self.has_begun()) {
            (true, _) => Seen::Whole { contradicts: self.length && self.encoding },
            (false, true) => Seen::Begun,
            (false, false) => Seen::Nothing,
        }
    }

    /// Whether its first line has come in.
    pub(super) fn has_first_line(&self) -> bool {
        self.lines > 0
    }

    fn is_blank(&self) -> bool {
        self.long == 0 || self.long == 1 && self.line[0] == b'\r'
    }

    fn has_begun(&self) -> bool {
        self.lines > 0 || !self.is_blank()
    }

    /// Whether this was the first line of HTTP/2's preface.
    fn end_line(&mut self) -> bool {
        if self.is_blank() {
            // Empty lines may stand before a request.
            self.whole = self.lines > 0;
        } else {
            self.lines += 1;
            let line = &self.line[..self.long.min(KEPT)];
            if self.lines == 1 && line.starts_with(b"PRI * HTTP/2.0") {
                return true;
            }
            let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
            self.length |= name.eq_ignore_ascii_case(b"content-length");
            self.encoding |= name.eq_ignore_ascii_case(b"transfer-encoding");
        }
        self.long = 0;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, pieces: usize) -> Seen {
        let mut head = Head::default();
        text.as_bytes().chunks(pieces).fold(Seen::Nothing, |_, piece| head.read(piece))
    }

    #[test]
    fn a_head_is_seen_however_it_comes_in() {
        let both =
            "\r\nPOST / HTTP/1.1\r\nContent-Length: 2\r\nhost: x\r\nTRANSFER-ENCODING: chunked\r\n\r\n2\r\n{}\r\n";
        let one =
            "POST / HTTP/1.1\ncontent-length-of-something: 2\ntransfer-encoding:chunked\n\nContent-Length: 3\r\n\r\n";
        for pieces in [1, 2, 3, 7, 1000] {
            assert_eq!(read(both, pieces), Seen::Whole { contradicts: true }, "{pieces}");
            assert_eq!(read(one, pieces), Seen::Whole { contradicts: false }, "{pieces}");
            assert_eq!(read("\r\n\n\r\n", pieces), Seen::Nothing);
            assert_eq!(read("\r\nG", pieces), Seen::Begun);
            assert_eq!(read("GET / HTTP/1.1\r\nhost: x\r\n", pieces), Seen::Begun);
        }
        let preface = "PRI * HTTP/2.0\r\n";
        assert_eq!([read(preface, 1), read(preface, 5), read(preface, 1000)], [Seen::Http2; 3]);
    }
}
