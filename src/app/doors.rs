//! The doors of a process: which of its listeners ask for keys, and the keys that open them.

use std::{net::SocketAddr, sync::Arc};

use tracing::warn;

use super::Ready;
use crate::{
    config::Config,
    gateway::auth::Door,
    keyring::{Keyring, Need},
    store::Store,
};

/// The doors of a process.
pub(super) struct Doors {
    pub(super) keys: Arc<Keyring>,
    /// That of the gateway, if there is one.
    pub(super) gateway: Option<Door>,
    /// That of the admin listener, where not everyone may look.
    pub(super) admin: Option<Arc<Door>>,
    /// The gateway's address, if others can reach it.
    exposed: Option<SocketAddr>,
}

impl Doors {
    /// As the configuration says. A gateway that others can reach never stands open, whatever is known of keys: those of the
    /// store may be made, and the last of them revoked, while it runs. So it starts without any and refuses everything.
    pub(super) fn open(config: &Config, ready: &Ready, store: Arc<dyn Store>) -> Self {
        let access = &config.access;
        let keys = Arc::new(Keyring::new(&access.keys, access.assume_no_keys, store));
        let door = |open| Door { keys: keys.clone(), open, trusted_proxies: access.trusted_proxies.clone() };
        let gateway = ready.gateway.map(|address| door(Some(address).filter(|address| address.ip().is_loopback())));
        let admin = (!ready.admin.ip().is_loopback()).then(|| Arc::new(door(None)));
        let exposed = ready.gateway.filter(|address| !address.ip().is_loopback());
        Self { keys, gateway, admin, exposed }
    }

    /// Whether any of them ever asks for a key.
    pub(super) fn are_used(&self) -> bool {
        self.gateway.is_some() || self.admin.is_some()
    }

    /// Warns of a gateway that lets nobody in.
    pub(super) fn warn_of_none(&self) {
        if let Some(address) = self.exposed
            && self.keys.need() == Need::None
        {
            warn!(%address, "others can reach this gateway and there is no key, so it refuses every request: make one with \
                             `warren key create`");
        }
    }
}
