//! Who may do what: from the headers of a request to the key that is behind it, and from a refusal to its answer.
//!
//! A request brings its key as `Authorization: Bearer KEY`, or as the user of Basic, because that is what SDKs do; a
//! protocol whose clients put it into the body reads it there and asks by the same door. What each route asks of a key
//! stands in one place, `scope_of`.

use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock},
};

use axum::{extract::Request, response::Response};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{
    Extensions, HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header::AUTHORIZATION, request::Parts,
};
use ipnet::IpNet;
use percent_encoding::percent_decode_str;

use super::{
    origin,
    problem::{Challenge, Problem},
    serve::Peer,
};
use crate::{
    keyring::{Held, Keyring, Need, Refused, limits::Denied},
    keys::{Scope, looks_like_a_key},
    telemetry::AUTH_REFUSED,
};

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// What a key must allow for a route. Jobs are told apart by what is done with them; every other route that asks who
/// sends takes events in; and what is neither is for operators, so that a route that was forgotten here lets nobody in
/// who should not be.
pub(super) fn scope_of(method: &Method, route: &str) -> Scope {
    let is_jobs = route == "/v1/jobs" || route.starts_with("/v1/jobs/");
    match (is_jobs, method.as_str()) {
        (true, "POST") => Scope::JobsWrite,
        (true, "GET" | "HEAD") => Scope::JobsRead,
        (true, "DELETE") => Scope::JobsCancel,
        (false, "POST") => Scope::EventsWrite,
        _ => Scope::Admin,
    }
}

/// The door of one listener.
pub struct Door {
    /// The keys that open it.
    pub keys: Arc<Keyring>,
    /// Where it is, if it stands open while there is no key: a loopback address.
    pub open: Option<SocketAddr>,
    /// The proxies whose word on who sends is believed.
    pub trusted_proxies: Vec<IpNet>,
}

/// What is looked at of a request that asks to be let in.
#[derive(Debug, Clone, Copy)]
pub struct Asking<'a> {
    /// What it asks for.
    pub uri: &'a Uri,
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// The other end of its connection.
    pub peer: Option<Peer>,
    told: Option<&'a OnceLock<Arc<Held>>>,
}

impl<'a> Asking<'a> {
    /// A request as axum has it, with what else is known as its extensions.
    pub fn of(uri: &'a Uri, headers: &'a HeaderMap, extensions: &'a Extensions) -> Self {
        let peer = extensions.get::<Peer>().copied();
        Self { uri, headers, peer, told: extensions.get::<Told>().map(|told| &*told.0) }
    }

    /// A request whose peer is known, and whose key is told there once it was found good.
    pub(super) fn telling(head: &'a Parts, peer: Peer, told: &'a OnceLock<Arc<Held>>) -> Self {
        Self { uri: &head.uri, headers: &head.headers, peer: Some(peer), told: Some(told) }
    }
}

/// With which key something is done, told back to whoever writes the answer's headers.
#[derive(Debug, Clone, Default)]
pub(super) struct Told(Arc<OnceLock<Arc<Held>>>);

impl Told {
    /// The key, once it was found good.
    pub(super) fn held(&self) -> Option<&Arc<Held>> {
        self.0.get()
    }
}

/// Tells with an answer what the key still allows.
pub(super) fn tell_limits(held: Option<&Arc<Held>>, response: &mut Response) {
    if let Some((policy, standing)) = held.and_then(|held| held.limits().headers()) {
        for (name, text) in [(RATE_LIMIT_POLICY, policy), (RATE_LIMIT, standing)] {
            if let Ok(value) = HeaderValue::from_str(&text) {
                response.headers_mut().insert(name, value);
            }
        }
    }
}

