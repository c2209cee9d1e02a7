//! Performs `warren.probe`.

use std::{future, process, thread, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use warren_messages::{
    Bytes,
    probe::{Fate, Probe as Message},
};

use crate::{Backoff, Context, Disposition, Job, Policy, WorkError, Worker, context::EmitError};

/// Does what a probe tells it.
#[derive(Debug, Default)]
pub struct Probe;

/// What a probe leaves behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// The attempt that succeeded, from 1.
    pub attempt: u16,
    /// When that attempt began, in microseconds since the epoch.
    pub started_us: i64,
    /// As many bytes as were asked for.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub payload: Bytes,
}

/// How a probe fails when it is told to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One of `fail_attempts`, or fate `retry`.
    #[error("the probe was told to fail attempt {attempt}")]
    Told {
        /// Which one, from 1.
        attempt: u16,
    },
    /// Fate `dead`.
    #[error("the probe was told to fail for good")]
    Dead,
    /// A follow-up was not taken.
    #[error("a follow-up cannot be asked for")]
    FollowUp(#[source] EmitError),
}

impl WorkError for Error {
    fn disposition(&self) -> Disposition {
        match self {
            Self::Told { .. } => Disposition::Retry,
            Self::Dead | Self::FollowUp(_) => Disposition::DeadLetter,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Told { .. } => "told_to_fail",
            Self::Dead => "told_to_die",
            Self::FollowUp(_) => "bad_follow_up",
        }
    }
}

impl Worker for Probe {
    type Message = Message;
    type Output = Output;
    type Error = Error;

    async fn perform(&self, job: Job<Message>, cx: &mut Context) -> Result<Output, Error> {
        let started_us = Timestamp::now().as_microsecond();
        let Message { payload_bytes, work_ms, fail_attempts, fate, follow_ups } = job.message;
        if work_ms > 0 {
            tokio::time::sleep(Duration::from_millis(work_ms.into())).await;
        }
        let attempt = cx.attempt();
        if attempt <= fail_attempts {
            return Err(Error::Told { attempt });
        }
        match fate {
            Fate::Ok => {}
            Fate::Retry => return Err(Error::Told { attempt }),
            Fate::Dead => return Err(Error::Dead),
            Fate::Panic => panic!("the probe was told to panic instead of leaving {payload_bytes} bytes"),
            Fate::Hang => future::pending().await,
            Fate::Block => loop {
                thread::park();
            },
            Fate::Abort => process::abort(),
        }
        for _ in 0..follow_ups {
            cx.emit(&Message::default()).map_err(Error::FollowUp)?;
        }
        Ok(Output { attempt, started_us, payload: Bytes(vec![0; payload_bytes as usize]) })
    }

    /// Quick to give up, so that an installation can be checked in seconds.
    fn policy(&self) -> Policy {
        Policy {
            timeout: Duration::from_secs(10),
            attempts: 3,
            backoff: Backoff { base: Duration::from_secs(1), factor: 2.0, cap: Duration::from_mins(1) },
            ..Policy::default()
        }
    }
}

fn is_empty(bytes: &Bytes) -> bool {
    bytes.0.is_empty()
}
