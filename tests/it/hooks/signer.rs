//! Senders of webhooks that are not ours: the libraries that sign for them, in a process of their own.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, ChildStdout, Stdio},
};

use reqwest::RequestBuilder;
use serde_json::{Value, json};

use crate::harness::{canary, http::Http, programs::python_script};

pub(crate) const STANDARD: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
pub(crate) const STANDARD_NEW: &str = "whsec_bmV3IG5ldyBuZXcgbmV3IG5ldyBuZXcgbmV3IG5ldyE=";
pub(crate) const GITHUB: &str = "It's a Secret to Everybody";
pub(crate) const STRIPE: &str = "whsec_stripe_writes_this_as_it_is";
pub(crate) const TWILIO: &str = "12345";
pub(crate) const TOKEN: &str = "canary-0123456789-token";
/// Where Twilio believes that it calls: the address of its published example.
pub(crate) const TWILIO_URL: &str = "https://mycompany.com/myapp.php";

/// A source of each scheme.
pub(crate) fn sources() -> String {
    format!(
        "[source.shop]\nscheme = 'standard-webhooks'\nsecrets = ['{STANDARD_NEW}', '{STANDARD}']\n\
         [source.github]\nscheme = 'github-sha256'\nsecrets = [\"{GITHUB}\"]\n\
         [source.pay]\nscheme = 'stripe'\nsecrets = ['whsec_the_new_one', '{STRIPE}']\n\
         [source.phone]\nscheme = 'twilio'\nsecrets = ['{TWILIO}']\nurl = '{TWILIO_URL}'\n\
         [source.other]\nscheme = 'bearer'\nsecrets = ['{TOKEN}']\ntenant = 'acme'\n"
    )
}

/// Signs.
pub(crate) struct Signer {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Signer {
    /// `None` if the Python environment of `tests/run` is not there and need not be.
    pub(crate) fn start() -> Option<Self> {
        let mut child =
            python_script("signer.py")?.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("Python");
        let orders = child.stdin.take().expect("piped");
        let answers = BufReader::new(child.stdout.take().expect("piped"));
        Some(Self { child, orders, answers })
    }

    /// The headers with which such a sender signs.
    pub(crate) fn sign(&mut self, order: &Value) -> Vec<(String, String)> {
        writeln!(self.orders, "{order}").expect("it reads");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("it answers");
        let headers: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {order} {line:?}"));
        let headers = headers.as_object().expect("headers").iter();
        let headers: Vec<_> =
            headers.map(|(name, value)| (name.clone(), value.as_str().expect("text").to_owned())).collect();
        headers.iter().filter(|(name, _)| name.contains("signature")).for_each(|(_, value)| canary::plant(value));
        headers
    }
}

impl Drop for Signer {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Now and a while later or earlier, in seconds since 1970.
pub(crate) fn seconds_from_now(seconds: i64) -> i64 {
    jiff::Timestamp::now().as_second() + seconds
}

/// A webhook that can be sent.
#[derive(Debug, Clone)]
pub(crate) struct Hook {
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Hook {
    /// By Standard Webhooks' own library, or Svix'.
    pub(crate) fn standard(signer: &mut Signer, by: &str, secret: &str, id: &str, timestamp: i64, body: &str) -> Self {
        let order = json!({ "as": by, "secret": secret, "id": id, "timestamp": timestamp, "body": body });
        Self { path: "/v1/hooks/shop".into(), headers: signer.sign(&order), body: body.into() }
            .typed("application/json")
    }

    /// By Stripe's own library.
    pub(crate) fn stripe(signer: &mut Signer, secret: &str, timestamp: i64, body: &str) -> Self {
        let order = json!({ "as": "stripe", "secret": secret, "timestamp": timestamp, "body": body });
        let headers = signer.sign(&order);
        Self { path: "/v1/hooks/pay".into(), headers, body: body.into() }.typed("application/json; charset=utf-8")
    }

    /// As GitHub publishes it.
    pub(crate) fn github(signer: &mut Signer, event: &str, delivery: &str, body: &str) -> Self {
        let headers = signer.sign(&json!({ "as": "github", "secret": GITHUB, "body": body }));
        let this = Self { path: "/v1/hooks/github".into(), headers, body: body.into() };
        this.with("x-github-event", event).with("x-github-delivery", delivery).typed("application/json")
    }

    /// As Twilio publishes it; the fields are sent in this order.
    pub(crate) fn twilio(signer: &mut Signer, query: &str, fields: &[(&str, &str)]) -> Self {
        let mut form = serde_json::Map::new();
        for (name, value) in fields {
            let values = form.entry(*name).or_insert_with(|| json!([])).as_array_mut().expect("just made");
            values.push(json!(value));
        }
        let order = json!({ "as": "twilio", "secret": TWILIO, "url": format!("{TWILIO_URL}{query}"), "form": form });
        let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        Self { path: format!("/v1/hooks/phone{query}"), headers: signer.sign(&order), body: body.into() }
            .typed("application/x-www-form-urlencoded")
    }

    /// With a token.
    pub(crate) fn bearer(body: &[u8]) -> Self {
        let this = Self { path: "/v1/hooks/other".into(), headers: Vec::new(), body: body.to_owned() };
        this.with("authorization", &format!("Bearer {TOKEN}"))
    }

    /// With one header more.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With another value of a header.
    pub(crate) fn instead(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(known, _)| known != name);
        self.with(name, value)
    }

    /// Without a header.
    pub(crate) fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(known, _)| known != name);
        self
    }

    fn typed(self, media: &str) -> Self {
        self.with("content-type", media)
    }

    pub(crate) fn request(&self, http: &Http) -> RequestBuilder {
        let request = http.post(&self.path).body(self.body.clone());
        self.headers.iter().fold(request, |request, (name, value)| request.header(name, value))
    }
}
