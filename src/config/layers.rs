//! Settings from several places, one over the other, and a reader that goes on after a mistake.

use std::{collections::BTreeMap, fmt, ops::RangeInclusive, str::FromStr, time::Duration};

use jiff::SignedDuration;
use toml::{Table, Value};

use crate::nearest::nearest;

/// One thing that is wrong with the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Where it was said: a file, a variable, a flag.
    pub origin: String,
    /// Which setting, or nothing where it is about a whole file.
    pub setting: String,
    /// What is wrong, and what would be right. Never holds a secret.
    pub problem: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.setting.as_str() {
            "" => write!(f, "{}: {}", self.origin, self.problem),
            setting => write!(f, "{setting} ({}): {}", self.origin, self.problem),
        }
    }
}

/// The way to a setting: `["gateway", "listen"]`.
type Path = Vec<String>;

/// All settings, each from the last place that says it.
#[derive(Debug, Default)]
pub(super) struct Layers {
    settings: BTreeMap<Path, (Value, String)>,
    mistakes: Vec<Mistake>,
}

impl Layers {
    /// Lays a TOML text over what is there.
    pub(super) fn add_toml(&mut self, origin: &str, text: &str) {
        match text.parse::<Table>() {
            Ok(table) => self.add_table(origin, &mut Vec::new(), table),
            Err(error) => {
                // Its own display quotes the line, which may hold a secret.
                let line = error.span().map(|span| 1 + text[..span.start].matches('\n').count());
                let place = line.map_or(String::new(), |line| format!(" in line {line}"));
                self.mistake(origin, "", format!("this is not TOML{place}: {}", error.message()));
            }
        }
    }

    fn add_table(&mut self, origin: &str, path: &mut Path, table: Table) {
        for (key, value) in table {
            path.push(key);
            match value {
                // Further up an empty table says nothing; so deep down it is a value within a template.
                Value::Table(table) if table.is_empty() && path.len() > 2 => {
                    self.lay(path.clone(), Value::Table(table), origin);
                }
                Value::Table(table) => self.add_table(origin, path, table),
                value => self.lay(path.clone(), value, origin),
            }
            path.pop();
        }
    }

    /// An empty text replaces nothing: `PREFIX=${PREFIX:-}` must not take a default away.
    fn lay(&mut self, path: Path, value: Value, origin: &str) {
        let is_empty = matches!(&value, Value::String(text) if text.is_empty());
        if !(is_empty && self.settings.contains_key(&path)) {
            self.settings.insert(path, (value, origin.to_owned()));
        }
    }

    /// Lays one setting over what is there.
    pub(super) fn add(&mut self, origin: &str, path: &[&str], value: Value) {
        self.lay(path.iter().map(ToString::to_string).collect(), value, origin);
    }

    /// Lays a variable such as `WARREN__GATEWAY__LISTEN` over what is there. Its text is read as TOML where it is that,
    /// and as plain text otherwise.
    pub(super) fn add_variable(&mut self, name: &str, text: &str) {
        let Some(path) = name.strip_prefix("WARREN__") else { return };
        let path: Path = path.split("__").map(str::to_lowercase).collect();
        let value = format!("value = {text}").parse::<Table>().ok().and_then(|mut table| table.remove("value"));
        let value = value.unwrap_or_else(|| Value::String(text.to_owned()));
        self.lay(path, value, name);
    }

    /// Notes something that is wrong.
    pub(super) fn mistake(&mut self, origin: &str, setting: &str, problem: impl Into<String>) {
        self.mistakes.push(Mistake { origin: origin.to_owned(), setting: setting.to_owned(), problem: problem.into() });
    }

    /// Whether anybody says anything of it.
    pub(super) fn is_set(&self, path: &[&str]) -> bool {
        self.settings.keys().any(|key| key == path)
    }

    fn take(&mut self, path: &[&str]) -> Option<(Value, String)> {
        let path: Path = path.iter().map(ToString::to_string).collect();
        self.settings.remove(&path)
    }

    fn wrong(&mut self, path: &[&str], origin: &str, problem: impl Into<String>) {
        self.mistake(origin, &path.join("."), problem);
    }

    /// A text. An empty one is as if it were not there.
    pub(super) fn text(&mut self, path: &[&str]) -> Option<(String, String)> {
        match self.take(path)? {
            (Value::String(text), _) if text.is_empty() => None,
            (Value::String(text), origin) => Some((text, origin)),
            (_, origin) => {
                self.wrong(path, &origin, "must be text, in quotes");
                None
            }
        }
    }

    /// A text that must be there. `what` is to tell what it is for.
    pub(super) fn required(&mut self, path: &[&str], what: &str) -> Option<(String, String)> {
        match self.take(path) {
            Some((Value::String(text), origin)) if !text.is_empty() => return Some((text, origin)),
            Some((Value::String(_), origin)) => self.wrong(path, &origin, format!("is empty: {what}")),
            Some((_, origin)) => self.wrong(path, &origin, "must be text, in quotes"),
            None => self.mistake("all in all", &path.join("."), format!("is missing: {what}")),
        }
        None
    }

