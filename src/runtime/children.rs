//! Suspects run alone: one job in one child process of the same binary.
//!
//! A job that ends the process which runs it takes its neighbours with it, so one that may have done so twice is given a
//! process of its own. The parent hands the body over through a pipe, takes what came of it back through another,
//! enforces the timeout and records; the child knows neither broker nor store. A child that ends without a word is what
//! the suspicion was about.

use std::{
    ffi::OsString,
    io::{Read as _, Write as _},
    path::PathBuf,
    pin::Pin,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
    sync::{OwnedSemaphorePermit, Semaphore},
};
use uuid::Uuid;
use warren_messages::{Bytes, DecodeError};
use warren_workers::{Disposition, context::Emission};

use super::{
    registry::{Performed, Registry, Task},
    running::Running,
};
use crate::job::{Failure, Kind, Micros, Tenant};

/// How many run at once in one process.
const AT_ONCE: usize = 8;
/// A child offers itself to the kernel when memory is short, before any other process.
const OOM_SCORE: &str = "1000";

/// How a child of this program is started: the program, and the arguments with which it performs one job.
#[derive(Debug, Clone)]
pub struct ChildCommand {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

/// Runs suspects in processes of their own.
#[derive(Debug)]
pub(super) struct Children {
    command: Arc<ChildCommand>,
    places: Arc<Semaphore>,
}

/// A place for one child.
pub(super) type ChildPlace = OwnedSemaphorePermit;

/// What a child is told.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    kind: String,
    id: Uuid,
    tenant: String,
    created_at: Micros,
    version: u16,
    body: Bytes,
    attempt: u16,
    /// How long it has.
    time_ms: u64,
}

/// What a child answers.
#[derive(Debug, Serialize, Deserialize)]
enum Report {
    Done { output: Bytes, emissions: Vec<Emitted> },
    Failed { fate: Fate, code: String, text: String },
    Unreadable(DecodeReport),
    Panicked(String),
}

#[derive(Debug, Serialize, Deserialize)]
enum Fate {
    Retry,
    RetryAfter(Duration),
    Snooze(Duration),
    DeadLetter,
}

#[derive(Debug, Serialize, Deserialize)]
enum DecodeReport {
    UnknownVersion { version: u16, reads: u16 },
    Unfit(warren_messages::Invalid),
    Other(String),
}

#[derive(Debug, Serialize, Deserialize)]
struct Emitted {
    kind: String,
    version: u16,
    body: Bytes,
    at: Option<Timestamp>,
    dedup_key: Option<String>,
}