impl Door {
    /// Lets a request in that brings a good key which allows this, or needs none. `given` is a key from elsewhere than the
    /// headers, where a protocol has one; it counts where the headers bring none.
    pub fn admit(&self, asking: Asking<'_>, given: Option<&str>, scope: Scope) -> Result<Option<Arc<Held>>, Problem> {
        let Asking { uri, headers, peer, told } = asking;
        if let Some(listening) = self.open {
            match self.keys.need() {
                Need::Some => {}
                Need::None => return origin::check(uri, headers, listening).map_err(counted).map(|()| None),
                Need::Unknown => return Err(refuse(Refused::Unknown)),
            }
        }
        let presented = match presented(headers)? {
            Some(key) => key,
            None => Cow::Borrowed(given.ok_or_else(missing)?),
        };
        let held = self.keys.authenticate(&presented).map_err(refuse)?;
        if let Some(told) = told {
            _ = told.set(held.clone());
        }
        let grants = &held.key.grants;
        if !grants.networks.is_empty() {
            let from = peer.and_then(|peer| self.sender(headers, peer));
            if !from.is_some_and(|from| grants.networks.iter().any(|network| network.contains(&from))) {
                let from = from.map_or_else(|| "an address that is not known".to_owned(), |from| from.to_string());
                let detail = format!(
                    "this key may not be used from {from}: send from one of its networks, or have one made for yours"
                );
                return Err(counted(Problem::new(StatusCode::FORBIDDEN, "address_not_allowed", detail)));
            }
        }
        if !grants.scopes.allow(scope) {
            let detail =
                format!("this key does not have the scope {scope}, which this needs: have one made that has it");
            return Err(counted(Problem::new(StatusCode::FORBIDDEN, "missing_scope", detail)));
        }
        Ok(Some(held))
    }

    /// Whether the headers alone tell if a request is let in: they bring a key, or none is needed.
    pub(super) fn knows(&self, headers: &HeaderMap) -> bool {
        headers.contains_key(AUTHORIZATION) || self.open.is_some() && !matches!(self.keys.need(), Need::Some)
    }

    /// Where a request comes from: the other end of the connection, or, where that is a proxy whose word is believed, the
    /// last address before it that is none.
    fn sender(&self, headers: &HeaderMap, Peer(peer): Peer) -> Option<IpAddr> {
        let is_proxy = |address: IpAddr| self.trusted_proxies.iter().any(|network| network.contains(&address));
        let mut from = peer.ip().to_canonical();
        let said = headers.get_all(FORWARDED_FOR).iter().rev();
        let mut said = said.flat_map(|value| value.to_str().unwrap_or("?").rsplit(','));
        while is_proxy(from)
            && let Some(before) = said.next()
        {
            from = address(before.trim())?;
        }
        Some(from)
    }
}

/// An address as proxies write it, some of them with a port.
fn address(text: &str) -> Option<IpAddr> {
    let address = text.parse::<IpAddr>().or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip()));
    address.ok().map(|address| address.to_canonical())
}

/// The key that the headers bring.
fn presented(headers: &HeaderMap) -> Result<Option<Cow<'_, str>>, Problem> {
    let mut all = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = all.next() else { return Ok(None) };
    let (scheme, rest) = value.to_str().unwrap_or_default().split_once(' ').unwrap_or_default();
    if all.next().is_some() {
        return Err(refuse(Refused::Malformed));
    }
    if scheme.eq_ignore_ascii_case("bearer") {
        return Ok(Some(Cow::Borrowed(rest.trim())));
    }
    if scheme.eq_ignore_ascii_case("basic") {
        let pair = STANDARD.decode(rest.trim()).ok().and_then(|pair| String::from_utf8(pair).ok());
        let pair = pair.ok_or_else(|| refuse(Refused::Malformed))?;
        let user = pair.split_once(':').map_or(pair.as_str(), |(user, _)| user);
        return Ok(Some(Cow::Owned(user.to_owned())));
    }
    Err(missing())
}

fn counted(problem: Problem) -> Problem {
    metrics::counter!(AUTH_REFUSED, "reason" => problem.code()).increment(1);
    problem
}

