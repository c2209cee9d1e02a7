//! Reads what is new for all kinds: one task that reads what all of them want by then.
//!
//! To read a few messages costs mostly the way to SQLite's thread and back, and with many kinds each has only a few. So what
//! is wanted while a read is under way is read together, as soon as that one is over. Must not know what is read for.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::rows::{self, Stored, Wanted};
use crate::{
    broker::way_in,
    job::chain,
    sqlite::{Database, Repeated},
};

/// How many kinds are read for at once.
const TOGETHER: usize = Repeated::MOST;

/// The way to the task that reads.
#[derive(Debug)]
pub(super) struct Reads {
    asked: mpsc::Sender<Asked>,
}

struct Asked {
    wanted: Wanted,
    answer: oneshot::Sender<Result<Vec<Stored>, String>>,
}

impl Reads {
    /// Begins to read. Must be called within a tokio runtime.
    pub(super) fn open(database: Arc<Database>) -> Self {
        let (sender, asked) = mpsc::channel(TOGETHER);
        tokio::spawn(read_all(database, asked));
        Self { asked: sender }
    }

    /// Reads what is wanted, in the order of its numbers.
    pub(super) async fn read(&self, wanted: Wanted) -> Result<Vec<Stored>, String> {
        let (answer, answered) = oneshot::channel();
        // Where nobody reads any more, the answer is dropped.
        _ = self.asked.send(Asked { wanted, answer }).await;
        answered.await.unwrap_or_else(|_| Err("nobody reads any more".into()))
    }
}

async fn read_all(database: Arc<Database>, mut asked: mpsc::Receiver<Asked>) {
    let mut together = Vec::with_capacity(TOGETHER);
    while asked.recv_many(&mut together, TOGETHER).await > 0 {
        let room = TOGETHER - together.len();
        way_in::and_the_rest(&mut asked, &mut together, room).await;
        let wanted: Vec<_> = together.iter().map(|asked| &asked.wanted).collect();
        match rows::read(database.readers(), &wanted).await {
            Ok(found) => {
                for (Asked { answer, .. }, found) in together.drain(..).zip(found) {
                    // Whoever asked may be gone.
                    _ = answer.send(found.map_err(|error| chain(&error)));
                }
            }
            // What one of them wants may be what cannot be read.
            Err(_) => {
                for Asked { wanted, answer } in together.drain(..) {
                    let alone = rows::read(database.readers(), &[&wanted]).await;
                    let alone = alone.and_then(|found| found.into_iter().next().unwrap_or(Ok(Vec::new())));
                    _ = answer.send(alone.map_err(|error| chain(&error)));
                }
            }
        }
    }
}
