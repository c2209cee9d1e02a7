//! One job in one request, which is what most requests are: what it becomes, and a way to it past the router.
//!
//! For one that is written as nearly everyone writes it the router finds nothing out; but it copies the path, and boxes the
//! body, the handler and what it has found. Whatever is written in another way, to whatever page, goes to the router.

use std::sync::{Arc, OnceLock};

use axum::{
    Json, Router,
    extract::{Request, State as Shared},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header::LOCATION, request::Parts};
use hyper::body::Body;
use warren_messages::codec::MAX_BYTES;

use super::{
    Answer, Gateway,
    around::Around,
    auth::{Asking, scope_of, tell_limits},
    body::Incoming,
    caller::Caller,
    problem::Problem,
    request::{self, Path},
    room,
    serve::{Pages, Peer, Watched},
    submit::{Name, Submission, Submitted},
};

/// Where one job is sent to, but for its kind.
const TO: &str = "/v1/jobs/";

/// The pages of a gateway, one of them without the router.
#[derive(Clone)]
pub(super) struct Shortcut {
    pub(super) gateway: Arc<Gateway>,
    pub(super) router: Around<Router>,
}

impl Pages for Shortcut {
    async fn answer(&self, peer: Peer, request: http::Request<Watched>) -> Response {
        let Some(kind) = plainly_sent(&request) else { return self.router.answer(peer, request).await };
        let kind = kind.to_owned();
        let told = OnceLock::new();
        let (head, body) = request.into_parts();
        let asking = Asking::telling(&head, peer, &told);
        let mut response = match self.gateway.caller_of(asking, None, scope_of(&head.method, TO)) {
            Ok(caller) => {
                self.gateway.submit_one(caller, &kind, head, body).await.unwrap_or_else(Problem::into_response)
            }
            Err(problem) => problem.into_response(),
        };
        tell_limits(told.get(), &mut response);
        response
    }
}

/// The kind of the one job that is sent, if nothing in its URL is more than plain letters.
fn plainly_sent<B>(request: &http::Request<B>) -> Option<&str> {
    let kind = request.uri().path_and_query()?.as_str().strip_prefix(TO)?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (request.method() == Method::POST && !kind.is_empty() && kind.bytes().all(is_plain)).then_some(kind)
}

/// The same through the router.
pub(super) async fn submit_one(
    Shared(gateway): Shared<Arc<Gateway>>,
    caller: Caller,
    Path(kind): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    let (head, body) = request.into_parts();
    gateway.submit_one(caller, &kind, head, body).await
}

impl Gateway {
    async fn submit_one(
        &self,
        caller: Caller,
        kind: &str,
        head: Parts,
        body: impl Body<Data = Bytes, Error: std::fmt::Display> + Unpin,
    ) -> Result<Response, Problem> {
        let caller = caller.counted(1)?;
        let headers = &head.headers;
        let (format, key, when) =
            (request::format(headers)?, request::idempotency_key(headers)?, request::when(headers)?);
        // A preference, and so not followed for one who may send and not see.
        let wait = request::prefer_wait(headers)?.filter(|_| caller.may_read());
        let (body, room) = Incoming::whole(headers, body, MAX_BYTES)?.collect_apart().await?;
        let checked = self.check(Submission {
            caller: &caller,
            kind,
            format,
            body: &body,
            name: key.map_or(Name::None, Name::Key),
            when,
            source: caller.name(),
            trace: request::trace(headers),
        })?;
        // They share the connection's buffer, which hyper can use again for the next request only if nobody holds it.
        drop((head, body));
        let Submitted { id, kind, state, replayed, late } = self.take(checked, room).await?;
        let ended = match wait {
            Some(at_most) => self.ended(&caller.tenant, id, at_most).await,
            None => None,
        };
        // It was accepted whether or not there is room to say what came of it.
        let mut response = match ended.and_then(|job| room::json(&job).ok()) {
            Some(job) => (StatusCode::OK, [("preference-applied", "wait")], job).into_response(),
            None => (StatusCode::ACCEPTED, Json(Answer { id, kind, state, replayed, late })).into_response(),
        };
        if let Ok(location) = HeaderValue::try_from(format!("{TO}{id}")) {
            response.headers_mut().insert(LOCATION, location);
        }
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(method: &str, url: &str) -> Option<String> {
        let request = http::Request::builder().method(method).uri(url).body(()).expect("a request");
        plainly_sent(&request).map(str::to_owned)
    }

    #[test]
    fn only_what_is_plainly_one_job_goes_past_the_router() {
        for (url, kind) in [
            ("/v1/jobs/webhook.deliver", "webhook.deliver"),
            ("http://127.0.0.1:8080/v1/jobs/mail-bulk_2", "mail-bulk_2"),
            ("/v1/jobs/No.Such.Kind", "No.Such.Kind"),
        ] {
            assert_eq!(sent("POST", url).as_deref(), Some(kind), "{url}");
            for method in ["GET", "HEAD", "DELETE", "PUT", "post"] {
                assert_eq!(sent(method, url), None, "{method} {url}");
            }
        }
        for url in [
            "/v1/jobs",
            "/v1/jobs/",
            "/v1/jobs/a/b",
            "/v1/jobs/a/",
            "/v1/jobs/a?wait=1",
            "/v1/jobs/a?",
            "/v1/jobs/%61",
            "/v1/jobs/a;b",
            "/v1//jobs/a",
            "/V1/jobs/a",
            "*",
        ] {
            assert_eq!(sent("POST", url), None, "{url}");
        }
    }
}
