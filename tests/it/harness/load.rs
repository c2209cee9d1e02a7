//! A client that sends jobs all the while, and remembers every answer.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use reqwest::Client;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// One answer that was no `202`.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) code: String,
    pub(crate) retry_after: bool,
    pub(crate) took: Duration,
}

/// What was answered.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    pub(crate) accepted: Vec<String>,
    pub(crate) refused: Vec<Refusal>,
    /// No answer at all: the connection was refused, or broke.
    pub(crate) broken: usize,
}

/// A client that sends jobs all the while.
pub(crate) struct Load {
    stop: CancellationToken,
    answers: Arc<Mutex<Answers>>,
    senders: Vec<tokio::task::JoinHandle<()>>,
}

static CLIENTS: AtomicU32 = AtomicU32::new(0);

impl Load {
    /// Begins to send through these gateways in turn; one that takes no connection is passed over, as a load balancer does.
    pub(crate) fn begin(gateways: Arc<Mutex<Vec<String>>>, senders: usize) -> Self {
        let (stop, answers) = (CancellationToken::new(), Arc::<Mutex<Answers>>::default());
        let senders = (0..senders).map(|_| {
            let (stop, answers, gateways) = (stop.clone(), answers.clone(), gateways.clone());
            tokio::spawn(async move {
                let client = Client::builder().no_proxy().timeout(Duration::from_secs(15)).build().expect("a client");
                let name = CLIENTS.fetch_add(1, SeqCst);
                for number in 0_usize.. {
                    if stop.is_cancelled() {
                        break;
                    }
                    let key = format!("{name}-{number}");
                    send(&client, &gateways, &key, number, &answers).await;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
        });
        let senders = senders.collect();
        Self { stop, answers, senders }
    }

    pub(crate) fn accepted(&self) -> usize {
        self.answers.lock().expect("no panic").accepted.len()
    }

    /// Ends, and tells every answer.
    pub(crate) async fn end(self) -> Answers {
        self.stop.cancel();
        for sender in self.senders {
            sender.await.expect("no panic");
        }
        std::mem::take(&mut *self.answers.lock().expect("no panic"))
    }
}

async fn send(client: &Client, gateways: &Mutex<Vec<String>>, key: &str, number: usize, answers: &Mutex<Answers>) {
    let all = gateways.lock().expect("no panic").clone();
    let began = Instant::now();
    for turn in 0..all.len() {
        let url = &all[(number + turn) % all.len()];
        let body = json!({ "work_ms": number % 7, "fail_attempts": u8::from(number.is_multiple_of(50)) });
        let request = client.post(format!("{url}/v1/jobs/warren.probe")).header("idempotency-key", key).json(&body);
        match request.send().await {
            Err(error) if error.is_connect() => {}
            Err(_) => {
                answers.lock().expect("no panic").broken += 1;
                return;
            }
            Ok(response) => {
                let status = response.status().as_u16();
                let retry_after = response.headers().contains_key("retry-after");
                let answer: Value = response.json().await.unwrap_or_default();
                let text = |name: &str| answer[name].as_str().unwrap_or_default().to_owned();
                let mut answers = answers.lock().expect("no panic");
                if status == 202 {
                    answers.accepted.push(text("id"));
                } else {
                    answers.refused.push(Refusal { status, code: text("code"), retry_after, took: began.elapsed() });
                }
                return;
            }
        }
    }
    answers.lock().expect("no panic").broken += 1;
}
