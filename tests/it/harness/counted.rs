//! What a process counts, and waiting for it.

use std::time::{Duration, Instant};

use super::{http::Http, process::Up, scale::sized, wait::until};

/// How long there may be no progress.
const STUCK: Duration = Duration::from_mins(1);

/// What is counted: a name, and those of its labels that matter.
pub(crate) type Metric<'a> = (&'a str, &'a [(&'a str, &'a str)]);

/// Probes that succeeded.
pub(crate) const ENDED: Metric<'_> = ("warren_jobs_finished_total", &[("kind", "warren.probe"), ("outcome", "ok")]);

/// Probes that run now.
const RUNNING: Metric<'_> = ("warren_inflight", &[("kind", "warren.probe")]);

/// The sum of everything that is counted under this name with these labels.
pub(crate) async fn counted(up: &Up, (name, labels): Metric<'_>) -> u64 {
    let text = Http::to(&up.admin).get("/metrics").send().await.unwrap().text().await.unwrap();
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let (found, value) = rest.rsplit_once(' ')?;
        let is_meant = found.is_empty() || found.starts_with('{');
        let has = |(label, value): &(&str, &str)| found.contains(&format!("{label}=\"{value}\""));
        (is_meant && labels.iter().all(has)).then(|| value.parse::<u64>().expect("a count"))
    });
    values.sum()
}

/// Waits until so many are counted, for as long as there is progress, and looks at something all the while.
pub(crate) async fn until_counted(up: &Up, metric: Metric<'_>, wanted: u64, mut look: impl AsyncFnMut(u64)) {
    let mut last = (0, Instant::now());
    loop {
        let count = counted(up, metric).await;
        if count >= wanted {
            return;
        }
        if count > last.0 {
            last = (count, Instant::now());
        }
        assert!(last.1.elapsed() < STUCK, "{metric:?} has been {count} of {wanted} for {STUCK:?}");
        look(count).await;
        // To render all that a process counts is work for it: where it is measured, that is asked for seldom.
        tokio::time::sleep(Duration::from_millis(sized(20, 2000))).await;
    }
}

/// Waits until a probe runs in a process.
pub(crate) async fn until_a_probe_runs(up: &Up) {
    until("a probe runs", async || (counted(up, RUNNING).await > 0).then_some(())).await;
}
