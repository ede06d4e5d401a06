//! The test of Mann and Whitney: whether one row of numbers tends to be larger than another, told from their ranks
//! alone.
//!
//! H. B. Mann, D. R. Whitney, "On a test of whether one of two random variables is stochastically larger than the
//! other", Annals of Mathematical Statistics 18 (1947). The distribution is counted, not approximated: that is right for
//! a handful of numbers, where a normal distribution is not, and with equal numbers, which get the mean of their ranks.

/// The middle number, or the mean of the middle two. NaN when there is none.
pub fn median(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    match sorted.len() % 2 {
        _ if sorted.is_empty() => f64::NAN,
        0 => (sorted[half - 1] + sorted[half]) / 2.0,
        _ => sorted[half],
    }
}

/// If both rows came from one distribution, how probable it is that `a` ranks as high above `b` as it does, or higher.
pub fn p_larger(a: &[f64], b: &[f64]) -> f64 {
    let ranks = doubled_ranks(&[a, b].concat());
    let observed: usize = ranks[..a.len()].iter().sum();
    // ways[k][s]: in how many ways k of the numbers have ranks that sum up to s. Each is as probable as any other.
    let most: usize = ranks.iter().sum();
    let mut ways = vec![vec![0.0; most + 1]; a.len() + 1];
    ways[0][0] = 1.0;
    for rank in ranks {
        // From above, so that no number is taken twice.
        for taken in (0..a.len()).rev() {
            for sum in 0..=most - rank {
                ways[taken + 1][sum + rank] += ways[taken][sum];
            }
        }
    }
    let of_all = &ways[a.len()];
    of_all[observed..].iter().sum::<f64>() / of_all.iter().sum::<f64>()
}

/// If both rows came from one distribution, how probable it is that their ranks are as far apart as they are, or
/// farther, whichever is the larger one.
pub fn p_different(a: &[f64], b: &[f64]) -> f64 {
    (2.0 * p_larger(a, b).min(p_larger(b, a))).min(1.0)
}

/// Twice the rank of each number from 1 on; twice, so that the mean of equal numbers' ranks is whole, too.
fn doubled_ranks(numbers: &[f64]) -> Vec<usize> {
    let rank = |number: &f64| {
        let below = numbers.iter().filter(|other| *other < number).count();
        let equal = numbers.iter().filter(|other| *other == number).count();
        2 * below + equal + 1
    };
    numbers.iter().map(rank).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of 5 and 5 without equal numbers; the n-th number of the first is above `u[n]` of the second.
    fn rows(u: [usize; 5]) -> (Vec<f64>, [f64; 5]) {
        let first = (0..).zip(u).map(|(n, below)| below as f64 - 0.5 + f64::from(n) / 10.0);
        (first.collect(), [0.0, 1.0, 2.0, 3.0, 4.0])
    }

    #[test]
    fn the_table_of_mann_and_whitney() {
        // Their table for n = m = 5: the probability of a U that is not larger.
        for (u, p) in [
            ([0, 0, 0, 0, 0], 0.004),
            ([0, 0, 0, 0, 1], 0.008),
            ([0, 0, 0, 1, 1], 0.016),
            ([0, 0, 0, 0, 3], 0.028),
            ([0, 1, 1, 1, 1], 0.048),
            ([0, 0, 0, 0, 5], 0.075),
            ([1, 1, 1, 1, 2], 0.111),
        ] {
            let (a, b) = rows(u);
            assert!((p_larger(&b, &a) - p).abs() < 0.0005, "U = {}", u.iter().sum::<usize>());
        }
    }

    #[test]
    fn hollander_and_wolfes_example() {
        // Permeability of membranes, M. Hollander, D. A. Wolfe, Nonparametric Statistical Methods (1973), p. 69: W = 35,
        // p = 0.1272 one-sided and 0.2544 two-sided. R has the same in the examples of wilcox.test.
        let term = [0.80, 0.83, 1.89, 1.04, 1.45, 1.38, 1.91, 1.64, 0.73, 1.46];
        let early = [1.15, 0.88, 0.90, 0.74, 1.21];
        assert!((p_larger(&term, &early) - 0.1272).abs() < 0.00005);
        assert!((p_different(&term, &early) - 0.2544).abs() < 0.0001);
        assert!((p_different(&early, &term) - 0.2544).abs() < 0.0001);
    }

    #[test]
    fn equal_numbers_are_counted_by_hand() {
        // Of the six ways to take two of 1, 2, 2, 3 as the first row, three sum up to as much as 2 and 3, or more: ranks
        // 2.5 + 4 twice; 1 + 4, 2.5 + 2.5 and 1 + 2.5 twice are less.
        assert!((p_larger(&[2.0, 3.0], &[1.0, 2.0]) - 2.0 / 6.0).abs() < 1e-12);
        assert_eq!(p_different(&[1.0; 6], &[1.0; 6]), 1.0);
        assert_eq!(p_larger(&[], &[]), 1.0);
    }

    #[test]
    fn five_rounds_are_the_fewest_that_can_be_certain() {
        let row =
            |rounds: u32, above: f64| (0..rounds).map(|round| above + f64::from(round)).collect::<Vec<_>>();
        // One of C(10, 5) and of C(8, 4) ways.
        assert!((p_larger(&row(5, 100.0), &row(5, 0.0)) - 1.0 / 252.0).abs() < 1e-12);
        assert!((p_larger(&row(4, 100.0), &row(4, 0.0)) - 1.0 / 70.0).abs() < 1e-12);
        // The numbers of ways go up to 1e29.
        let p = p_different(&row(50, 0.5), &row(50, 0.0));
        assert!((0.5..1.0).contains(&p), "{p}");
    }

    #[test]
    fn the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), 2.5);
        assert!(median(&[]).is_nan());
    }
}
