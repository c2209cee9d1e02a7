//! What was asked for, on standard output: tables for people, JSON for programs.

use comfy_table::{ContentArrangement, Table, presets};
use jiff::Timestamp;
use serde::Serialize;

use super::Output;
use crate::gateway::status::JobView;

/// Prints JSON, or whatever else is there for people.
pub(super) fn print<T: Serialize>(output: Output, value: &T, for_people: impl FnOnce() -> String) {
    match output {
        // Text, numbers and lists of them: it cannot fail.
        Output::Json => println!("{}", serde_json::to_string_pretty(value).unwrap_or_default()),
        Output::Table => println!("{}", clean(&for_people())),
    }
}

/// Prints one of many: a line of JSON, or a line for people.
pub(super) fn line<T: Serialize>(output: Output, value: &T, for_people: impl FnOnce() -> String) {
    match output {
        Output::Json => println!("{}", serde_json::to_string(value).unwrap_or_default()),
        Output::Table => println!("{}", clean(&for_people())),
    }
}

/// A job that has ended, on one line.
pub(super) fn ended(job: &JobView) -> String {
    let kind = job.kind.as_deref().unwrap_or("-");
    let why = job.reason.as_deref().map_or(String::new(), |reason| format!("  {reason}"));
    format!("{}  {}  {kind}  {}{why}", instant(job.finished_at), job.id, job.state)
}

/// A table without lines.
pub(super) fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(head);
    for row in rows {
        table.add_row(row);
    }
    table.trim_fmt()
}

/// Bodies and errors are from anyone: what could steer a terminal is shown as what it is.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' || is_direction(c) { '\u{fffd}' } else { c }).collect()
}

/// Characters that change the order in which text is shown.
fn is_direction(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// An instant to the second.
pub(super) fn instant(at: Option<Timestamp>) -> String {
    at.map_or_else(|| "-".into(), |at| at.strftime("%Y-%m-%d %H:%M:%SZ").to_string())
}

/// The first line of a text, cut.
pub(super) fn brief(text: Option<&str>) -> String {
    let line = text.and_then(|text| text.lines().next()).unwrap_or("-");
    if line.chars().count() > 80 { line.chars().take(79).chain(['…']).collect() } else { line.to_owned() }
}

/// Jobs as a table.
pub(super) fn jobs(jobs: &[JobView]) -> String {
    let rows = jobs.iter().map(|job| {
        vec![
            job.id.to_string(),
            job.kind.clone().unwrap_or_else(|| "-".into()),
            job.state.to_string(),
            job.failed_attempts.map_or_else(|| "-".into(), |failed| failed.to_string()),
            instant(job.created_at),
            instant(job.due_at.or(job.finished_at)),
            job.reason.clone().unwrap_or_else(|| "-".into()),
            brief(job.error.as_deref()),
        ]
    });
    table(&["ID", "KIND", "STATE", "FAILED", "CREATED", "DUE/DONE", "REASON", "ERROR"], rows)
}

/// One job, told whole.
pub(super) fn job(job: &JobView) -> String {
    let mut lines = vec![format!("job       {}", job.id)];
    let mut line = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            lines.push(format!("{name:<9} {value}"));
        }
    };
    line("kind", job.kind.clone());
    let waiting = if job.recorded { "" } else { " (waits in the broker; nothing is recorded of it yet)" };
    line("state", Some(format!("{}{waiting}", job.state)));
    line("created", job.created_at.map(|at| at.to_string()));
    line("due", job.due_at.map(|at| at.to_string()));
    line("finished", job.finished_at.map(|at| at.to_string()));
    line("source", job.source.clone());
    line("parent", job.parent.map(|parent| parent.to_string()));
    line("run", job.run.map(|run| run.to_string()));
    line("reason", job.reason.clone());
    line("error", job.error.clone());
    let json = |value: &serde_json::Value| serde_json::to_string_pretty(value).unwrap_or_default();
    line("body", job.body.as_ref().map(json));
    line(
        "bytes",
        job.body_base64
            .as_ref()
            .and_then(|bytes| serde_json::to_value(bytes).ok())
            .map(|text| format!("{} (base64: no body that can be read)", text.as_str().unwrap_or_default())),
    );
    line("output", job.output.as_ref().map(json));
    let conflicts = job.idempotency_conflicts;
    line("conflicts", (conflicts > 0).then(|| format!("sent {conflicts} times more under its key with another body")));
    if !job.attempts.is_empty() {
        lines.push("failed attempts".into());
        let rows = job.attempts.iter().map(|attempt| {
            vec![attempt.attempt.to_string(), instant(attempt.failed_at), attempt.code.clone(), attempt.error.clone()]
        });
        lines.push(table(&["  #", "FAILED", "CODE", "ERROR"], rows));
    }
    lines.join("\n")
}
