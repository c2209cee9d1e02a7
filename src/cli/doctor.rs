//! `warren doctor`

use super::{Ask, Failure, output};
use crate::app::{self, Grade};

/// Looks the installation over, and fails if something does not work.
pub(super) async fn run(ask: Ask) -> Result<(), Failure> {
    let config = ask.config()?;
    let kinds = ask.registry(&config)?.kinds();
    let findings = app::doctor(&config, &kinds).await;
    output::print(ask.output, &findings, || {
        let lines = findings.iter().map(|finding| {
            let mark = match finding.grade {
                Grade::Ok => "ok      ",
                Grade::Warning => "warning ",
                Grade::Problem => "PROBLEM ",
            };
            let fix = finding.fix.as_ref().map_or(String::new(), |fix| format!("\n           fix: {fix}"));
            format!("{mark} {}: {}{fix}", finding.part, finding.found)
        });
        lines.collect::<Vec<_>>().join("\n")
    });
    match findings.iter().filter(|finding| finding.grade == Grade::Problem).count() {
        0 => Ok(()),
        problems => Err(Failure::Failed(format!("{problems} problems were found"))),
    }
}
