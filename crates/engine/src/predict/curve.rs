use std::time::Duration;

/// How many distinct pages a guest writes in a time.
///
/// A guest that writes at `rate` (λ pages a second) anywhere in a set of `limit` (W) pages has written
///
/// > pages(t) = W · (1 − e^(−λt ÷ W))
///
/// of them after a time t: the expected number of occupied cells when λt balls fall into W cells (the classical
/// occupancy problem, Feller, vol. 1, ch. IV.2, in its limit for large W). At first it rises as λt, and it never
/// exceeds the writable working set W (Clark et al. 2005, §4.1). A guest that writes in sequence stays above it,
/// by 1 ÷ (1 − 1/e) = 1.6 times at most.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct WriteCurve {
    rate: f64,
    limit: f64,
}

/// More pages than any guest has; keeps every product finite.
const PAGES_MAX: f64 = (1u64 << 52) as f64;

impl WriteCurve {
    /// A guest that writes `rate` pages a second among `limit` pages. What is no number counts as 0.
    #[must_use]
    pub fn new(rate: f64, limit: f64) -> Self {
        Self { rate: bounded(rate), limit: bounded(limit) }
    }

    /// Pages a second that are written at first, when hardly any is written twice.
    #[must_use]
    pub const fn rate(&self) -> f64 {
        self.rate
    }

    /// The writable working set in pages.
    #[must_use]
    pub const fn limit(&self) -> f64 {
        self.limit
    }

    /// Distinct pages written in `seconds`.
    #[must_use]
    pub fn pages_in(&self, seconds: f64) -> f64 {
        if self.rate <= 0.0 || self.limit <= 0.0 {
            return 0.0;
        }
        let share = -(-self.rate * seconds.max(0.0) / self.limit).exp_m1();
        (self.limit * share).clamp(0.0, self.limit)
    }
}

fn bounded(pages: f64) -> f64 {
    if pages.is_nan() { 0.0 } else { pages.clamp(0.0, PAGES_MAX) }
}

/// What a harvest found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WriteSample {
    /// Since the harvest before.
    pub window: Duration,
    /// Distinct pages written in it.
    pub pages: u64,
}

/// A [`WriteCurve`] through the latest harvests, and how far it is to be trusted.
#[derive(Clone, Debug, Default)]
pub struct WriteFit {
    samples: Vec<WriteSample>,
    pages: u64,
}

/// Samples kept; older ones weigh next to nothing.
const SAMPLES: usize = 8;
/// Weight of a sample relative to the next newer one: a moving average with α = 0.4, as `KubeVirt`'s stall
/// detection uses (VEP 248).
const AGING: f64 = 0.6;
/// Working sets tried between the largest harvest and all of RAM, in equal ratios: with 64 of them neighbours
/// are 24 % apart when RAM is a million times the largest harvest, and closer in practice.
const STEPS: u32 = 64;
/// A harvest that fills the working set beyond this share says no more about the rate.
const FULL: f64 = 0.999;

impl WriteFit {
    /// A fit without samples for a guest of `pages` pages.
    #[must_use]
    pub const fn new(pages: u64) -> Self {
        Self { samples: Vec::new(), pages }
    }

    /// Takes in a harvest; one without duration says nothing.
    pub fn add(&mut self, sample: WriteSample) {
        if sample.window.is_zero() {
            return;
        }
        if self.samples.len() == SAMPLES {
            self.samples.remove(0);
        }
        self.samples.push(sample);
    }

    /// Harvests that the curve rests on.
    #[must_use]
    pub fn samples(&self) -> u32 {
        self.samples.len() as u32
    }

    /// The curve with the least squared error of logarithms (so that a factor counts alike in short and in long
    /// windows), and its confidence.
    ///
    /// One window can't tell a small working set from a slow guest: of curves that fit equally the one with the
    /// largest working set is taken. Then a following round, which is shorter, is expected to find fewer pages,
    /// and finding as many tells.
    ///
    /// The confidence, from 0 to 1, is (1 − 2^−n) · e^(−ε): n is the number of samples, each of which halves what
    /// is unknown, and ε the root mean square of the logarithms' errors, so that e^ε is the factor by which the
    /// curve typically misses (the geometric standard deviation, Kirkwood 1979). The product is ours: an ordering,
    /// not a probability.
    #[must_use]
    pub fn curve(&self) -> (WriteCurve, f64) {
        let most = self.samples.iter().map(|sample| sample.pages).max().unwrap_or(0) as f64;
        if most == 0.0 {
            return (WriteCurve::default(), self.known());
        }
        let largest = (self.pages as f64).max(most);
        // From all of RAM downwards: a smaller working set must fit better.
        let (curve, error) = (0..=STEPS)
            .map(|step| largest * (most / largest).powf(f64::from(step) / f64::from(STEPS)))
            .map(|limit| self.with_limit(limit))
            .reduce(|best, next| if next.1 < best.1 - 1e-9 { next } else { best })
            .unwrap_or_default();
        (curve, self.known() * (-error.sqrt()).exp())
    }

