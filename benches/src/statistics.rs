//! What many runs come to.

use serde::Serialize;

/// A row of numbers, summed up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// How many.
    pub count: usize,
    /// The smallest.
    pub min: f64,
    /// A quarter is not larger.
    pub p25: f64,
    /// Half are not larger.
    pub median: f64,
    /// Three quarters are not larger.
    pub p75: f64,
    /// The largest.
    pub max: f64,
}

impl Summary {
    /// Sums up numbers; `None` when there are none.
    #[must_use]
    pub fn of(numbers: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut numbers: Vec<_> = numbers.into_iter().collect();
        numbers.sort_by(f64::total_cmp);
        let (min, max) = (*numbers.first()?, *numbers.last()?);
        let at = |share| quantile(&numbers, share);
        Some(Self { count: numbers.len(), min, p25: at(0.25), median: at(0.5), p75: at(0.75), max })
    }
}

/// A quantile of sorted numbers, which must not be none: between two of them in proportion (Hyndman and Fan's type 7,
/// what R and NumPy take by default).
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let rank = share * (sorted.len() - 1) as f64;
    let below = rank.floor();
    let (low, high) = (sorted[below as usize], sorted[rank.ceil() as usize]);
    low + (high - low) * (rank - below)
}

/// An interval that holds the median of what numbers are drawn from.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// Its lower end.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

/// The interval that holds the median with a probability of at least `confidence`, whatever the distribution: between
/// the k-th smallest and the k-th largest number, where k is the largest for which that many numbers fall on one
/// side of the median with a probability small enough, by the binomial distribution (David and Nagaraja, Order
/// Statistics, 7.1). `None` when there are too few numbers: 95 % take six.
#[must_use]
pub fn median_interval(numbers: impl IntoIterator<Item = f64>, confidence: f64) -> Option<Interval> {
    let mut numbers: Vec<_> = numbers.into_iter().collect();
    numbers.sort_by(f64::total_cmp);
    let count = numbers.len();
    // P(exactly `below` of them are under the median), from 0 on; as logarithms a thousand runs don't underflow.
    let (mut log, mut beyond, mut k) = (-(count as f64) * std::f64::consts::LN_2, 0.0, 0);
    for below in 0..count {
        beyond += log.exp();
        // As likely on the other side.
        if 2.0 * beyond > 1.0 - confidence {
            break;
        }
        k = below + 1;
        log += ((count - below) as f64 / (below + 1) as f64).ln();
    }
    (k > 0).then(|| Interval { low: numbers[k - 1], high: numbers[count - k] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_few_and_of_many() {
        assert_eq!(Summary::of([]), None);
        let one = Summary::of([7.0]).unwrap();
        assert_eq!((one.count, one.min, one.median, one.p75, one.max), (1, 7.0, 7.0, 7.0, 7.0));
        let four = Summary::of([4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!((four.min, four.p25, four.median, four.p75, four.max), (1.0, 1.75, 2.5, 3.25, 4.0));
    }

    /// Ranks as tables of the sign test have them.
    #[test]
    fn the_interval_of_the_median_lies_between_the_ranks_of_tables() {
        let of = |count: u32| {
            let interval = median_interval((1..=count).rev().map(f64::from), 0.95);
            interval.map(|interval| (interval.low, interval.high))
        };
        assert_eq!([of(0), of(1), of(5)], [None; 3]);
        assert_eq!(of(6), Some((1.0, 6.0)));
        assert_eq!(of(9), Some((2.0, 8.0)));
        assert_eq!(of(20), Some((6.0, 15.0)));
        assert_eq!(of(30), Some((10.0, 21.0)));
        let (low, high) = of(3000).unwrap();
        assert!((1440.0..1450.0).contains(&low) && (low + high - 3001.0).abs() < 1e-9, "{low} {high}");
    }
}
