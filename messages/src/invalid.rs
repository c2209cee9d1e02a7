//! Everything that is wrong with a body, at once.

use std::{borrow::Cow, fmt};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One problem of a body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// Where: a JSON pointer (RFC 6901) into the body, empty for the body as a whole.
    pub pointer: String,
    /// What, for programs: lower case with underscores, stable.
    pub code: Cow<'static, str>,
    /// What, for people: the rule and the fix, in one sentence.
    pub detail: String,
}

/// All problems of one body. Never empty when it is returned as an error.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invalid {
    problems: Vec<Problem>,
}

impl Invalid {
    /// One problem.
    pub fn new(pointer: impl Into<String>, code: impl Into<Cow<'static, str>>, detail: impl Into<String>) -> Self {
        let mut invalid = Self::default();
        invalid.add(pointer, code, detail);
        invalid
    }

    /// Notes one more problem.
    pub fn add(&mut self, pointer: impl Into<String>, code: impl Into<Cow<'static, str>>, detail: impl Into<String>) {
        self.problems.push(Problem { pointer: pointer.into(), code: code.into(), detail: detail.into() });
    }

    /// Notes what else was found.
    pub fn append(&mut self, mut other: Self) {
        self.problems.append(&mut other.problems);
    }

    /// What was noted, in order.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// `Ok` when nothing was noted.
    pub fn into_result(self) -> Result<(), Self> {
        if self.problems.is_empty() { Ok(()) } else { Err(self) }
    }

    /// Reads a serde error: its code from its wording, which serde has kept since 1.0, its place from `pointer`.
    pub(crate) fn from_serde(pointer: String, error: &impl fmt::Display) -> Self {
        let text = without_values(&error.to_string());
        // serde_json appends its own position, which means nothing once the pointer is known.
        let text = match text.rfind(" at line ") {
            Some(end) if !pointer.is_empty() => &text[..end],
            _ => text.as_str(),
        };
        let code = [
            ("unknown field", "unknown_field"),
            ("unknown variant", "unknown_value"),
            ("missing field", "missing_field"),
            ("duplicate field", "duplicate_key"),
            ("duplicate key", "duplicate_key"),
            ("invalid type", "wrong_type"),
            ("invalid value", "bad_value"),
            ("invalid length", "bad_length"),
        ]
        .iter()
        .find(|(wording, _)| text.starts_with(wording))
        .map_or("bad_value", |(_, code)| code);
        Self::new(pointer, code, text)
    }
}

/// The words of a serde error without the value that it quotes: what stands in a body may be a secret, and errors are kept
/// and logged.
pub fn without_values(text: &str) -> String {
    for (wording, instead) in [
        ("invalid type: ", "invalid type: it is "),
        ("invalid value: ", "invalid value: it is "),
        ("unknown variant ", "unknown variant"),
    ] {
        let Some(rest) = text.strip_prefix(wording) else { continue };
        // The value itself may hold these words; what is expected is said behind the last of them.
        let Some((found, expected)) = rest.rsplit_once(", expected ") else { continue };
        // `string "…"`, `integer `5``: what it is stands before the value.
        let found = found.split(['"', '`']).next().unwrap_or_default().trim_end();
        // As which the reader of MessagePack offers what JSON has nothing like.
        let found = if found == "newtype struct" { "an extension type of MessagePack" } else { found };
        return format!("{instead}{found}, expected {expected}");
    }
    text.to_owned()
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                f.write_str("; ")?;
            }
            if !problem.pointer.is_empty() {
                write!(f, "{}: ", problem.pointer)?;
            }
            f.write_str(&problem.detail)?;
        }
        Ok(())
    }
}

impl std::error::Error for Invalid {}
