//! `warren job`

use std::{collections::HashMap, io::Read as _, time::Duration};

use clap::{Args, Subcommand};
use serde_json::json;
use uuid::Uuid;

use super::{Ask, Failure, gateway::Target, output};
use crate::{
    app, dead_letters,
    gateway::status::JobView,
    job::{Kind, Micros, State},
    store::{Cancelled, Filter},
};

/// Send jobs and see what became of them.
#[derive(Debug, Subcommand)]
pub(super) enum Job {
    /// Send one job through a gateway
    Enqueue(Enqueue),
    /// Tell the story of one job
    Show {
        /// Its id
        id: Uuid,
    },
    /// List jobs that have a row, the newest first
    List(List),
    /// Call one off: at once if nobody has it, else as soon as someone meets it
    Cancel {
        /// Its id
        id: Uuid,
    },
    /// Publish one once more that is not over; whatever is under way of it counts no more
    Requeue {
        /// Its id
        id: Uuid,
    },
    /// Show jobs as they end, until it is interrupted
    Tail {
        /// Only of this kind
        #[arg(long)]
        kind: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(super) struct Enqueue {
    /// What is to be done
    kind: String,
    /// The body as JSON; `-` reads it from standard input, `@FILE` from a file
    #[arg(long, default_value = "{}")]
    body: String,
    /// The key that makes a repeat the same job
    #[arg(long)]
    key: Option<String>,
    /// Run it after this long: 30s, 5m, 12h, 30d
    #[arg(long, conflicts_with = "run_at")]
    delay: Option<String>,
    /// Run it at this time: 2026-12-24T18:00:00+01:00
    #[arg(long)]
    run_at: Option<String>,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Args)]
pub(super) struct List {
    /// Only of this kind
    #[arg(long)]
    kind: Option<String>,
    /// Only in this state; every state but succeeded, if not given. Of those that have succeeded, the last hour's
    #[arg(long, value_parser = parse_state)]
    state: Option<State>,
    /// How many
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
}

pub(super) fn parse_state(text: &str) -> Result<State, String> {
    State::parse(text).ok_or_else(|| {
        let names: Vec<_> = State::ALL.iter().map(|state| state.as_str()).collect();
        format!("a state is one of {}", names.join(", "))
    })
}

pub(super) fn parse_kind(name: &str) -> Result<Kind, Failure> {
    Kind::new(name).map_err(|error| Failure::Usage(format!("`{name}`: {error}")))
}

impl Job {
    pub(super) async fn run(self, ask: Ask) -> Result<(), Failure> {
        match self {
            Self::Enqueue(enqueue) => enqueue.run(ask).await,
            Self::Show { id } => show(ask, id).await,
            Self::List(List { kind, state, limit }) => {
                let kind = kind.as_deref().map(parse_kind).transpose()?;
                list(ask, Filter { kind, state, limit, ..Filter::default() }).await
            }
            Self::Cancel { id } => cancel(ask, id).await,
            Self::Requeue { id } => {
                let store = app::open_store(&ask.config()?).await?;
                dead_letters::requeue(store.as_ref(), id).await?;
                output::print(ask.output, &json!({ "id": id, "state": State::Scheduled }), || {
                    format!("{id} is due again, now")
                });
                Ok(())
            }
            Self::Tail { kind } => tail(ask, kind.as_deref().map(parse_kind).transpose()?).await,
        }
    }
}

async fn cancel(ask: Ask, id: Uuid) -> Result<(), Failure> {
    let store = app::open_store(&ask.config()?).await?;
    let state = match store.cancel(None, id, true).await? {
        Cancelled::Done | Cancelled::Over(State::Cancelled) => State::Cancelled.as_str(),
        Cancelled::Requested => "cancel_requested",
        Cancelled::Over(state) => {
            return Err(Failure::Refused(format!("job {id} is over, it is {state}: nothing is left to call off")));
        }
        Cancelled::Unknown => return Err(Failure::NotFound(format!("there is no job {id}"))),
    };
    output::print(ask.output, &json!({ "id": id, "state": state }), || match state {
        "cancelled" => format!("{id} is cancelled"),
        _ => format!("{id} is called off as soon as someone meets it"),
    });
    Ok(())
}

/// How often it is looked for more.
const TAIL_EVERY: Duration = Duration::from_millis(500);
/// A commit comes into sight after the time that it bears.
const TAIL_OVERLAP: Micros = 5_000_000;

async fn tail(ask: Ask, kind: Option<Kind>) -> Result<(), Failure> {
    let store = app::open_store(&ask.config()?).await?;
    let began = store.now().await?;
    let (mut last, mut shown) = (began, HashMap::<Uuid, Micros>::new());
    loop {
        let ended = store.ended((last - TAIL_OVERLAP).max(began), kind.as_ref(), 10_000).await?;
        for record in ended {
            let at = record.finished_at.unwrap_or(last);
            last = last.max(at);
            // A dead letter that is replayed ends once more.
            if shown.insert(record.envelope.id, at) != Some(at) {
                let view = JobView::of(record, false);
                output::line(ask.output, &view, || output::ended(&view));
            }
        }
        shown.retain(|_, at| *at > last - 2 * TAIL_OVERLAP);
        tokio::time::sleep(TAIL_EVERY).await;
    }
}

impl Enqueue {
    async fn run(self, ask: Ask) -> Result<(), Failure> {
        let config = ask.config()?;
        let body = read_body(&self.body)?;
        let gateway = self.target.open(&config)?;
        let mut request = gateway.submit(&self.kind, body);
        for (name, value) in
            [("idempotency-key", self.key), ("warren-delay", self.delay), ("warren-run-at", self.run_at)]
        {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        let answer = gateway.answer(request).await?;
        output::print(ask.output, &answer, || {
            let text = |name: &str| answer[name].as_str().unwrap_or_default().to_owned();
            format!("{} {}", text("id"), text("state"))
        });
        Ok(())
    }
}

fn read_body(given: &str) -> Result<String, Failure> {
    let unreadable = |error| Failure::Usage(format!("the body cannot be read: {error}"));
    match given.strip_prefix('@') {
        Some(path) => std::fs::read_to_string(path).map_err(unreadable),
        None if given == "-" => {
            let mut body = String::new();
            std::io::stdin().read_to_string(&mut body).map_err(unreadable)?;
            Ok(body)
        }
        None => Ok(given.to_owned()),
    }
}

/// Shows one job; also for dead letters, which are jobs like any other.
pub(super) async fn show(ask: Ask, id: Uuid) -> Result<(), Failure> {
    let config = ask.config()?;
    let store = app::open_store(&config).await?;
    let Some(record) = store.get(None, id).await? else {
        let text = format!("there is no row of job {id}: it waits in the broker for the first time, or it is none");
        return Err(Failure::NotFound(text));
    };
    let view = JobView::of(record, true);
    output::print(ask.output, &view, || output::job(&view));
    Ok(())
}

/// Lists jobs.
pub(super) async fn list(ask: Ask, filter: Filter) -> Result<(), Failure> {
    let config = ask.config()?;
    let store = app::open_store(&config).await?;
    let jobs: Vec<_> = store.list(&filter).await?.into_iter().map(|record| JobView::of(record, false)).collect();
    output::print(ask.output, &jobs, || match jobs.len() {
        0 => "none".into(),
        _ => output::jobs(&jobs),
    });
    Ok(())
}
