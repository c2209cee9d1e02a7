//! TLS for those with no proxy in front: handshakes, and new certificates without a restart.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use http::StatusCode;
use rustls::ServerConfig;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tracing::{debug, info, warn};

use super::{super::problem::Problem, phase::FIRST_BYTE, say_and_close};
use crate::{
    config::{Mistake, TlsFiles},
    health::{Condition, Health},
};

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// What a client's first byte is if it speaks TLS: the type of a record that holds a handshake.
const HANDSHAKE: u8 = 0x16;
/// The part of a process that `/readyz` shows.
const PART: &str = "tls";

/// What TLS needs, as it stands in its files.
#[derive(Debug)]
pub struct Tls {
    files: TlsFiles,
    current: RwLock<Arc<ServerConfig>>,
    /// What the files held when they were looked at last.
    seen: [u8; 32],
}

impl Tls {
    /// Reads the files, or tells everything that is wrong with them.
    pub fn open(files: TlsFiles) -> Result<Self, Vec<Mistake>> {
        let seen = files.digest();
        Ok(Self { current: RwLock::new(files.load()?), files, seen })
    }

    /// Looks at the files again and again. What is wrong with new ones is said, and the old ones stay in use.
    pub async fn watch(self: Arc<Self>, health: Arc<Health>) {
        health.set(PART, Condition::Ready);
        let mut seen = self.seen;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let files = self.files.clone();
            // Two small files, but on a disk that may be busy.
            let looked = tokio::task::spawn_blocking(move || {
                let digest = files.digest();
                (digest, (digest != seen).then(|| files.load()))
            });
            let Ok((digest, Some(loaded))) = looked.await else { continue };
            seen = digest;
            match loaded {
                Ok(config) => {
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = config;
                    health.set(PART, Condition::Ready);
                    info!(certificate = %self.files.certificate.display(), "a new certificate is in use");
                }
                Err(problems) => {
                    let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
                    let problems = problems.join("; ");
                    warn!(problems, "the new certificate cannot be used; the one before it stays in use");
                    health.set(PART, Condition::Warning(format!("the certificate in use is an old one: {problems}")));
                }
            }
        }
    }

    /// Shakes hands. Who does not, in time and properly, is closed; who speaks plain HTTP is told so.
    pub(super) async fn accept(&self, stream: TcpStream) -> Option<TlsStream<TcpStream>> {
        let handshake = async {
            let mut first = [0];
            match stream.peek(&mut first).await {
                Ok(1) if first[0] == HANDSHAKE => {}
                Ok(1) => {
                    say_and_close(stream, &plain_http()).await;
                    return None;
                }
                _ => return None,
            }
            let config = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
            match TlsAcceptor::from(config).accept(stream).await {
                Ok(stream) => Some(stream),
                Err(error) => {
                    debug!(%error, "a TLS handshake failed");
                    None
                }
            }
        };
        timeout(FIRST_BYTE, handshake).await.ok().flatten()
    }
}

fn plain_http() -> Problem {
    let detail = "this port speaks TLS: use https://";
    Problem::new(StatusCode::BAD_REQUEST, "tls_required", detail)
}