impl Children {
    pub(super) fn new(command: ChildCommand) -> Self {
        Self { command: Arc::new(command), places: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// A place for one more, if there is any.
    pub(super) fn place(&self) -> Option<ChildPlace> {
        self.places.clone().try_acquire_owned().ok()
    }

    /// One attempt in a process of its own. Dropped, it ends that process.
    pub(super) fn perform(
        &self,
        kind: &Kind,
        task: Task,
        timeout: Duration,
        place: ChildPlace,
        running: Arc<Running>,
    ) -> Pin<Box<dyn Future<Output = Performed> + Send>> {
        let (command, kind) = (self.command.clone(), kind.to_string());
        Box::pin(async move {
            let _place = place;
            let order = Order {
                kind,
                id: task.id,
                tenant: task.tenant.to_string(),
                created_at: task.created_at,
                version: task.version,
                body: Bytes(task.body.to_vec()),
                attempt: task.attempt,
                time_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
            };
            match converse(&command, &order, &running).await {
                Ok(performed) => performed,
                // Not the job's fault: it has not run, or nobody knows what became of it.
                Err(error) => Performed::Failed {
                    disposition: Disposition::Snooze(Duration::from_secs(5)),
                    failure: Failure::new("no_child", format!("a process of its own cannot be had: {error}")),
                },
            }
        })
    }
}

async fn converse(command: &ChildCommand, order: &Order, running: &Running) -> std::io::Result<Performed> {
    let mut child = Command::new(&command.program)
        .args(&command.arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // A signal to this process and its group is a drain, and must not look like a crash of the job.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let text = serde_json::to_vec(order)?;
    let (Some(mut stdin), Some(mut stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(std::io::Error::other("it has no pipes"));
    };
    // A length first: the pipe stays open for as long as the parent lives, which the child watches.
    stdin.write_all(&u64::try_from(text.len()).unwrap_or(u64::MAX).to_le_bytes()).await?;
    stdin.write_all(&text).await?;
    stdin.flush().await?;
    // One that does not even begin has a trouble of its own, and says nothing about the job.
    let mut begun = [0];
    stdout.read_exact(&mut begun).await?;
    running.has_begun();
    let answer = async {
        let mut length = [0; 8];
        stdout.read_exact(&mut length).await?;
        // Grows with what really comes.
        let mut text = Vec::new();
        stdout.take(u64::from_le_bytes(length)).read_to_end(&mut text).await?;
        serde_json::from_slice::<Report>(&text).map_err(std::io::Error::from)
    };
    match answer.await {
        Ok(report) => Ok(report.into_performed()),
        Err(_) => Ok(Performed::Crashed { how: child.wait().await?.to_string() }),
    }
}

impl Report {
    fn of(performed: std::thread::Result<Performed>) -> Self {
        match performed {
            Ok(Performed::Done { output, emissions }) => {
                let emissions = emissions.into_iter().map(|emission| Emitted {
                    kind: emission.kind.into(),
                    version: emission.version,
                    body: Bytes(emission.body),
                    at: emission.at,
                    dedup_key: emission.dedup_key,
                });
                Self::Done { output: Bytes(output), emissions: emissions.collect() }
            }
            Ok(Performed::Failed { disposition, failure }) => {
                let fate = match disposition {
                    Disposition::Retry => Fate::Retry,
                    Disposition::RetryAfter(pause) => Fate::RetryAfter(pause),
                    Disposition::Snooze(pause) => Fate::Snooze(pause),
                    Disposition::DeadLetter => Fate::DeadLetter,
                };
                Self::Failed { fate, code: failure.code.into_owned(), text: failure.text }
            }
            Ok(Performed::Unreadable(error)) => Self::Unreadable(match error {
                DecodeError::UnknownVersion { version, reads } => DecodeReport::UnknownVersion { version, reads },
                DecodeError::Unfit(invalid) => DecodeReport::Unfit(invalid),
                other => DecodeReport::Other(other.to_string()),
            }),
            Ok(Performed::Crashed { how }) => Self::Panicked(how),
            Err(payload) => Self::Panicked(super::outcome::panic_text(payload.as_ref())),
        }
    }

    fn into_performed(self) -> Performed {
        match self {
            Self::Done { output, emissions } => {
                let emissions = emissions.into_iter().map(|emitted| Emission {
                    kind: emitted.kind.into(),
                    version: emitted.version,
                    body: emitted.body.0,
                    at: emitted.at,
                    dedup_key: emitted.dedup_key,
                });
                Performed::Done { output: output.0, emissions: emissions.collect() }
            }
            Self::Failed { fate, code, text } => {
                let disposition = match fate {
                    Fate::Retry => Disposition::Retry,
                    Fate::RetryAfter(pause) => Disposition::RetryAfter(pause),
                    Fate::Snooze(pause) => Disposition::Snooze(pause),
                    Fate::DeadLetter => Disposition::DeadLetter,
                };
                Performed::Failed { disposition, failure: Failure::new(code, text) }
            }
            Self::Unreadable(DecodeReport::UnknownVersion { version, reads }) => {
                Performed::Unreadable(DecodeError::UnknownVersion { version, reads })
            }
            Self::Unreadable(DecodeReport::Unfit(invalid)) => Performed::Unreadable(DecodeError::Unfit(invalid)),
            Self::Unreadable(DecodeReport::Other(detail)) => {
                Performed::Unreadable(DecodeError::Malformed { offset: 0, detail })
            }
            Self::Panicked(text) => Performed::Failed {
                disposition: Disposition::Retry,
                failure: Failure::new(super::outcome::PANICKED, format!("the worker panicked: {text}")),
            },
        }
    }
}

/// The child's side: performs the one job that standard input tells of, and answers on standard output.
pub fn perform_one(registry: &Registry) -> std::io::Result<()> {
    // Where there is no such file there is no such kernel.
    _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE);
    let mut stdin = std::io::stdin();
    let mut length = [0; 8];
    stdin.read_exact(&mut length)?;
    let mut text = vec![0; usize::try_from(u64::from_le_bytes(length)).unwrap_or(0)];
    stdin.read_exact(&mut text)?;
    let order: Order = serde_json::from_slice(&text)?;
    // A parent that is gone can record nothing.
    std::thread::spawn(move || {
        _ = stdin.read(&mut [0]);
        std::process::exit(1);
    });
    let unknown = || std::io::Error::other(format!("no worker here is for {}", order.kind));
    let (_, registered) = registry.get(&order.kind).ok_or_else(unknown)?;
    let task = Task {
        id: order.id,
        tenant: Tenant::new(&order.tenant).map_err(std::io::Error::other)?,
        created_at: order.created_at,
        version: order.version,
        body: order.body.0.into(),
        attempt: order.attempt,
        deadline: Instant::now() + Duration::from_millis(order.time_ms),
        control: Arc::default(),
    };
    let handler = registered.handler.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // What a worker prints must not be taken for its report.
    let mut answer = std::fs::File::from(rustix::io::fcntl_dupfd_cloexec(std::io::stdout(), 3)?);
    rustix::stdio::dup2_stdout(std::io::stderr())?;
    answer.write_all(&[1])?;
    let performed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| runtime.block_on(handler.perform(task))));
    let report = serde_json::to_vec(&Report::of(performed))?;
    answer.write_all(&u64::try_from(report.len()).unwrap_or(u64::MAX).to_le_bytes())?;
    answer.write_all(&report)?;
    Ok(())
}
