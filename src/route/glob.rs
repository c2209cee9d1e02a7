//! Patterns for types and sources.

use std::str::FromStr;

/// A pattern: `*` stands for any characters, none or many, dots and slashes too. Everything else stands for itself,
/// upper and lower case apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob(String);

/// A pattern that cannot match anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a pattern is 1 to {MAX} bytes without control characters; `*` stands for any characters, as in order.*")]
pub struct BadGlob;

const MAX: usize = 2048;

impl Glob {
    /// The pattern that matches everything.
    pub fn everything() -> Self {
        Self("*".into())
    }

    /// Whether it matches a text. Takes at most as many steps as the product of the two lengths.
    pub fn matches(&self, text: &str) -> bool {
        let (pattern, text) = (self.0.as_bytes(), text.as_bytes());
        let (mut at, mut in_text) = (0, 0);
        // The last star, and how much of the text it has taken.
        let mut star = None;
        while in_text < text.len() {
            if pattern.get(at) == Some(&b'*') {
                star = Some((at, in_text));
                at += 1;
            } else if pattern.get(at) == Some(&text[in_text]) {
                at += 1;
                in_text += 1;
            } else if let Some((star_at, taken)) = star {
                star = Some((star_at, taken + 1));
                at = star_at + 1;
                in_text = taken + 1;
            } else {
                return false;
            }
        }
        pattern[at..].iter().all(|byte| *byte == b'*')
    }
}

impl FromStr for Glob {
    type Err = BadGlob;

    fn from_str(text: &str) -> Result<Self, BadGlob> {
        if (1..=MAX).contains(&text.len()) && !text.chars().any(char::is_control) {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadGlob)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        pattern.parse::<Glob>().expect("a pattern").matches(text)
    }

    #[test]
    fn a_star_is_any_characters_and_everything_else_is_itself() {
        let cases = [
            ("order.paid", "order.paid", true),
            ("order.paid", "order.paid.late", false),
            ("order.*", "order.paid", true),
            ("order.*", "order.paid.late", true),
            ("order.*", "order.", true),
            ("order.*", "order", false),
            ("order.*", "orders.paid", false),
            ("order.*", "Order.paid", false),
            ("*.paid", "order.paid", true),
            ("*.paid", "order.paid.late", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("*", "", true),
            ("**", "x", true),
            ("https://*.example.com/*", "https://eu.example.com/shop", true),
            ("a?c", "abc", false),
            ("[a]", "a", false),
            ("caf\u{e9}.*", "caf\u{e9}.open", true),
        ];
        for (pattern, text, expected) in cases {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn a_pattern_that_can_match_nothing_is_none() {
        for bad in ["", "a\nb", &"x".repeat(2049)] {
            assert_eq!(bad.parse::<Glob>(), Err(BadGlob), "{bad:?}");
        }
    }

    /// The same rule as simply as it can be said.
    fn plainly(pattern: &[char], text: &[char]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (Some(('*', rest)), _) => {
                plainly(rest, text) || text.split_first().is_some_and(|(_, text)| plainly(pattern, text))
            }
            (Some((wanted, rest)), Some((found, text))) => wanted == found && plainly(rest, text),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn it_matches_what_the_rule_matches(pattern in "[ab*]{1,8}", text in "[ab]{0,10}") {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            prop_assert_eq!(matches(&pattern, &text), plainly(&chars(&pattern), &chars(&text)));
        }
    }
}
