//! How much may be asked for in a time: `100/s`, `6000/m`, `1000000/d`.

use std::{fmt, num::NonZeroU32, str::FromStr, time::Duration};

/// So many in a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many.
    pub count: NonZeroU32,
    /// In which time.
    pub per: Duration,
}

/// A rate, and how many may come at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Burst {
    /// How many in a time.
    pub rate: Rate,
    /// How many at once.
    pub burst: NonZeroU32,
}

/// A text that is no rate, or a burst that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadRate {
    /// It cannot be read.
    #[error("a rate reads 100/s, 6000/m, 100000/h or 1000000/d, and is at most 1000000/s")]
    Form,
    /// What comes at once would take too long to come back.
    #[error("a burst is at least 1, and what the rate brings in a month at most")]
    Burst,
}

const UNITS: [(&str, u64); 4] = [("s", 1), ("m", 60), ("h", 3600), ("d", 86_400)];
/// What a clock of nanoseconds can tell apart, with room to spare.
const SHORTEST: Duration = Duration::from_micros(1);
const MONTH: Duration = Duration::from_hours(24 * 31);

impl Rate {
    /// From one to the next, if they come evenly.
    pub fn interval(self) -> Duration {
        self.per / self.count.get()
    }
}

impl Burst {
    /// A rate and how many may come at once: if it is not said, as many as come in one unit of its time.
    pub fn new(rate: Rate, burst: Option<u32>) -> Result<Self, BadRate> {
        let burst = NonZeroU32::new(burst.unwrap_or_else(|| rate.count.get())).ok_or(BadRate::Burst)?;
        match rate.interval().checked_mul(burst.get()) {
            Some(refilled) if refilled <= MONTH => Ok(Self { rate, burst }),
            _ => Err(BadRate::Burst),
        }
    }
}

impl FromStr for Rate {
    type Err = BadRate;

    fn from_str(text: &str) -> Result<Self, BadRate> {
        let (count, unit) = text.split_once('/').ok_or(BadRate::Form)?;
        let count: NonZeroU32 = count.trim().parse().map_err(|_| BadRate::Form)?;
        let per = UNITS.iter().find(|(name, _)| *name == unit.trim()).ok_or(BadRate::Form)?;
        let rate = Self { count, per: Duration::from_secs(per.1) };
        if rate.interval() < SHORTEST { Err(BadRate::Form) } else { Ok(rate) }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS.iter().find(|(_, seconds)| *seconds == self.per.as_secs()).map_or("?", |(name, _)| name);
        write!(f, "{}/{unit}", self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_so_many_in_a_unit_of_time() {
        for (text, interval) in [("100/s", 10_000), ("60/m", 1_000_000), ("3600/h", 1_000_000), ("1/d", 86_400_000_000)]
        {
            let rate: Rate = text.parse().unwrap();
            assert_eq!((rate.to_string().as_str(), rate.interval()), (text, Duration::from_micros(interval)));
        }
        for bad in ["", "100", "0/s", "-1/s", "1.5/s", "100/w", "/s", "1000001/s", "99999999999/d"] {
            assert_eq!(bad.parse::<Rate>(), Err(BadRate::Form), "{bad}");
        }
        let rate: Rate = "10/s".parse().unwrap();
        assert_eq!(Burst::new(rate, None).unwrap().burst.get(), 10);
        assert_eq!(Burst::new(rate, Some(0)), Err(BadRate::Burst));
        assert_eq!(Burst::new("1/d".parse().unwrap(), Some(32)), Err(BadRate::Burst));
    }
}
