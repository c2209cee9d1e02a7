//! What was measured, for people and for programs.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::Serialize;

/// What was measured.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) mode: &'static str,
    /// What the engine does before it says that something is durable.
    pub(super) durability: String,
    pub(super) jobs: u64,
    pub(super) seconds: f64,
    pub(super) jobs_a_second: f64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) refused: u64,
    /// Milliseconds, by what they are measured from and to.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) latencies_ms: BTreeMap<&'static str, Percentiles>,
    /// Microseconds of CPU for each job, by process.
    pub(super) cpu_us_a_job: BTreeMap<String, f64>,
    /// The most resident memory that was held, by process.
    pub(super) peak_memory_mib: BTreeMap<String, u64>,
}

/// How latencies are spread.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Percentiles {
    p50: f64,
    p90: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Percentiles {
    /// Of at least one.
    pub(super) fn of(mut all: Vec<Duration>) -> Option<Self> {
        all.sort_unstable();
        let last = all.len().checked_sub(1)?;
        // Per mille.
        let at = |rank: usize| all[(last * rank).div_ceil(1000)].as_secs_f64() * 1e3;
        Some(Self { p50: at(500), p90: at(900), p99: at(990), p999: at(999), max: at(1000) })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {:.0} jobs/s ({} jobs in {:.2} s)", self.mode, self.jobs_a_second, self.jobs, self.seconds)?;
        writeln!(f, "  {}", self.durability)?;
        if self.refused > 0 {
            writeln!(f, "  {} requests were refused", self.refused)?;
        }
        for (what, Percentiles { p50, p90, p99, p999, max }) in &self.latencies_ms {
            writeln!(f, "  {what:<20} p50 {p50:.2}  p90 {p90:.2}  p99 {p99:.2}  p99.9 {p999:.2}  max {max:.2} ms")?;
        }
        for (process, cpu) in &self.cpu_us_a_job {
            let memory = self.peak_memory_mib.get(process).map_or(String::new(), |mib| format!(", {mib} MiB"));
            writeln!(f, "  {process:<20} {cpu:.1} us of CPU a job{memory}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_the_value_that_so_many_do_not_exceed() {
        let hundred = Percentiles::of((1..=100).map(Duration::from_millis).collect()).expect("some");
        assert!((hundred.p50 - 51.0).abs() < 1.01 && (hundred.p99 - 100.0).abs() < 1.01, "{hundred:?}");
        assert!((hundred.max - 100.0).abs() < 1e-9);
        assert!(Percentiles::of(Vec::new()).is_none());
    }
}
