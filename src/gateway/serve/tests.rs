//! Connections of HTTP/2 whose other side takes no answer, with hyper's client on the other end and little patience.

use std::{convert::Infallible, net::Ipv4Addr, time::Duration};

use axum::{Router, body::Body, routing::get};
use bytes::Bytes;
use futures_util::stream;
use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use hyper::client::conn::http2::{self, SendRequest};
use tokio::{task::JoinHandle, time::timeout};

use super::*;

const PATIENCE: Duration = Duration::from_millis(500);
const LONG: Duration = Duration::from_secs(20);

/// One connection, and how many requests may be under way.
struct Talk {
    client: SendRequest<String>,
    requests: Arc<Semaphore>,
    served: JoinHandle<()>,
}

impl Talk {
    /// With a client whose every stream has this window for answers.
    async fn begin(window: u32) -> Self {
        let pausing = || async {
            let pieces = stream::unfold(0, |piece| async move {
                if piece > 0 {
                    tokio::time::sleep(PATIENCE * 2).await;
                }
                (piece < 3).then(|| (Ok::<_, Infallible>(Bytes::from_static(b"piece ")), piece + 1))
            });
            Body::from_stream(pieces)
        };
        let pages = Router::new()
            .route("/small", get(|| async { "hello" }))
            .route("/large", get(|| async { "x".repeat(300_000) }))
            .route("/pausing", get(pausing));
        let requests = Arc::new(Semaphore::new(10));
        let listening = Listening {
            builder: builder(),
            pages,
            tls: None,
            requests: requests.clone(),
            told: Semaphore::new(0),
            stop: CancellationToken::new(),
        };
        let (near, far) = tokio::io::duplex(64 * 1024);
        let served = tokio::spawn(async move {
            let phase = Arc::new(Phase::new(PATIENCE));
            listening.requests(Wire::new(far, phase.clone()), (Ipv4Addr::LOCALHOST, 1).into(), &phase).await;
        });
        let mut client = http2::Builder::new(TokioExecutor::new());
        client.initial_stream_window_size(window).initial_connection_window_size(1 << 20);
        let (client, connection) = client.handshake(TokioIo::new(near)).await.unwrap();
        tokio::spawn(connection);
        Self { client, requests, served }
    }

    async fn ask(&mut self, page: &str) -> http::Response<hyper::body::Incoming> {
        let request = Request::get(format!("http://x/{page}")).body(String::new()).unwrap();
        timeout(LONG, self.client.send_request(request)).await.expect("an answer").unwrap()
    }

    /// Waits until the connection is dropped, and with it what it held.
    async fn dropped(self) {
        timeout(LONG, self.served).await.expect("it is dropped").unwrap();
        // The answers are in tasks of their own.
        let all = timeout(LONG, self.requests.acquire_many(10)).await.expect("all of them are over");
        drop(all.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_gives_no_window_for_his_answers_is_dropped() {
    // With one byte h2 takes an answer whole, and sends no more than that byte.
    for window in [0, 1] {
        let mut talk = Talk::begin(window).await;
        let mut held = Vec::new();
        for _ in 0..10 {
            held.push(talk.ask("small").await);
        }
        assert_eq!(talk.requests.available_permits(), 0, "they are under way");
        assert_eq!(talk.ask("small").await.status(), StatusCode::SERVICE_UNAVAILABLE);
        talk.dropped().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_over_http_2_is_told_a_problem_without_a_body() {
    let mut talk = Talk::begin(65_535).await;
    let long = format!("http://x/{}", "x".repeat(MAX_URL_BYTES));
    for (url, status) in [(long.as_str(), StatusCode::URI_TOO_LONG), ("http://x/small", StatusCode::OK)] {
        let request = Request::head(url).body(String::new()).unwrap();
        let answer = timeout(LONG, talk.client.send_request(request)).await.expect("an answer").unwrap();
        assert_eq!(answer.status(), status);
        let length: usize = answer.headers()["content-length"].to_str().unwrap().parse().unwrap();
        assert!(length >= "hello".len(), "{length}");
        // RFC 9113, section 8.1.1: a client takes bytes behind it for a mistake and ends the stream.
        let body = timeout(LONG, answer.into_body().collect()).await.expect("an end").expect("no mistake").to_bytes();
        assert!(body.is_empty(), "{body:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_one_answer_and_leaves_another_is_dropped() {
    let mut talk = Talk::begin(65_535).await;
    // Before it is asked for: the answer may have been left for a moment when the client sees its head.
    let began = Instant::now();
    let _left = talk.ask("large").await;
    while !talk.served.is_finished() {
        assert!(began.elapsed() < LONG, "it is still served");
        // The connection may go while it is asked.
        let request = Request::get("http://x/small").body(String::new()).unwrap();
        if let Ok(Ok(answer)) = timeout(PATIENCE, talk.client.send_request(request)).await {
            _ = timeout(PATIENCE, answer.into_body().collect()).await;
        }
    }
    assert!(began.elapsed() >= PATIENCE, "{:?}", began.elapsed());
    talk.dropped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_more_of_an_answer_is_not_dropped() {
    let mut talk = Talk::begin(65_535).await;
    let answer = talk.ask("pausing").await;
    let whole = timeout(LONG, answer.into_body().collect()).await.expect("an end").expect("all of it").to_bytes();
    assert_eq!(whole, b"piece piece piece ".as_slice());
    // One that is read slowly, but is read.
    let mut slow = talk.ask("large").await.into_body();
    let mut length = 0;
    while let Some(frame) = slow.frame().await {
        length += frame.expect("all of it").into_data().map_or(0, |data| data.len());
        tokio::time::sleep(PATIENCE / 10).await;
    }
    assert_eq!(length, 300_000);
}
