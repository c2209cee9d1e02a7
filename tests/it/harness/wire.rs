//! Bytes on a connection, where a client of HTTP would refuse to send them.

use std::time::Duration;

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::{process::Up, wait::SOON};

/// What came back on a connection until the other side closed it.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) text: String,
}

impl Answer {
    /// The status, or 0 where there was no answer.
    pub(crate) fn status(&self) -> u16 {
        self.text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
    }

    /// A header, by its name in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let head = self.text.split("\r\n\r\n").next()?;
        head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    /// The body as JSON.
    pub(crate) fn json(&self) -> Value {
        let body = self.text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }
}

/// Where a gateway listens, as an address.
pub(crate) fn address(url: &str) -> &str {
    url.split_once("://").map_or(url, |(_, address)| address)
}

pub(crate) async fn connect(up: &Up) -> TcpStream {
    TcpStream::connect(address(up.gateway())).await.expect("a connection")
}

/// Reads until the other side closes.
pub(crate) async fn rest(stream: &mut TcpStream) -> Answer {
    let mut bytes = Vec::new();
    // A connection that is reset is closed too.
    _ = timeout(SOON, stream.read_to_end(&mut bytes)).await.expect("it is closed");
    Answer { text: String::from_utf8_lossy(&bytes).into_owned() }
}

/// Sends bytes as they are, and reads until the other side closes.
pub(crate) async fn raw(url: &str, bytes: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(address(url)).await.expect("a connection");
    // It may be closed before everything is sent.
    _ = stream.write_all(bytes).await;
    rest(&mut stream).await
}

/// Sends a piece, and then another one after each pause, until the other side closes or the pieces end.
pub(crate) async fn drip(stream: &mut TcpStream, piece: &[u8], pause: Duration, times: usize) -> Answer {
    let (mut reader, mut writer) = stream.split();
    let mut bytes = Vec::new();
    let pieces = async {
        for _ in 0..times {
            if writer.write_all(piece).await.is_err() {
                break;
            }
            tokio::time::sleep(pause).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        _ = timeout(SOON, reader.read_to_end(&mut bytes)) => {}
        () = pieces => {}
    }
    Answer { text: String::from_utf8_lossy(&bytes).into_owned() }
}

/// How much memory a process has taken at most, in megabytes.
pub(crate) fn peak_megabytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux says so");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") / 1024
}
