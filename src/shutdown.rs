//! The end of a process: the first signal asks for it, the second forces it.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// What a process that was forced to end exits with: as a shell says of one that an interrupt ended.
const FORCED: i32 = 130;

/// Cancels the token it answers at the first SIGTERM or SIGINT, and ends the process at the second.
pub fn on_signals() -> std::io::Result<CancellationToken> {
    let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let token = CancellationToken::new();
    tokio::spawn(listen(terminate, interrupt, token.clone()));
    Ok(token)
}

async fn listen(mut terminate: Signal, mut interrupt: Signal, token: CancellationToken) {
    let mut next = async || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    next().await;
    info!("draining; a second signal ends the process at once");
    token.cancel();
    next().await;
    warn!("forced to end");
    std::process::exit(FORCED);
}
