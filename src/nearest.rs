//! The names that someone may have meant.

/// How many are named.
const MOST: usize = 3;
/// How alike a name must be; 1 is the same.
const ALIKE: f64 = 0.7;
/// A name longer than this is no slip of the pen, and is not compared.
const LONGEST: usize = 200;

/// Those of the known names that are most like a name, the likeliest first.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    if name.len() > LONGEST {
        return Vec::new();
    }
    let mut near: Vec<_> = known
        .into_iter()
        .map(|known| (strsim::jaro_winkler(known, name), known))
        .filter(|(likeness, _)| *likeness > ALIKE)
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    near.into_iter().take(MOST).map(|(_, known)| known).collect()
}

/// The same as the end of a sentence: `; did you mean warren.probe?`, or nothing.
pub fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let near = nearest(name, known);
    if near.is_empty() { String::new() } else { format!("; did you mean {}?", near.join(" or ")) }
}

/// A name that is no name may be anything: short enough for a sentence, and without what a terminal would obey.
pub fn shorten(name: &str) -> String {
    name.chars().take(60).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_pen_is_understood_and_another_word_is_not() {
        let known = ["warren.probe", "webhook.deliver"];
        assert_eq!(did_you_mean("warren.prbe", known), "; did you mean warren.probe?");
        assert_eq!(did_you_mean("zzz", known), "");
        assert_eq!(nearest(&"warren.probe".repeat(1000), known), Vec::<&str>::new());
    }

    #[test]
    fn the_likeliest_comes_first() {
        assert_eq!(nearest("work_m", ["word", "work_ms", "fate"]), ["work_ms", "word"]);
    }
}
