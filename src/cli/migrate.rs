//! `warren migrate`

use serde_json::json;

use super::{Ask, Failure, output};
use crate::{
    app::Engine,
    store::{Installation as _, postgres::Postgres},
};

/// Brings the database's schema up to date.
pub(super) async fn run(ask: Ask) -> Result<(), Failure> {
    let config = ask.config()?;
    let steps = match &config.servers {
        Some(servers) => Postgres::new(servers.database.clone()).migrate().await?,
        // To open it as its owner is to bring it up to date.
        None => {
            Engine::open(&config).await?.close().await;
            Vec::new()
        }
    };
    output::print(ask.output, &json!({ "steps": steps }), || match steps.len() {
        0 => "the schema is up to date".into(),
        _ => format!("took {}", steps.join(", ")),
    });
    Ok(())
}
