//! What SQLite's errors mean.

use std::sync::Arc;

use crate::{sqlite::WriteError, store::StoreError};

/// What an error of a write means for whoever asked.
pub(super) fn written<T>(done: Result<T, WriteError>) -> Result<T, StoreError> {
    done.map_err(|error| match error {
        WriteError::Sqlite(source) => classify(source),
        WriteError::Closed => StoreError::Unavailable(error.into()),
    })
}

/// What an error of a read means for whoever asked.
pub(super) fn read<T>(done: sqlx::Result<T>) -> Result<T, StoreError> {
    done.map_err(|error| classify(Arc::new(error)))
}

fn classify(error: Arc<sqlx::Error>) -> StoreError {
    let code = match &*error {
        sqlx::Error::Database(database) => database.code().and_then(|code| code.parse::<u32>().ok()).unwrap_or(0),
        sqlx::Error::Encode(_) | sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. } => {
            return StoreError::Data(error.into());
        }
        _ => 0,
    };
    // The low byte is the primary code, the rest says more.
    match code & 0xff {
        // BUSY, LOCKED.
        5 | 6 => StoreError::Conflict(error.into()),
        // FULL.
        13 => StoreError::NoRoom(error.into()),
        // TOOBIG, CONSTRAINT, MISMATCH.
        18..=20 => StoreError::Data(error.into()),
        // IOERR, CORRUPT and the like: about the file, not about the row.
        _ => StoreError::Unavailable(error.into()),
    }
}
