//! Around every route: a key in a URL is told of before anything else, because URLs end in logs; and an answer to someone
//! with a key tells what the key still allows.
//!
//! A service around the whole router: as a layer within it, it would cost every request a copy of its route and two boxes.

use std::{
    future::{Future, Ready, ready},
    pin::Pin,
    task::{Context, Poll},
};

use axum::{
    extract::Request,
    response::{IntoResponse as _, Response},
};
use futures_util::future::Either;
use pin_project_lite::pin_project;
use tower::Service;

use super::auth::{Told, key_in_url, tell_limits};

/// A service with this around it.
#[derive(Debug, Clone)]
pub(crate) struct Around<S>(pub(crate) S);

impl<S: Service<Request, Response = Response>> Service<Request> for Around<S> {
    type Response = Response;
    type Error = S::Error;
    type Future = Either<Ready<Result<Response, S::Error>>, Answering<S::Future>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        if let Some(problem) = key_in_url(&request) {
            return Either::Left(ready(Ok(problem.into_response())));
        }
        let told = Told::default();
        request.extensions_mut().insert(told.clone());
        Either::Right(Answering { answer: self.0.call(request), told })
    }
}

pin_project! {
    /// An answer that is being made.
    pub(crate) struct Answering<F> {
        #[pin]
        answer: F,
        told: Told,
    }
}

impl<F: Future<Output = Result<Response, E>>, E> Future for Answering<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let told = this.told;
        this.answer.poll(context).map_ok(|mut response| {
            tell_limits(told.held(), &mut response);
            response
        })
    }
}
