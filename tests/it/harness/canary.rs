//! What must never stand in a log: words that the tests plant, and secrets by their form, wherever they come from.
//!
//! Every process of the suite is looked at when it ends, so a test need not be about secrets to find one in a log. What
//! is planted is looked for as it is and as logs might hold it: in base64, in hexadecimal, and as a list of bytes.

use std::{
    path::Path,
    sync::{LazyLock, Mutex, PoisonError},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use regex::Regex;

/// Begins every word that stands for something secret: `canary-in-a-body`, `canary-password`.
pub(crate) const MARK: &str = "canary-";
/// Words that stand for passwords in tests that are older than the mark.
const WORDS: [&str; 2] = [MARK, "hunter2"];

/// Secrets by their form.
static FORMS: LazyLock<Vec<(&str, Regex)>> = LazyLock::new(|| {
    let forms = [
        ("an API key", r"wrn_[0-9A-Za-z]+_[0-9A-Za-z]{12}_[0-9A-Za-z]{38}"),
        // `wrn_` at the beginning of what Basic carries, and behind an empty user.
        ("an API key in base64", r"d3JuX[0-9A-Za-z+/]{40,}|Ondybl[0-9A-Za-z+/]{40,}"),
        ("a webhook's secret", r"whsec_[0-9A-Za-z+/=_-]{8,}"),
        ("a signature of Standard Webhooks", r"v1a?,[0-9A-Za-z+/]{43}="),
        ("a signature of GitHub", r"sha256=[0-9a-f]{64}"),
        ("a signature of Stripe", r"v[01]=[0-9a-f]{64}"),
        ("a password in a URL", r"[a-z]+://[^\s/:@]*:[^\s/@]+@"),
        ("what Authorization holds", r"(?i)(bearer|basic) [0-9A-Za-z+/=_.-]{12,}"),
        ("a private key", r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    ];
    forms.map(|(name, form)| (name, Regex::new(form).expect("a form"))).into()
});

/// What the tests have planted beside the words: signatures that were made, secrets of an installation's own.
static PLANTED: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// From now on this must stand in no log either.
pub(crate) fn plant(secret: &str) {
    let mut planted = PLANTED.lock().unwrap_or_else(PoisonError::into_inner);
    if !planted.iter().any(|known| known == secret) {
        planted.push(secret.to_owned());
    }
}

/// Plants the secrets behind an installation's ids, where it has them by now: its configuration, or its own file.
pub(crate) fn plant_ids(configuration: &Path, data: &Path) {
    for file in [configuration, &data.join("ids.toml")] {
        let Ok(text) = std::fs::read_to_string(file) else { continue };
        let lines = text.lines().filter(|line| line.starts_with("dedup_key") || line.starts_with("tag_keys"));
        let quoted = lines.flat_map(|line| line.split('"').skip(1).step_by(2));
        // A word that is shorter is no secret, but a mistake that a test makes.
        quoted.filter(|secret| secret.len() >= 32).for_each(plant);
    }
}

/// As which texts a word might stand in a log.
fn disguises(word: &str) -> Vec<String> {
    let bytes = word.as_bytes();
    let list: Vec<_> = bytes.iter().map(ToString::to_string).collect();
    let hexadecimal: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    // What stands before it shifts it by up to two bytes; the digits that it shares with its neighbours are left out.
    let base64 = (0..3).map(|shift| {
        let digits = STANDARD.encode([&vec![0; shift], bytes].concat());
        let whole = (shift + bytes.len()) / 3 * 4;
        digits[[0, 2, 3][shift]..whole].to_owned()
    });
    base64.chain([word.to_owned(), hexadecimal.concat(), list.join(", ")]).collect()
}

static DISGUISED: LazyLock<Vec<String>> = LazyLock::new(|| WORDS.iter().flat_map(|word| disguises(word)).collect());

/// The first line that holds what no log may hold, and what that is.
pub(crate) fn found(log: &str) -> Option<(String, String)> {
    let planted = PLANTED.lock().unwrap_or_else(PoisonError::into_inner).clone();
    // As a whole first: nearly always there is nothing.
    let word = |text: &str| {
        let planted = DISGUISED.iter().chain(&planted).find(|word| text.contains(word.as_str()));
        planted.cloned().or_else(|| text.to_ascii_lowercase().contains(MARK).then(|| MARK.to_owned()))
    };
    // An example says how a URL reads.
    let is_secret = |hit: regex::Match| !hit.as_str().ends_with("user:password@");
    let form = |text: &str| FORMS.iter().find(|(_, form)| form.find_iter(text).any(is_secret));
    let form = |text: &str| form(text).map(|(name, _)| (*name).to_owned());
    let what = word(log).or_else(|| form(log))?;
    let line = log.lines().find(|line| word(line).or_else(|| form(line)).is_some()).unwrap_or("several lines");
    Some((what, line.to_owned()))
}

/// Fails where a log holds what no log may hold.
pub(crate) fn check(log: &str) {
    if let Some((what, line)) = found(log) {
        // A second panic would end every test of this process.
        if std::thread::panicking() {
            eprintln!("{what} is logged: {line}");
        } else {
            panic!("{what} is logged: {line}");
        }
    }
}
