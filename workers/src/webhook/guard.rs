//! Where a webhook may go: nowhere inside.
//!
//! Whoever may enqueue a webhook chooses its URL, so without this guard warren would be a way into the network that it
//! stands in. The check lies in the resolver that the HTTP client itself uses: the addresses that were judged are the
//! ones that it connects to, and a name that resolves elsewhere a moment later (DNS rebinding) gains nothing. A literal
//! address never reaches a resolver, so it is judged from the URL, and redirects are never followed.

use std::{
    error::Error,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
};

use ipnet::IpNet;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

/// Where a webhook may go.
#[derive(Clone)]
pub struct Guard {
    rules: Arc<Rules>,
    lookup: Arc<dyn Lookup>,
}

/// What the operator allows beyond `https` to public addresses on the usual ports.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// Private networks that may be reached, on any port and without TLS when the URL names their address.
    pub allow_private: Vec<IpNet>,
    /// Whether `http://` is allowed to public addresses too.
    pub allow_http: bool,
    /// Ports beside 80 and 443.
    pub allow_ports: Vec<u16>,
}

/// Why a target is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A private address stands in the URL itself.
    #[error("{0} is a private address, which `webhook.allow_private` does not list")]
    Literal(IpAddr),
    /// A name that belongs to the loopback addresses, whatever a resolver says of it (RFC 6761).
    #[error("{0} is this machine itself, and `webhook.allow_private` lists no loopback address")]
    Loopback(String),
    /// The name resolves to a private address; another look-up may not.
    #[error("{name} resolves to {address}, a private address, which `webhook.allow_private` does not list")]
    Resolved {
        /// What was looked up.
        name: String,
        /// The offending address.
        address: IpAddr,
    },
    /// No TLS.
    #[error("a webhook goes to https:// only; `webhook.allow_http` would allow this one")]
    Insecure,
    /// An unusual port.
    #[error("port {0} is not one of 80, 443 and those in `webhook.allow_ports`")]
    Port(u16),
    /// Nothing to connect to.
    #[error("the URL names no host")]
    NoHost,
}

impl Refused {
    /// A stable name for it.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Literal(_) | Self::Loopback(_) | Self::Resolved { .. } => "private_address",
            Self::Insecure => "insecure_url",
            Self::Port(_) => "bad_port",
            Self::NoHost => "bad_url",
        }
    }
}

/// Looks a name up. The system's own resolver, or a test's.
pub trait Lookup: Send + Sync {
    /// All addresses of a name.
    fn lookup(&self, name: String) -> Pin<Box<dyn Future<Output = std::io::Result<Vec<IpAddr>>> + Send>>;
}

struct System;

impl Lookup for System {
    fn lookup(&self, name: String) -> Pin<Box<dyn Future<Output = std::io::Result<Vec<IpAddr>>> + Send>> {
        Box::pin(async move {
            let addresses = tokio::net::lookup_host((name, 0)).await?;
            Ok(addresses.map(|address| address.ip()).collect())
        })
    }
}

impl Guard {
    /// A guard over the system's resolver.
    pub fn new(rules: Rules) -> Self {
        Self::with_lookup(rules, Arc::new(System))
    }

    /// A guard over another resolver.
    pub fn with_lookup(rules: Rules, lookup: Arc<dyn Lookup>) -> Self {
        Self { rules: Arc::new(rules), lookup }
    }

    /// Judges what the URL alone tells: scheme, port, an address that is written out, and the names of this machine.
    pub fn check(&self, url: &Url) -> Result<(), Refused> {
        let address = match url.host().ok_or(Refused::NoHost)? {
            Host::Ipv4(address) => Some(IpAddr::V4(address)),
            Host::Ipv6(address) => Some(IpAddr::V6(address)),
            Host::Domain(name) => {
                let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
                if is_loopback(name) && !loopback.into_iter().any(|address| self.rules.lists(address)) {
                    return Err(Refused::Loopback(name.to_owned()));
                }
                None
            }
        };
        if let Some(address) = address {
            if self.rules.lists(address) {
                return Ok(());
            }
            if is_private(address) {
                return Err(Refused::Literal(address));
            }
        }
        if url.scheme() != "https" && !self.rules.allow_http {
            return Err(Refused::Insecure);
        }
        match url.port_or_known_default() {
            Some(80 | 443) => Ok(()),
            Some(port) if self.rules.allow_ports.contains(&port) => Ok(()),
            port => Err(Refused::Port(port.unwrap_or(0))),
        }
    }
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let rules = self.rules.clone();
        let found = self.lookup.lookup(name.as_str().to_owned());
        Box::pin(async move {
            let found = found.await?;
            // One bad address condemns the name: the client may try any of them.
            if let Some(&address) = found.iter().find(|&&address| is_private(address) && !rules.lists(address)) {
                let refused = Refused::Resolved { name: name.as_str().to_owned(), address };
                return Err(Box::new(refused) as Box<dyn Error + Send + Sync>);
            }
            // The client puts the URL's port in place of 0.
            Ok(Box::new(found.into_iter().map(|address| SocketAddr::new(address, 0))) as Addrs)
        })
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("rules", &self.rules).finish_non_exhaustive()
    }
}

impl Rules {
    fn lists(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.allow_private.iter().any(|net| net.contains(&address))
    }
}

/// Whether a name is `localhost` or lies under it. A dot behind it changes nothing.
fn is_loopback(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    // The URL's reader has made it lower case.
    name == "localhost" || name.ends_with(".localhost")
}

/// Whether an address is none that the public internet routes to a stranger: the special-purpose registries of IANA,
/// multicast, and the metadata services of clouds. An IPv4 address inside an IPv6 one is judged as IPv4.
pub fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_private_v4(address),
        IpAddr::V6(address) => is_private_v6(address),
    }
}

fn is_private_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, d] = address.octets();
    matches!(
        (a, b, c, d),
        (0 | 10 | 127, ..)
            | (100, 64..=127, ..)
            | (169, 254, ..)
            | (172, 16..=31, ..)
            | (192, 168, ..)
            | (192, 0, 0 | 2, _)
            | (192, 88, 99, _)
            | (198, 18 | 19, ..)
            | (198, 51, 100, _)
            | (203, 0, 113, _)
            | (224.., ..)
            // Azure's metadata and DNS service stands on a public address.
            | (168, 63, 129, 16)
    )
}

fn is_private_v6(address: Ipv6Addr) -> bool {
    let [a, b, c, d, e, f, g, h] = address.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_private_v4(Ipv4Addr::new(a, b, c, d))
    };
    match (a, b) {
        // Unspecified, loopback, IPv4-compatible and IPv4-mapped.
        (0, 0) if (c, d, e) == (0, 0, 0) => match f {
            0xffff => v4(g, h),
            _ => true,
        },
        // NAT64: the well-known prefix carries an IPv4 address, the local one goes anywhere.
        (0x64, 0xff9b) => (c, d, e, f) != (0, 0, 0, 0) || v4(g, h),
        // 6to4 carries one too.
        (0x2002, _) => v4(b, c),
        // Protocol assignments: Teredo, benchmarking, ORCHID, and documentation.
        (0x2001, 0..=0x1ff | 0xdb8) | (0x3fff, 0..=0xfff) => true,
        // Discard-only, segment routing, unique local, link-local, site-local, multicast.
        (0x100 | 0x5f00, _) | (0xfc00..=0xfdff, _) | (0xfe80..=0xfeff, _) | (0xff00.., _) => true,
        // Only 2000::/3 is given out at all.
        _ => !(0x2000..=0x3fff).contains(&a),
    }
}
