//! What both stores share of their schemas' history: its steps are theirs, its rules are one.

use std::borrow::Cow;

use sqlx::{
    SqlSafeStr as _,
    migrate::{self, Migration, MigrationType, Migrator},
};

use super::MigrateError;

/// A step of a schema: its number, its name and its statements.
pub(super) type Step = (i64, &'static str, &'static str);

/// The table in which the steps that were taken stand.
const TABLE: &str = "schema_steps";

/// Takes steps, each once and in its own transaction.
pub(super) fn migrator(steps: &[Step]) -> Migrator {
    let step = |&(version, name, sql): &Step| {
        Migration::new(version, Cow::Borrowed(name), MigrationType::Simple, sql.into_sql_str(), false)
    };
    let mut migrator = Migrator::with_migrations(steps.iter().map(step).collect());
    migrator.dangerous_set_table_name(TABLE);
    // A newer build's steps are judged below, with a better sentence.
    migrator.set_ignore_missing(true);
    migrator
}

/// The names of the steps beyond a version.
pub(super) fn names_after(steps: &[Step], version: i64) -> Vec<String> {
    let name = |(version, name, _): &Step| format!("{version:04}_{name}");
    steps.iter().filter(|step| step.0 > version).map(name).collect()
}

/// Whether the version that stands is the one that this build needs.
pub(super) fn check(steps: &[Step], found: i64) -> Result<(), MigrateError> {
    let needed = steps.last().map_or(0, |step| step.0);
    match found.cmp(&needed) {
        std::cmp::Ordering::Less => Err(MigrateError::Older { found, needed }),
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => Err(MigrateError::Newer { found, needed }),
    }
}

/// What a failure to take steps means.
pub(super) fn failed(error: migrate::MigrateError) -> MigrateError {
    match error {
        migrate::MigrateError::VersionMismatch(version) => MigrateError::Differs(version),
        error => MigrateError::Failed(error.into()),
    }
}
