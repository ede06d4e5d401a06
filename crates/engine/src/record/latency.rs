use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A histogram of times whose buckets double: bucket `i` counts times of at most 2^i µs, and more than the
/// bucket before it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LatencyHistogram {
    /// Times counted in each bucket; as many buckets as are needed.
    pub buckets: Vec<u64>,
    /// The longest time, in µs.
    pub max_us: u64,
    /// All times together, in µs.
    pub sum_us: u64,
}

impl LatencyHistogram {
    /// Counts a time.
    pub fn add(&mut self, time: Duration) {
        let us = time.as_nanos().div_ceil(1000) as u64;
        let bucket = (u64::BITS - us.saturating_sub(1).leading_zeros()) as usize;
        if self.buckets.len() <= bucket {
            self.buckets.resize(bucket + 1, 0);
        }
        self.buckets[bucket] += 1;
        self.max_us = self.max_us.max(us);
        self.sum_us = self.sum_us.saturating_add(us);
    }

    /// Times counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// A time in µs that this share (0 to 1) of all times does not exceed, at most twice the true quantile;
    /// `None` when nothing was counted.
    #[must_use]
    pub fn quantile_us(&self, share: f64) -> Option<u64> {
        let rank = ((self.count() as f64 * share).ceil() as u64).max(1);
        let mut below = 0;
        self.buckets.iter().enumerate().find_map(|(bucket, times)| {
            below += times;
            (below >= rank).then(|| (1u64 << bucket).min(self.max_us))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_upper_bounds_within_a_factor_of_two() {
        let mut histogram = LatencyHistogram::default();
        assert_eq!(histogram.quantile_us(0.5), None);
        (1..=1000).for_each(|us| histogram.add(Duration::from_micros(us)));
        assert_eq!(histogram.count(), 1000);
        for (share, exact) in [(0.5, 500), (0.9, 900), (0.99, 990), (0.999, 999), (1.0, 1000)] {
            let bound = histogram.quantile_us(share).unwrap();
            assert!(bound >= exact && bound < exact * 2, "{share}: {bound}");
        }
        assert_eq!(histogram.quantile_us(1.0), Some(1000), "never above the longest");
        histogram.add(Duration::ZERO);
        histogram.add(Duration::from_nanos(1));
        assert_eq!(histogram.buckets[0], 3, "1 µs and less");
    }
}
