//! `warren dead`

use clap::Subcommand;
use serde_json::json;
use uuid::Uuid;

use super::{Ask, Failure, job, output};
use crate::{app, dead_letters, job::State, store::Filter};

/// Decide on jobs that were given up.
#[derive(Debug, Subcommand)]
pub(super) enum Dead {
    /// List dead letters, the newest first
    List {
        /// Only of this kind
        #[arg(long)]
        kind: Option<String>,
        /// How many
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
    },
    /// Tell the story of one dead letter
    Show {
        /// Its id
        id: Uuid,
    },
    /// Run one again: the same job, its attempts counted from 0
    Replay {
        /// Its id
        id: Uuid,
    },
    /// Drop one for good
    Discard {
        /// Its id
        id: Uuid,
    },
}

impl Dead {
    pub(super) async fn run(self, ask: Ask) -> Result<(), Failure> {
        match self {
            Self::List { kind, limit } => {
                let kind = kind.as_deref().map(job::parse_kind).transpose()?;
                let filter = Filter { kind, state: Some(State::Dead), limit, ..Filter::default() };
                job::list(ask, filter).await
            }
            Self::Show { id } => job::show(ask, id).await,
            Self::Replay { id } => {
                let store = app::open_store(&ask.config()?).await?;
                dead_letters::replay(store.as_ref(), id).await?;
                output::print(ask.output, &json!({ "id": id, "state": State::Scheduled }), || {
                    format!("{id} is due again, now")
                });
                Ok(())
            }
            Self::Discard { id } => {
                let store = app::open_store(&ask.config()?).await?;
                dead_letters::discard(store.as_ref(), id).await?;
                output::print(ask.output, &json!({ "id": id, "state": State::Discarded }), || {
                    format!("{id} is discarded")
                });
                Ok(())
            }
        }
    }
}
