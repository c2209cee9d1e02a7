//! What a process counts, and waiting for it.

use std::time::{Duration, Instant};

use super::{http::Http, process::Up, scale::sized};

/// How long there may be no progress.
const STUCK: Duration = Duration::from_mins(1);

/// The sum of everything that is counted under this name, or this name and these labels.
pub(crate) async fn counted(up: &Up, name: &str) -> u64 {
    let text = Http::to(&up.admin).get("/metrics").send().await.unwrap().text().await.unwrap();
    let values = text.lines().filter_map(|line| line.strip_prefix(name)?.rsplit(' ').next()?.parse::<u64>().ok());
    values.sum()
}

/// Waits until so many are counted, for as long as there is progress, and looks at something all the while.
pub(crate) async fn until_counted(up: &Up, name: &str, wanted: u64, mut look: impl AsyncFnMut(u64)) {
    let mut last = (0, Instant::now());
    loop {
        let count = counted(up, name).await;
        if count >= wanted {
            return;
        }
        if count > last.0 {
            last = (count, Instant::now());
        }
        assert!(last.1.elapsed() < STUCK, "{name} has been {count} of {wanted} for {STUCK:?}");
        look(count).await;
        tokio::time::sleep(Duration::from_millis(sized(20, 2000))).await;
    }
}