    fn known(&self) -> f64 {
        1.0 - 0.5f64.powi(self.samples.len() as i32)
    }

    /// The samples, each with its seconds, pages and weight. Half a page stands for none, which has no logarithm.
    fn weighted(&self) -> impl Iterator<Item = (f64, f64, f64)> {
        let weights = (0i32..).map(|age| AGING.powi(age));
        let samples = self.samples.iter().rev();
        samples.zip(weights).map(|(s, weight)| (s.window.as_secs_f64(), (s.pages as f64).max(0.5), weight))
    }

    /// The curve with this working set whose rate is the geometric mean of those that each sample implies, and
    /// its mean squared error of logarithms.
    fn with_limit(&self, limit: f64) -> (WriteCurve, f64) {
        let total: f64 = self.weighted().map(|(_, _, weight)| weight).sum();
        let log_rate = |(seconds, pages, weight): (f64, f64, f64)| {
            weight * (-(limit / seconds) * (-(pages / limit).min(FULL)).ln_1p()).ln()
        };
        let rate = (self.weighted().map(log_rate).sum::<f64>() / total).exp();
        let curve = WriteCurve::new(rate, limit);
        let error = |(seconds, pages, weight): (f64, f64, f64)| {
            weight * (curve.pages_in(seconds).max(0.5) / pages).ln().powi(2)
        };
        (curve, self.weighted().map(error).sum::<f64>() / total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fit(pages: u64, truth: WriteCurve, windows: &[f64]) -> WriteFit {
        let mut fit = WriteFit::new(pages);
        for &seconds in windows {
            let pages = truth.pages_in(seconds).round() as u64;
            fit.add(WriteSample { window: Duration::from_secs_f64(seconds), pages });
        }
        fit
    }

    #[test]
    fn the_curve_rises_with_the_rate_and_ends_at_the_working_set() {
        let curve = WriteCurve::new(1000.0, 500.0);
        assert!((curve.pages_in(0.001) - 1.0).abs() < 0.01);
        assert!((curve.pages_in(0.5) - 500.0 * (1.0 - (-1.0f64).exp())).abs() < 1e-9);
        assert_eq!((curve.pages_in(1e9), curve.pages_in(f64::INFINITY)), (500.0, 500.0));
        assert_eq!((curve.pages_in(f64::NAN), curve.pages_in(-1.0)), (0.0, 0.0));
    }

    #[test]
    fn a_fit_finds_rate_and_working_set_again() {
        let truth = WriteCurve::new(20_000.0, 5_000.0);
        let (curve, confidence) = fit(1 << 20, truth, &[2.0, 0.2, 0.05]).curve();
        for seconds in [0.01, 0.1, 0.5, 3.0] {
            let (is, should) = (curve.pages_in(seconds), truth.pages_in(seconds));
            assert!((is / should - 1.0).abs() < 0.15, "{seconds} s: {is} instead of {should}");
        }
        assert!(confidence > 0.8, "{confidence}");
    }

    #[test]
    fn one_sample_is_extrapolated_in_a_line_and_trusted_little() {
        let (curve, confidence) = fit(1 << 20, WriteCurve::new(1000.0, 1e6), &[1.0]).curve();
        assert_eq!(curve.limit(), f64::from(1 << 20));
        assert!((curve.pages_in(0.1) - 100.0).abs() < 1.0);
        assert!((confidence - 0.5).abs() < 1e-3);
        assert_eq!(WriteFit::new(100).curve(), (WriteCurve::default(), 0.0));
    }

    #[test]
    fn samples_that_contradict_each_other_lower_the_confidence() {
        let steady = fit(1 << 20, WriteCurve::new(1000.0, 1e6), &[1.0, 1.0, 1.0, 1.0]);
        let mut bursty = WriteFit::new(1 << 20);
        for pages in [10, 10_000, 10, 10_000] {
            bursty.add(WriteSample { window: Duration::from_secs(1), pages });
        }
        assert!(bursty.curve().1 < steady.curve().1 / 4.0);
    }
}
