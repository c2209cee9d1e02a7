//! Those who send slowly, endlessly, or nothing at all: each is closed in time, and nobody else waits for them.

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use flate2::{Compression, write::GzEncoder};
use futures_util::future::join_all;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};

use crate::harness::{
    counted::counted,
    http::{Http, parts},
    process::{Installation, Up},
    scale::sized,
    wait::until,
    wire::{Answer, address, connect, drip, peak_megabytes, raw, rest},
};

fn open_with(configuration: &str) -> (Installation, Up, Http) {
    let installation = Installation::embedded(configuration);
    let up = installation.up(&[]);
    let http = Http::to(up.gateway());
    (installation, up, http)
}

const HEAD: &str = "POST /v1/jobs/warren.probe HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";

fn refused(answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.status(), answer.json()["code"].as_str()), (status, Some(code)), "{answer:?}");
}

/// Whether an answer has come in with as much as its head says.
fn is_whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    length.is_some_and(|length| body.len() >= length)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_has_five_seconds_and_a_pause_between_requests_more() {
    let (_installation, up, _http) = open_with("");
    let slow = async {
        let mut stream = connect(&up).await;
        let began = Instant::now();
        let answer = drip(&mut stream, b"GET", Duration::from_millis(400), 100).await;
        refused(&answer, 408, "slow_head");
        assert!((4.5..15.0).contains(&began.elapsed().as_secs_f64()), "{:?}", began.elapsed());
    };
    let silent = async {
        let began = Instant::now();
        let answer = raw(up.gateway(), b"").await;
        assert_eq!(answer.text, "");
        assert!((9.5..25.0).contains(&began.elapsed().as_secs_f64()), "{:?}", began.elapsed());
    };
    let pausing = async {
        let mut stream = connect(&up).await;
        for _ in 0..2 {
            stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
            let mut answer = Vec::new();
            // Whole, however many pieces it comes in: what is left of it would be taken for the next.
            while !is_whole(&answer) {
                assert!(stream.read_buf(&mut answer).await.unwrap() > 0, "{}", String::from_utf8_lossy(&answer));
            }
            assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
            // Longer than a head may take, and than a new connection may say nothing.
            tokio::time::sleep(Duration::from_secs(11)).await;
        }
        // An empty line is no head yet; one that then begins has its own five seconds.
        stream.write_all(b"\r\n").await.unwrap();
        tokio::time::sleep(Duration::from_secs(6)).await;
        let answer = drip(&mut stream, b"GET / HTTP/1.1\r\nhost: x\r\n", Duration::from_mins(1), 1).await;
        refused(&answer, 408, "slow_head");
    };
    // The same for one that begins behind another, in the same segment.
    let behind = async {
        let began = Instant::now();
        let answer = raw(up.gateway(), b"GET / HTTP/1.1\r\nhost: x\r\n\r\nGET / HTT").await;
        assert!(answer.text.starts_with("HTTP/1.1 200 ") && answer.text.contains("slow_head"), "{answer:?}");
        assert!((4.5..15.0).contains(&began.elapsed().as_secs_f64()), "{:?}", began.elapsed());
    };
    let resting = async {
        if sized(true, false) {
            return;
        }
        let mut stream = connect(&up).await;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let began = Instant::now();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        assert!((59.0..70.0).contains(&began.elapsed().as_secs_f64()), "{:?}", began.elapsed());
    };
    tokio::join!(slow, silent, pausing, behind, resting);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_must_keep_a_pace() {
    let (_installation, up, _http) = open_with("");
    let slow = async |head: String, piece: &[u8]| {
        let mut stream = connect(&up).await;
        stream.write_all(head.as_bytes()).await.unwrap();
        let began = Instant::now();
        let answer = drip(&mut stream, piece, Duration::from_millis(300), 100).await;
        refused(&answer, 408, "slow_body");
        assert!(answer.json()["detail"].as_str().unwrap().contains("1024 bytes a second"), "{answer:?}");
        assert!((4.5..20.0).contains(&began.elapsed().as_secs_f64()), "{:?}", began.elapsed());
    };
    let many = HEAD.replace("/warren.probe", "");
    tokio::join!(
        slow(format!("{HEAD}content-length: 1000\r\n\r\n"), b" "),
        slow(format!("{HEAD}transfer-encoding: chunked\r\n\r\n"), b"1\r\n \r\n"),
        slow(format!("{many}transfer-encoding: chunked\r\n\r\n"), b"1\r\n \r\n"),
        // Kept at first, and then no more.
        async {
            let mut stream = connect(&up).await;
            let body = " ".repeat(3000);
            stream.write_all(format!("{HEAD}content-length: 4000\r\n\r\n{body}").as_bytes()).await.unwrap();
            refused(&rest(&mut stream).await, 408, "slow_body");
        },
        // One that is kept is slow and no trouble.
        async {
            let mut stream = connect(&up).await;
            stream
                .write_all(format!("{HEAD}connection: close\r\ncontent-length: 20002\r\n\r\n{{").as_bytes())
                .await
                .unwrap();
            for _ in 0..10 {
                tokio::time::sleep(Duration::from_secs(1)).await;
                stream.write_all(" ".repeat(2000).as_bytes()).await.unwrap();
            }
            stream.write_all(b"}").await.unwrap();
            assert_eq!(rest(&mut stream).await.status(), 202);
        }
    );
}

/// Sends chunks until the other side closes. Answers how much was sent, and what came back.
async fn endless(up: &Up, path: &str, bytes: u64) -> (u64, Answer) {
    let mut stream = connect(up).await;
    let head = HEAD.replace("/v1/jobs/warren.probe", path);
    stream.write_all(format!("{head}transfer-encoding: chunked\r\n\r\n").as_bytes()).await.unwrap();
    let chunk = [b"10000\r\n".as_slice(), &b" ".repeat(0x10000), b"\r\n"].concat();
    let (mut reader, mut writer) = stream.into_split();
    let read = tokio::spawn(async move {
        let mut answer = Vec::new();
        _ = reader.read_to_end(&mut answer).await;
        Answer { text: String::from_utf8_lossy(&answer).into_owned() }
    });
    let mut sent = 0;
    while sent < bytes && writer.write_all(&chunk).await.is_ok() {
        sent += 0x10000;
    }
    (sent, read.await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_gigabytes_of_a_body_are_not_taken() {
    let (_installation, up, http) = open_with("");
    let (sent, answer) = endless(&up, "/v1/jobs/warren.probe", 10 << 30).await;
    refused(&answer, 413, "too_large");
    assert!(sent < 64 << 20, "{sent} bytes were taken");
    // One that is looked through while it comes in has its limit too.
    let (sent, answer) = endless(&up, "/v1/jobs", sized(2 << 20, 10 << 30)).await;
    if sized(false, true) {
        refused(&answer, 413, "too_large");
        assert!(sent < 512 << 20, "{sent} bytes were taken");
    }
    let length = format!("{HEAD}content-length: {}\r\n\r\n", 10_u64 << 30);
    refused(&raw(up.gateway(), length.as_bytes()).await, 413, "too_large");
    http.submit("warren.probe", &json!({})).await;
    let peak = peak_megabytes(up.pid());
    assert!(peak < 150, "{peak} MB");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_everything_before_he_reads_learns_why_it_was_refused() {
    let (_installation, up, _http) = open_with("");
    let body = " ".repeat(12 << 20);
    let with_length = format!("{HEAD}content-length: {}\r\n\r\n{body}", body.len());
    let chunked = format!("{HEAD}transfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let text = with_length.replace("application/json", "text/plain");
    for (request, status, code) in
        [(with_length, 413, "too_large"), (chunked, 413, "too_large"), (text, 415, "unsupported_content_type")]
    {
        let mut stream = connect(&up).await;
        stream.write_all(request.as_bytes()).await.expect("it is taken to its end");
        refused(&rest(&mut stream).await, status, code);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_too_many_is_told_so_and_its_place_is_free_again_later() {
    let (_installation, up, _http) = open_with("[gateway]\nmax_connections_per_address = 3\n");
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut stream = connect(&up).await;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut first = [0; 16];
        stream.read_exact(&mut first).await.unwrap();
        held.push(stream);
    }
    let answer = raw(up.gateway(), format!("{HEAD}content-length: 2\r\n\r\n{{}}").as_bytes()).await;
    refused(&answer, 503, "overloaded");
    assert_eq!((answer.header("retry-after"), answer.header("connection")), (Some("1"), Some("close")));
    held.pop();
    let request = format!("{HEAD}connection: close\r\ncontent-length: 2\r\n\r\n{{}}");
    until("there is a place", async || {
        let answer = raw(up.gateway(), request.as_bytes()).await;
        (answer.status() == 202).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_too_many_is_told_so_and_nothing_is_taken_of_it() {
    let (_installation, up, http) = open_with("[gateway]\nmax_requests = 1\n");
    let waiting =
        http.post("/v1/jobs/warren.probe").header("prefer", "wait=20").json(&json!({ "work_ms": 3000 })).send();
    let waiting = tokio::spawn(waiting);
    let other = Http::to(up.gateway());
    let answer = until("there is no room", async || {
        let answer = other.post("/v1/jobs/warren.probe").json(&json!({})).send().await.unwrap();
        (answer.status() == 503).then_some(answer)
    })
    .await;
    assert_eq!(answer.headers()["retry-after"], "1");
    assert_eq!(parts(answer).await.1["code"], "overloaded");
    assert_eq!(waiting.await.unwrap().unwrap().status(), 200);
    other.submit("warren.probe", &json!({})).await;
}

/// A frame of HTTP/2 (RFC 9113, section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_requests_that_are_called_off_ends_its_connection_and_no_other() {
    const SETTINGS: u8 = 4;
    const HEADERS: u8 = 1;
    const RST_STREAM: u8 = 3;
    const GOAWAY: u8 = 7;
    let (_installation, up, http) = open_with("");
    let mut flood = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    flood.extend(frame(SETTINGS, 0, 0, &[]));
    for stream in (1..20_000).step_by(2) {
        // GET, http, /, from HPACK's static table, and an authority of its own; then CANCEL.
        flood.extend(frame(HEADERS, 5, stream, &[0x82, 0x86, 0x84, 0x41, 1, b'x']));
        flood.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
    }
    let mut stream = connect(&up).await;
    let (mut reader, mut writer) = stream.split();
    let mut answer = Vec::new();
    let (_, read) = tokio::join!(writer.write_all(&flood), async {
        tokio::time::timeout(Duration::from_secs(30), reader.read_to_end(&mut answer)).await
    });
    _ = read.expect("it is closed");
    let mut frames = answer.as_slice();
    let mut goodbye = None;
    while let [a, b, c, kind, _, _, _, _, _, rest @ ..] = frames {
        let length = usize::try_from(u32::from_be_bytes([0, *a, *b, *c])).unwrap();
        if *kind == GOAWAY {
            goodbye = Some(u32::from_be_bytes(rest[4..8].try_into().unwrap()));
        }
        frames = &rest[length.min(rest.len())..];
    }
    // ENHANCE_YOUR_CALM
    assert_eq!(goodbye, Some(11));
    http.submit("warren.probe", &json!({})).await;
}

/// Sends jobs from a few clients at once, and answers how long the slowest in a hundred took.
async fn p99(url: &str, requests: usize) -> Duration {
    let clients = (0..4).map(|_| {
        let http = Http::to(url);
        async move {
            let mut took = Vec::new();
            for _ in 0..requests / 4 {
                let began = Instant::now();
                http.submit("warren.probe", &json!({})).await;
                took.push(began.elapsed());
            }
            took
        }
    });
    let mut took: Vec<_> = join_all(clients).await.into_iter().flatten().collect();
    took.sort_unstable();
    took[took.len() * 99 / 100 - 1]
}

/// Everything bad at once that costs its sender little, until it is aborted.
fn siege(up: &Up, idle: usize, slow: usize) -> JoinSet<()> {
    let mut siege = JoinSet::new();
    let target = address(up.gateway()).to_owned();
    for _ in 0..idle {
        let target = target.clone();
        siege.spawn(async move {
            // Once used, and then held.
            loop {
                let Ok(mut stream) = TcpStream::connect(&target).await else { continue };
                _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
                let mut nothing = Vec::new();
                _ = stream.read_to_end(&mut nothing).await;
            }
        });
    }
    let bomb = {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&vec![b' '; 100 << 20]).unwrap();
        encoder.finish().unwrap()
    };
    let packed = format!("{HEAD}content-encoding: gzip\r\ncontent-length: {}\r\n\r\n", bomb.len());
    let bomb = [packed.into_bytes(), bomb].concat();
    let chunks = format!("{HEAD}transfer-encoding: chunked\r\n\r\n");
    for number in 0..slow {
        let (target, bomb, chunks) = (target.clone(), bomb.clone(), chunks.clone());
        siege.spawn(async move {
            loop {
                let Ok(mut stream) = TcpStream::connect(&target).await else { continue };
                match number % 4 {
                    0 => drop(drip(&mut stream, b"G", Duration::from_millis(500), 100).await),
                    1 => {
                        _ = stream.write_all(chunks.as_bytes()).await;
                        _ = drip(&mut stream, b"1\r\n \r\n", Duration::from_millis(500), 100).await;
                    }
                    2 => {
                        _ = stream.write_all(chunks.as_bytes()).await;
                        _ = drip(
                            &mut stream,
                            &[b"8000\r\n".as_slice(), &b" ".repeat(0x8000), b"\r\n"].concat(),
                            Duration::ZERO,
                            1000,
                        )
                        .await;
                    }
                    _ => {
                        _ = stream.write_all(&bomb).await;
                        _ = rest(&mut stream).await;
                    }
                }
                // Whoever is refused tries again, though not at once.
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
        });
    }
    siege
}

#[tokio::test(flavor = "multi_thread")]
async fn under_siege_memory_stays_bounded_and_other_clients_are_served() {
    let (_installation, up, _http) = open_with("");
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("as many as may be");
    let requests = sized(400, 4000);
    let quiet = p99(up.gateway(), requests).await;
    let (idle, slow) = (sized(150, 2000), sized(24, 100));
    let mut siege = siege(&up, idle, slow);
    let open = async || counted(&up, ("warren_connections", &[("listener", "gateway")])).await;
    until("it is besieged", async || (open().await >= idle as u64).then_some(())).await;
    let besieged = p99(up.gateway(), requests).await;
    siege.abort_all();
    let peak = peak_megabytes(up.pid());
    println!("p99 {quiet:?} alone and {besieged:?} under siege by {} connections; at most {peak} MB", idle + slow);
    assert!(peak < 150, "{peak} MB");
    if sized(false, true) {
        assert!(besieged <= quiet * 3, "p99 was {quiet:?} and is {besieged:?}");
    }
}
