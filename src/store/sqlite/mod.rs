//! The store port on SQLite.
//!
//! Owns its SQL and the schema of the file, the embedded broker's tables included: one file has one history. All writes
//! go through [`Database::write`], which commits them in groups.

mod cancel;
mod connect;
mod due;
mod fleet;
mod installation;
mod jobs;
mod keys;
mod park;
mod prune;
mod record;

use std::sync::Arc;

use tokio::sync::Notify;

use crate::{
    sqlite::Database,
    store::{Record, Store},
};

/// The store on SQLite.
#[derive(Debug)]
pub struct Sqlite {
    database: Arc<Database>,
    /// Something may have become due sooner than was known.
    due: Arc<Notify>,
}

impl Sqlite {
    /// A store in this file.
    pub fn new(database: Arc<Database>) -> Self {
        Self { database, due: Arc::default() }
    }
}

impl Store for Sqlite {
    fn lane(&self) -> Box<dyn Record> {
        Box::new(record::Lane::new(self.database.clone(), self.due.clone()))
    }
}
