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
    /// It is over.
    #[error("job {id} is over, it is {state}: a dead letter is replayed with `warren dead replay`")]
    Over {
        /// Which job.
        id: Uuid,
        /// Where it stands.
        state: State,
    },
    /// Its bytes are in the broker alone.
    #[error("job {0} cannot be published once more: its body is not in the database")]
    NoBody(Uuid),
    /// The store did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Gives a dead letter another life: due now, its attempts counted from 0.
pub async fn replay(store: &(impl Jobs + ?Sized), id: Uuid) -> Result<(), DecideError> {
    decided(id, store.replay(id).await?)
}

/// Publishes a job once more that is not over; whatever is under way of it counts no more.
pub async fn requeue(store: &(impl Jobs + ?Sized), id: Uuid) -> Result<(), DecideError> {
    match store.requeue(id).await? {
        Transition::Done => Ok(()),
        Transition::Unknown => Err(DecideError::Unknown(id)),
        Transition::Refused { state, .. } if !state.is_terminal() => Err(DecideError::NoBody(id)),
        Transition::Refused { state, .. } => Err(DecideError::Over { id, state }),
    }
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
