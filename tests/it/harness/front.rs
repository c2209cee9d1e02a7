//! An HTTP server in front of a gateway that passes requests on, or makes trouble of its own, one request at a time.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deed {
    /// The gateway answers it.
    Pass,
    /// It gets this status, to be tried again after a second. The gateway sees nothing of it.
    Answer(u16),
    /// Its connection ends without a word. The gateway sees nothing of it.
    Drop,
    /// The gateway answers it, and then its connection ends without a word.
    TakeAndDrop,
}

/// A request that came in, and what the gateway said if it was asked.
pub(crate) type Seen = (Deed, Option<(u16, String)>);

/// A server in front of a gateway.
pub(crate) struct Front {
    pub(crate) url: String,
    shared: Arc<Shared>,
}

struct Shared {
    gateway: String,
    client: reqwest::Client,
    script: Mutex<VecDeque<Deed>>,
    seen: Mutex<Vec<Seen>>,
}

/// The connection ends.
#[derive(Debug, thiserror::Error)]
#[error("the connection is dropped")]
struct Dropped;

impl Front {
    /// In front of a gateway, for a script of deeds, one for each request. What comes after them is passed on.
    pub(crate) async fn before(gateway: &str, script: &[Deed]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let (script, seen) = (Mutex::new(script.iter().copied().collect()), Mutex::default());
        let shared = Arc::new(Shared { gateway: gateway.to_owned(), client, script, seen });
        let serving = shared.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = serving.clone();
                let service = service_fn(move |request| shared.clone().serve(request));
                // That a connection ends with an error is what it is for.
                tokio::spawn(
                    async move { http1::Builder::new().serve_connection(TokioIo::new(stream), service).await },
                );
            }
        });
        Self { url, shared }
    }

    /// Everything that has come in.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().expect("no panic").clone()
    }

    /// What the script still has in store.
    pub(crate) fn left(&self) -> usize {
        self.shared.script.lock().expect("no panic").len()
    }
}

impl Shared {
    async fn serve(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Dropped> {
        let (head, body) = request.into_parts();
        // A client that has not said everything would be told something else than what it is to be told.
        let body = body.collect().await.map_err(|_| Dropped)?.to_bytes();
        let deed = self.script.lock().expect("no panic").pop_front().unwrap_or(Deed::Pass);
        if let Deed::Answer(status) = deed {
            self.saw(deed, None);
            let response = Response::builder().status(status).header("retry-after", "1");
            return Ok(response.body(Full::from("{\"code\":\"trouble\",\"message\":\"later\"}")).expect("well formed"));
        }
        if deed == Deed::Drop {
            self.saw(deed, None);
            return Err(Dropped);
        }
        let mut headers = head.headers;
        for name in ["host", "connection", "content-length", "transfer-encoding", "keep-alive"] {
            headers.remove(name);
        }
        let url = format!("{}{}", self.gateway, head.uri);
        let answer = self.client.request(head.method, url).headers(headers).body(body).send().await;
        let answer = answer.map_err(|_| Dropped)?;
        let mut response = Response::builder().status(answer.status());
        for name in ["content-type", "retry-after"] {
            if let Some(value) = answer.headers().get(name) {
                response = response.header(name, value);
            }
        }
        let (status, bytes) = (answer.status().as_u16(), answer.bytes().await.map_err(|_| Dropped)?);
        self.saw(deed, Some((status, String::from_utf8_lossy(&bytes).into_owned())));
        if deed == Deed::TakeAndDrop {
            return Err(Dropped);
        }
        Ok(response.body(Full::from(bytes)).expect("well formed"))
    }

    fn saw(&self, deed: Deed, said: Option<(u16, String)>) {
        self.seen.lock().expect("no panic").push((deed, said));
    }
}