fn missing() -> Problem {
    let detail = "this needs a key: send the header `Authorization: Bearer KEY`, or the key as the user of Basic";
    counted(Problem::new(StatusCode::UNAUTHORIZED, "missing_key", detail).challenging(Challenge::Missing))
}

fn refuse(refused: Refused) -> Problem {
    counted(match refused {
        Refused::Malformed => {
            let detail = "what was sent is no key of warren, or was mistyped: one reads wrn_ENV_ID_SECRET, and its last \
                          characters are a checksum of the others";
            Problem::new(StatusCode::UNAUTHORIZED, "malformed_key", detail).challenging(Challenge::Invalid)
        }
        Refused::Invalid => {
            let detail = "this key is not good: there is none like it, or it was revoked, or it has expired";
            Problem::new(StatusCode::UNAUTHORIZED, "invalid_key", detail).challenging(Challenge::Invalid)
        }
        Refused::Unknown => {
            let detail = "the keys are not known yet, because the database has not answered since this gateway started; \
                          the request was not accepted. Repeat it";
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "keys_unknown", detail)
                .after(std::time::Duration::from_secs(2))
        }
    })
}

/// More was asked for than a key allows.
pub(super) fn too_many(denied: Denied) -> Problem {
    match denied {
        Denied::For(pause) => {
            let seconds = (pause.as_secs() + u64::from(pause.subsec_nanos() > 0)).max(1);
            let detail = format!("more was sent with this key than it allows: try again in {seconds} s");
            let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", detail);
            problem.after(std::time::Duration::from_secs(seconds))
        }
        Denied::AtMost(most) => {
            let detail = format!("this key allows {most} at once and this is more: send less in one request");
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "batch_exceeds_limit", detail)
        }
    }
}

/// What is said to a key in a URL.
pub(super) fn key_in_url(request: &Request) -> Option<Problem> {
    request.uri().query().filter(|query| holds_a_key(query))?;
    let detail = "there is a key in the URL, where logs and proxies keep it: take it as known to others and rotate it \
                  (`warren key rotate`), and send the new one in the header `Authorization: Bearer KEY`";
    Some(counted(Problem::new(StatusCode::BAD_REQUEST, "key_in_url", detail)))
}

/// Whether a query holds a key, as a value or as a name.
fn holds_a_key(query: &str) -> bool {
    query.split(['&', '=', ';', '+']).any(|part| looks_like_a_key(&percent_decode_str(part).decode_utf8_lossy()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_asks_for_a_scope_and_one_that_nobody_thought_of_for_that_of_operators() {
        for (method, route, scope) in [
            (Method::POST, "/v1/jobs", Scope::JobsWrite),
            (Method::POST, "/v1/jobs/{kind_or_id}", Scope::JobsWrite),
            (Method::GET, "/v1/jobs/{kind_or_id}", Scope::JobsRead),
            (Method::HEAD, "/v1/jobs/{kind_or_id}", Scope::JobsRead),
            (Method::DELETE, "/v1/jobs/{kind_or_id}", Scope::JobsCancel),
            (Method::POST, "/v1/events", Scope::EventsWrite),
            (Method::POST, "/batch/", Scope::EventsWrite),
            (Method::POST, "/v1/jobsandmore", Scope::EventsWrite),
            (Method::GET, "/v1/stream", Scope::Admin),
            (Method::PUT, "/v1/jobs/{kind_or_id}", Scope::Admin),
        ] {
            assert_eq!(scope_of(&method, route), scope, "{method} {route}");
        }
    }

    #[test]
    fn a_key_is_found_in_a_query_however_it_is_written() {
        let key = "wrn_live_0123456789AB_abc";
        for query in [
            format!("key={key}"),
            format!("wait=10&api_key={key}"),
            format!("a={}", key.replace('_', "%5F")),
            key.to_owned(),
            format!("q=Bearer+{key}"),
        ] {
            assert!(holds_a_key(&query), "{query}");
        }
        for query in ["wait=10", "", "key=abc", "kind=wrn_live"] {
            assert!(!holds_a_key(query), "{query}");
        }
    }
}