    /// Whatever stands at or under a path, and where the first of it was said.
    pub(super) fn subtree(&mut self, path: &[&str]) -> Option<(Value, String)> {
        let under: Vec<Path> = self
            .settings
            .keys()
            .filter(|key| key.len() >= path.len() && key.iter().zip(path).all(|(part, wanted)| part == wanted))
            .cloned()
            .collect();
        let mut found: Option<(Value, String)> = None;
        for key in under {
            let Some((value, origin)) = self.settings.remove(&key) else { continue };
            let (root, _) = found.get_or_insert_with(|| (Value::Table(Table::new()), origin));
            place(root, &key[path.len()..], value);
        }
        found
    }

    /// A text of some form. The error's own words must not repeat the text where it may be a secret.
    pub(super) fn parsed<T: FromStr<Err: fmt::Display>>(&mut self, path: &[&str]) -> Option<T> {
        let (text, origin) = self.text(path)?;
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.wrong(path, &origin, error.to_string());
                None
            }
        }
    }

    /// A list of texts of some form.
    pub(super) fn list<T: FromStr<Err: fmt::Display>>(&mut self, path: &[&str]) -> Vec<T> {
        let Some((value, origin)) = self.take(path) else { return Vec::new() };
        let Value::Array(items) = value else {
            self.wrong(path, &origin, "must be a list, in brackets");
            return Vec::new();
        };
        let mut parsed = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let text = match item {
                Value::String(text) => text.clone(),
                Value::Integer(number) => number.to_string(),
                _ => {
                    self.wrong(path, &origin, format!("item {} must be text, in quotes", index + 1));
                    continue;
                }
            };
            match text.parse() {
                Ok(value) => parsed.push(value),
                Err(error) => self.wrong(path, &origin, format!("item {}: {error}", index + 1)),
            }
        }
        parsed
    }

    /// Yes or no.
    pub(super) fn boolean(&mut self, path: &[&str]) -> Option<bool> {
        match self.take(path)? {
            (Value::Boolean(value), _) => Some(value),
            (_, origin) => {
                self.wrong(path, &origin, "must be true or false");
                None
            }
        }
    }

    /// A whole number.
    pub(super) fn integer(&mut self, path: &[&str], range: RangeInclusive<u32>) -> Option<u32> {
        let (value, origin) = self.take(path)?;
        let number = value.as_integer().and_then(|number| u32::try_from(number).ok());
        let number = number.filter(|number| range.contains(number));
        if number.is_none() {
            let problem = format!("must be a whole number from {} to {}", range.start(), range.end());
            self.wrong(path, &origin, problem);
        }
        number
    }

    /// A number.
    pub(super) fn number(&mut self, path: &[&str]) -> Option<f64> {
        let (value, origin) = self.take(path)?;
        #[expect(clippy::cast_precision_loss, reason = "a number that anyone would write here is exact")]
        let number = value.as_float().or_else(|| value.as_integer().map(|number| number as f64));
        if number.is_none() {
            self.wrong(path, &origin, "must be a number");
        }
        number
    }

    /// A duration.
    pub(super) fn duration(&mut self, path: &[&str], range: RangeInclusive<Duration>) -> Option<Duration> {
        let (text, origin) = self.text(path)?;
        match parse_duration(&text) {
            Ok(duration) if range.contains(&duration) => Some(duration),
            Ok(_) => {
                let problem = format!("must be from {} to {}", show(*range.start()), show(*range.end()));
                self.wrong(path, &origin, problem);
                None
            }
            Err(problem) => {
                self.wrong(path, &origin, problem);
                None
            }
        }
    }

    /// The names that stand directly under a section.
    pub(super) fn names_under(&self, section: &[&str]) -> Vec<String> {
        let mut names: Vec<_> = self
            .settings
            .keys()
            .filter(|path| path.len() > section.len() && path.iter().zip(section).all(|(part, wanted)| part == wanted))
            .map(|path| path[section.len()].clone())
            .collect();
        names.dedup();
        names
    }

    /// Everything that is wrong: what was noted, and every setting that nobody asked for.
    pub(super) fn finish(mut self, known: &[String]) -> Vec<Mistake> {
        for (path, (_, origin)) in std::mem::take(&mut self.settings) {
            let setting = path.join(".");
            let hint = nearest(&setting, known.iter().map(String::as_str));
            let hint = hint.first().map_or(String::new(), |name| format!("; did you mean {name}?"));
            self.mistake(&origin, &setting, format!("there is no such setting{hint}"));
        }
        self.mistakes
    }

    /// The names of all settings that are there now.
    pub(super) fn known(&self) -> Vec<String> {
        self.settings.keys().map(|path| path.join(".")).collect()
    }
}

