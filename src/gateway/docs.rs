//! Swagger UI at `/docs`, from this binary alone: it works where there is no other network, and tells nobody who reads it.

use std::{
    io::{Cursor, Read as _},
    sync::{Arc, OnceLock},
};

use axum::{extract::State as Shared, response::Response};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{CONTENT_SECURITY_POLICY, REFERRER_POLICY},
};
use schemars::{Schema, SchemaGenerator, json_schema};

use super::{
    Gateway,
    operation::{ABOUT, Operation, header, path, text},
    page::Page,
    problem::Problem,
    request::Path,
};

/// Everything comes from here, and nothing is taken for a program that does not. Its pictures are in its style sheet.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const PAGE: &str = r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>warren</title>
<link rel="stylesheet" href="docs/swagger-ui.css">
<link rel="icon" type="image/png" href="docs/favicon-32x32.png">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"#;

/// `validatorUrl` would send the description to someone else's server.
const START: &str = r##"SwaggerUIBundle({ url: "v1/openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null });
"##;

const START_NAME: &str = "start.js";

/// What is served of the release, and as what.
const FILES: [(&str, &str); 3] = [
    ("swagger-ui-bundle.js", "text/javascript; charset=utf-8"),
    ("swagger-ui.css", "text/css; charset=utf-8"),
    ("favicon-32x32.png", "image/png"),
];

pub(super) fn operations() -> Vec<Operation> {
    vec![
        Operation::get("/docs", "docs", ABOUT, "Read and try this interface", page)
            .for_everyone()
            .parameter(header("If-None-Match", "The `ETag` of what the sender has.", text))
            .answers_with(200, "Swagger UI.", "text/html", text)
            .answers_empty(304, "It has not changed."),
        Operation::get("/docs/{file}", "docsFile", ABOUT, "What that page is made of", file)
            .for_everyone()
            .parameter(path("file", "Which file.", file_name))
            .parameter(header("If-None-Match", "The `ETag` of what the sender has.", text))
            .answers_with(200, "The file.", "text/javascript", text)
            .answers_with(200, "The file.", "text/css", text)
            .answers_with(200, "The file.", "image/png", text)
            .answers_empty(304, "It has not changed.")
            .refuses(&[400, 404]),
    ]
}

fn file_name(_: &mut SchemaGenerator) -> Schema {
    let names: Vec<_> = FILES.iter().map(|(name, _)| *name).chain([START_NAME]).collect();
    json_schema!({ "type": "string", "enum": names })
}

async fn page(headers: HeaderMap) -> Response {
    static MADE: OnceLock<Page> = OnceLock::new();
    guarded(MADE.get_or_init(|| Page::new("text/html; charset=utf-8", PAGE)).answer(&headers))
}

async fn file(
    Shared(_): Shared<Arc<Gateway>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let file = files().iter().find(|(known, _)| *known == name);
    let (_, page) = file.ok_or_else(|| {
        Problem::new(StatusCode::NOT_FOUND, "not_found", "there is no such file; the page is at /docs")
    })?;
    Ok(guarded(page.answer(&headers)))
}

fn guarded(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

/// Unpacked when someone looks for the first time.
fn files() -> &'static [(&'static str, Page)] {
    static UNPACKED: OnceLock<Vec<(&'static str, Page)>> = OnceLock::new();
    UNPACKED.get_or_init(|| {
        let mut files = vec![(START_NAME, Page::new("text/javascript; charset=utf-8", START))];
        files.extend(FILES.iter().filter_map(|(name, media)| Some((*name, Page::new(media, unpack(name)?)))));
        files
    })
}

fn unpack(name: &str) -> Option<Bytes> {
    let mut release = zip::ZipArchive::new(Cursor::new(utoipa_swagger_ui_vendored::SWAGGER_UI_VENDORED)).ok()?;
    // swagger-ui-VERSION/dist/NAME; there is a `dist` further down too.
    let is_it = |place: &str| place.split_once('/').is_some_and(|(_, rest)| rest.strip_prefix("dist/") == Some(name));
    let place = release.file_names().flatten().find(|place| is_it(place))?.into_owned();
    let mut bytes = Vec::new();
    release.by_name(&place).ok()?.read_to_end(&mut bytes).ok()?;
    Some(bytes.into())
}
