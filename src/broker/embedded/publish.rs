//! The way in: one task that writes whatever has gathered, and answers when it is on the disk.

use std::{
    iter,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use tokio::sync::mpsc;
use tracing::error;

use super::{
    Shared,
    rows::{self, Row},
};
use crate::{
    broker::{
        PublishError,
        way_in::{self, Waiting, WayIn},
    },
    crash_point,
    job::chain,
    sqlite::WriteError,
};

/// How many may wait to be written.
const WAITING: usize = 4096;
/// How many are written in one go: each writes to as many places of the file as there are kinds, however many they are.
const BURST: usize = 1000;

/// Begins to write. Must be called within a tokio runtime.
pub(super) fn open(shared: Arc<Shared>) -> WayIn {
    let (way_in, waiting) = WayIn::new(WAITING);
    tokio::spawn(write_all(shared, waiting));
    way_in
}

async fn write_all(shared: Arc<Shared>, mut waiting: mpsc::Receiver<Waiting>) {
    let mut burst = Vec::with_capacity(BURST);
    while waiting.recv_many(&mut burst, BURST).await > 0 {
        let room = BURST - burst.len();
        way_in::and_the_rest(&mut waiting, &mut burst, room).await;
        let first = shared.next.fetch_add(i64::try_from(burst.len()).unwrap_or(0), Relaxed);
        let (mut rows, answers): (Vec<_>, Vec<_>) = (first..)
            .zip(burst.drain(..))
            .map(|(seq, Waiting { job, answer, .. })| (Row { seq, head: rows::head(&job.envelope), job }, answer))
            .unzip();
        // Those of a kind lie together on the disk.
        rows.sort_by_cached_key(|row: &Row| row.job.envelope.kind.clone());
        let rows = Arc::new(rows);
        let work = rows.clone();
        let written = shared
            .database
            .write(move |connection| {
                let rows = work.clone();
                Box::pin(async move { rows::insert(connection, &rows).await })
            })
            .await;
        let answer = match written {
            Ok(()) => {
                crash_point!("broker: published, not confirmed");
                tell_queues(&shared, Arc::unwrap_or_clone(rows));
                Ok(())
            }
            Err(error) => {
                error!(error = chain(&error), "cannot write jobs");
                Err(refusal(&error))
            }
        };
        for waits in answers {
            waits.send(answer.clone());
        }
    }
}

fn tell_queues(shared: &Shared, rows: Vec<Row>) {
    let mut rows = rows.into_iter().peekable();
    while let Some(first) = rows.peek() {
        let kind = first.job.envelope.kind.clone();
        shared.queue(&kind).published(iter::from_fn(|| rows.next_if(|row| row.job.envelope.kind == kind)));
    }
}

/// What a write that failed means for whoever published: it was rolled back, unless the disk itself failed on it.
fn refusal(error: &WriteError) -> PublishError {
    let WriteError::Sqlite(source) = error else { return PublishError::Unavailable };
    let code =
        source.as_database_error().and_then(sqlx::error::DatabaseError::code).and_then(|code| code.parse::<u32>().ok());
    match code.map(|code| code & 0xff) {
        Some(13) => PublishError::NoRoom,
        // IOERR: whether the commit reached the disk is not known.
        Some(10) => PublishError::OutcomeUnknown,
        _ => PublishError::Unavailable,
    }
}