/// A file as a mistake may name it. Whoever puts a secret where the name of its file belongs must not read it in a log, so
/// only what is written as a path is repeated.
pub(crate) fn shown_file(name: &str) -> &str {
    let is_path = ["/", "./", "../"].iter().any(|start| name.starts_with(start));
    if is_path { name } else { "the file that is named there" }
}

/// Puts a value to its place in a tree. What stands in its way, from another layer, stays.
fn place(root: &mut Value, path: &[String], value: Value) {
    match (path, root) {
        ([], root) => *root = value,
        ([first, rest @ ..], Value::Table(table)) => {
            place(table.entry(first.clone()).or_insert_with(|| Value::Table(Table::new())), rest, value);
        }
        _ => {}
    }
}

/// Reads `500ms`, `30s`, `5m`, `12h`, `30d`, or a sum of them such as `1h30m`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    const EXAMPLES: &str = "a duration reads 500ms, 30s, 5m, 12h or 30d";
    // jiff leaves days to calendars; here a day is 24 hours.
    let text = text.trim();
    let (days, rest) = match text.split_once('d') {
        Some((days, rest)) => (days.trim().parse::<u32>().map_err(|_| EXAMPLES.to_owned())?, rest.trim()),
        None => (0, text),
    };
    let rest = match rest {
        "" if text.is_empty() => return Err(EXAMPLES.into()),
        "" => SignedDuration::ZERO,
        rest => rest.parse::<SignedDuration>().map_err(|_| EXAMPLES.to_owned())?,
    };
    let rest = Duration::try_from(rest).map_err(|_| "a duration cannot be negative".to_owned())?;
    Duration::from_secs(u64::from(days) * 24 * 3600).checked_add(rest).ok_or_else(|| EXAMPLES.to_owned())
}

fn show(duration: Duration) -> String {
    match duration.as_secs() {
        0 => format!("{}ms", duration.as_millis()),
        seconds if seconds % 86_400 == 0 => format!("{}d", seconds / 86_400),
        seconds if seconds % 3600 == 0 => format!("{}h", seconds / 3600),
        seconds if seconds % 60 == 0 => format!("{}m", seconds / 60),
        seconds => format!("{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_a_unit_and_may_have_several() {
        let seconds = |text| parse_duration(text).map(|duration| duration.as_secs_f64());
        assert_eq!(seconds("500ms"), Ok(0.5));
        assert_eq!(seconds("30s"), Ok(30.0));
        assert_eq!(seconds("1h30m"), Ok(5400.0));
        assert_eq!(seconds("30d"), Ok(2_592_000.0));
        assert_eq!(seconds("1d 12h"), Ok(129_600.0));
        for bad in ["", "30", "1h30", "-5s", "x", "NaN", "5y"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_later_layer_wins_unless_it_is_empty_and_a_variable_is_read_as_toml_or_as_text() {
        let mut layers = Layers::default();
        layers.add_toml("a", "[gateway]\nlisten = 'one'\nsize = 1\n");
        layers.add_toml("b", "gateway.listen = 'two'");
        layers.add_variable("WARREN__GATEWAY__SIZE", "7");
        layers.add_variable("WARREN__GATEWAY__LISTEN", "");
        layers.add_variable("WARREN__GATEWAY__NAMES", "['x', 'y']");
        layers.add_variable("WARREN__GATEWAY__PLAIN", "amqp://x");
        assert_eq!(layers.text(&["gateway", "listen"]), Some(("two".into(), "b".into())));
        assert_eq!(layers.integer(&["gateway", "size"], 0..=9), Some(7));
        assert_eq!(layers.list::<String>(&["gateway", "names"]), ["x", "y"]);
        assert_eq!(layers.text(&["gateway", "plain"]).map(|text| text.0), Some("amqp://x".into()));
        assert_eq!(layers.finish(&[]), []);
    }

    #[test]
    fn every_mistake_is_reported_with_its_place_and_an_unknown_setting_with_its_nearest() {
        let mut layers = Layers::default();
        layers.add_toml("f.toml", "[gateway]\nlisten = 5\nlistne = 'x'\n[worker]\ndrain = '5 minutes or so'\n");
        assert_eq!(layers.text(&["gateway", "listen"]), None);
        assert_eq!(layers.duration(&["worker", "drain"], Duration::ZERO..=Duration::MAX), None);
        let mistakes = layers.finish(&["gateway.listen".into(), "worker.drain".into()]);
        let texts: Vec<_> = mistakes.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "gateway.listen (f.toml): must be text, in quotes",
                "worker.drain (f.toml): a duration reads 500ms, 30s, 5m, 12h or 30d",
                "gateway.listne (f.toml): there is no such setting; did you mean gateway.listen?",
            ]
        );
    }
}
