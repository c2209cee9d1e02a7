//! Whether a request that needs no key comes from this machine, and not through it from elsewhere.
//!
//! While there is no key a gateway on a loopback address takes what anyone on the machine sends, and a browser is on the
//! machine too. A page of any website may have it send a request here, and a name that its owner points at this machine lets
//! it read the answer as well. What a browser says of a request tells both, and what a proxy says of it tells that others
//! reach this gateway. So who is let in here is a program on this machine, or a page that this gateway has served.

use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr},
};

use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode, Uri,
    header::{HOST, ORIGIN},
    uri::Authority,
};

use super::problem::Problem;

/// What a browser says of where a request comes from (Fetch Metadata).
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// What proxies add.
const PROXIED: [&str; 4] = ["forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip"];

/// Refuses what a website, or someone behind a proxy, sends to a gateway that listens here and has no key.
pub(super) fn check(uri: &Uri, headers: &HeaderMap, listening: SocketAddr) -> Result<(), Problem> {
    // The fields are few, and looking names up costs more than comparing them.
    let (mut all_here, mut by_browser) = (true, false);
    for (name, value) in headers {
        if name == HOST {
            all_here &= is_here(&text(value), listening);
        } else if name == ORIGIN || name == SEC_FETCH_SITE {
            by_browser = true;
        } else if PROXIED.contains(&name.as_str()) {
            let detail = format!(
                "this came through a proxy, as its header {name} says, and while there is no key only programs on this \
                 machine are let in: make a key (`warren key create`) and send it"
            );
            return Err(Problem::new(StatusCode::FORBIDDEN, "through_a_proxy", detail));
        }
    }
    // A request may name where it goes in its first line too. All of it must be this machine.
    let authority = uri.authority().map(|authority| authority.as_str().to_ascii_lowercase());
    if !(all_here && authority.as_deref().is_none_or(|host| is_here(host, listening))) {
        let detail = "it is sent to a name that is not this machine's, as a website does that means to reach it, and while \
                      there is no key only programs on this machine are let in: name it localhost or by its address, or make \
                      a key (`warren key create`) and send it";
        return Err(cross_site(detail));
    }
    if by_browser && !is_own_page(authority.as_deref(), headers) {
        let detail = "a browser sends this for a page of another site, and while there is no key only programs on this \
                      machine are let in: make a key (`warren key create`) and send it";
        return Err(cross_site(detail));
    }
    Ok(())
}

/// Whether what a browser sends is sent for a page that came from where the request goes.
fn is_own_page(authority: Option<&str>, headers: &HeaderMap) -> bool {
    let all = |name: HeaderName| headers.get_all(name).iter().map(text);
    let asked: Vec<_> = all(HOST).chain(authority.map(Cow::Borrowed)).collect();
    // The scheme is left out: a page of ours came over the one that is spoken here.
    let is_own = |origin: Cow<'_, str>| {
        let host = origin.split_once("://").map(|(_, host)| host);
        !asked.is_empty() && asked.iter().all(|asked| Some(&**asked) == host)
    };
    all(ORIGIN).all(is_own) && all(SEC_FETCH_SITE).all(|site| site != "cross-site")
}

fn cross_site(detail: &str) -> Problem {
    Problem::new(StatusCode::FORBIDDEN, "cross_site", detail)
}

fn text(value: &HeaderValue) -> Cow<'_, str> {
    let text = value.to_str().unwrap_or("?").trim();
    if text.bytes().any(|byte| byte.is_ascii_uppercase()) { text.to_ascii_lowercase().into() } else { text.into() }
}

/// Whether a host, with or without a port, is this machine by a name that nobody else can give.
fn is_here(host: &str, listening: SocketAddr) -> bool {
    // How nearly everyone writes it.
    if matches!(host.rsplit_once(':'), Some(("localhost" | "127.0.0.1", port)) if port.parse::<u16>().is_ok()) {
        return true;
    }
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let host = authority.host();
    if host == "localhost" || host == "localhost." {
        return true;
    }
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    address.is_ok_and(|address| address.to_canonical().is_loopback() || address == listening.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_name_that_nobody_else_can_give_is_here() {
        let listening = "127.0.0.1:8080".parse().unwrap();
        for host in [
            "localhost",
            "localhost:8080",
            "localhost.",
            "127.0.0.1:8080",
            "127.0.0.1",
            "127.9.9.9:1",
            "[::1]:8080",
            "[::1]",
            "[::ffff:127.0.0.1]:8080",
        ] {
            assert!(is_here(host, listening), "{host}");
        }
        for host in [
            "",
            "x",
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.1:8080",
            "0.0.0.0:8080",
            "[2001:db8::1]:8080",
            "?",
            "a b",
        ] {
            assert!(!is_here(host, listening), "{host}");
        }
        assert!(is_here("10.0.0.1:8080", "10.0.0.1:1".parse().unwrap()));
    }
}
