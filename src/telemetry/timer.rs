//! A histogram for hot paths: two additions a record, and the exporter's own books only a few times a second.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use metrics::Histogram;

use super::BUCKETS;

/// Collects durations by the exporter's own buckets and hands them on in bulk. What is handed on lies in the buckets in
/// which it was recorded, and its sum is exact.
#[derive(Debug)]
pub struct Timer {
    histogram: Histogram,
    buckets: [Bucket; BUCKETS.len() + 1],
}

#[derive(Debug, Default)]
struct Bucket {
    count: AtomicU64,
    micros: AtomicU64,
}

impl Timer {
    /// Before this histogram.
    pub fn new(histogram: Histogram) -> Self {
        Self { histogram, buckets: Default::default() }
    }

    /// Takes one in.
    pub fn record(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = &self.buckets[BUCKETS.partition_point(|bound| *bound < seconds)];
        bucket.count.fetch_add(1, Relaxed);
        bucket.micros.fetch_add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    /// Hands on what was taken in.
    pub fn flush(&self) {
        for (place, bucket) in self.buckets.iter().enumerate() {
            let count = bucket.count.swap(0, Relaxed);
            if count == 0 {
                continue;
            }
            #[expect(clippy::cast_precision_loss, reason = "a mean for a histogram")]
            let mean = bucket.micros.swap(0, Relaxed) as f64 / count as f64 / 1e6;
            // One that is being recorded has counted and not yet added: its bucket is right all the same.
            let least = if place == 0 { 0.0 } else { BUCKETS[place - 1].next_up() };
            let most = BUCKETS.get(place).copied().unwrap_or(f64::MAX);
            self.histogram.record_many(mean.clamp(least, most), usize::try_from(count).unwrap_or(usize::MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use metrics::HistogramFn;

    use super::*;

    #[derive(Default)]
    struct Seen(Mutex<Vec<(f64, usize)>>);

    impl HistogramFn for Seen {
        fn record(&self, value: f64) {
            self.record_many(value, 1);
        }

        fn record_many(&self, value: f64, count: usize) {
            self.0.lock().expect("no panic").push((value, count));
        }
    }

    #[test]
    fn what_is_handed_on_lies_in_its_bucket_and_its_sum_is_exact() {
        let seen = Arc::<Seen>::default();
        let timer = Timer::new(Histogram::from_arc(seen.clone()));
        for micros in [0, 400, 1000, 1001, 2000, 900_000_000] {
            timer.record(Duration::from_micros(micros));
        }
        timer.flush();
        timer.flush();
        // A bound is in its bucket: 1 ms is the first, and anything beyond 300 s the last.
        let handed_on: Vec<_> = seen.0.lock().expect("no panic").drain(..).collect();
        assert_eq!(handed_on.iter().map(|(_, count)| *count).collect::<Vec<_>>(), [3, 2, 1]);
        let sum: f64 =
            handed_on.iter().map(|(value, count)| value * f64::from(u32::try_from(*count).expect("few"))).sum();
        assert!((sum - 900.004_401).abs() < 1e-9, "{sum}");
        assert!(handed_on[0].0 <= 0.001 && handed_on[1].0 > 0.001 && handed_on[1].0 <= 0.0025, "{handed_on:?}");
    }
}
