//! Dead letters: what an operator may do with jobs that were given up.
//!
//! The use cases behind the command line. A dead letter keeps its exact bytes, its reason and every failed attempt until
//! someone decides: replayed, it is the same job with another run; discarded, it is over.

use uuid::Uuid;

use crate::{
    job::State,
    store::{Jobs, StoreError, Transition},
};

/// Why a dead letter was not replayed or discarded.
#[derive(Debug, thiserror::Error)]
pub enum DecideError {
    /// There is no such job.
    #[error("there is no job {0}")]
    Unknown(Uuid),
    /// It is none.
    #[error("job {id} is no dead letter: it is {state}")]
    NotDead {
        /// Which job.
        id: Uuid,
        /// Where it stands.
        state: State,
    },
    /// It is none that could ever run.
    #[error(
        "job {0} is not a job that can run: its bytes are {1}. Mend the sender, send it anew, and discard this one"
    )]
    NotReplayable(Uuid, String),
    /// The store did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Gives a dead letter another life: due now, its attempts counted from 0.
pub async fn replay(store: &(impl Jobs + ?Sized), id: Uuid) -> Result<(), DecideError> {
    decided(id, store.replay(id).await?)
}

/// Drops a dead letter for good.
pub async fn discard(store: &(impl Jobs + ?Sized), id: Uuid) -> Result<(), DecideError> {
    decided(id, store.discard(id).await?)
}

fn decided(id: Uuid, transition: Transition) -> Result<(), DecideError> {
    match transition {
        Transition::Done => Ok(()),
        Transition::Unknown => Err(DecideError::Unknown(id)),
        Transition::Refused { state: State::Dead, reason } => {
            Err(DecideError::NotReplayable(id, reason.unwrap_or_default()))
        }
        Transition::Refused { state, .. } => Err(DecideError::NotDead { id, state }),
    }
}
