//! `warren probe`

use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};

use super::{Ask, Failure, gateway::Target, output};

/// How often the job is asked for.
const ASK_EVERY: Duration = Duration::from_millis(20);

/// Send one job through a running installation and time every step.
#[derive(Debug, Args)]
pub(super) struct Probe {
    /// How long to wait for it, in seconds
    #[arg(long, default_value_t = 30)]
    timeout: u64,
    #[command(flatten)]
    target: Target,
}

impl Probe {
    pub(super) async fn run(self, ask: Ask) -> Result<(), Failure> {
        let config = ask.config()?;
        let gateway = self.target.open(&config)?;
        let began = Instant::now();
        let accepted = gateway.answer(gateway.submit("warren.probe", "{}".into())).await?;
        let accepted_after = began.elapsed();
        let id = accepted["id"].as_str().unwrap_or_default().to_owned();
        let job = loop {
            let job = gateway.answer(gateway.status(&id)).await?;
            match job["state"].as_str() {
                Some("succeeded") => break job,
                Some("dead") => return Err(Failure::Failed(format!("the probe {id} died: {}", job["error"]))),
                _ if began.elapsed() > Duration::from_secs(self.timeout) => {
                    let text = format!(
                        "the probe {id} was accepted and is {} after {} s: is a worker running?",
                        job["state"], self.timeout
                    );
                    return Err(Failure::Failed(text));
                }
                _ => tokio::time::sleep(ASK_EVERY).await,
            }
        };
        let seen_after = began.elapsed();
        let micros = |value: &Value| {
            value.as_str().and_then(|at| at.parse::<jiff::Timestamp>().ok()).map(jiff::Timestamp::as_microsecond)
        };
        let created = micros(&job["created_at"]);
        let since_created = |at: Option<i64>| created.zip(at).map(|(created, at)| at - created);
        let started = since_created(job["output"]["started_us"].as_i64());
        let recorded = since_created(micros(&job["finished_at"]));
        let steps = json!({
            "id": id,
            "accepted_ms": millis(accepted_after),
            "started_ms": started.map(from_micros),
            "recorded_ms": recorded.map(from_micros),
            "seen_ms": millis(seen_after),
        });
        output::print(ask.output, &steps, || {
            let shown = |micros: Option<i64>| {
                micros.map_or_else(|| "?".into(), |micros| format!("{:.1} ms", from_micros(micros)))
            };
            format!(
                "probe {id}\n  accepted  {:.1} ms  the request came back, so the job is durable\n  started   {}  a worker \
                 took it up (since the gateway made its id)\n  recorded  {}  its result stands (since the same)\n  seen      \
                 {:.1} ms  and was seen over HTTP",
                millis(accepted_after),
                shown(started),
                shown(recorded),
                millis(seen_after)
            )
        });
        Ok(())
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn from_micros(micros: i64) -> f64 {
    micros as f64 / 1e3
}
