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
}
