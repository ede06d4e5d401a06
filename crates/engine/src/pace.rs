use std::time::Duration;

/// Keeps the payload of all channels at a bandwidth limit.
///
/// A token bucket that may hold [`BURST`] of credit and go into debt by one batch: short enough that a
/// shaper on the way sees no burst worth dropping, long enough that timers needn't be exact.
#[derive(Debug)]
pub(crate) struct Pace {
    /// What whoever asked for the migration allows, in bytes a second.
    allowed: Option<f64>,
    /// What the link takes without a queue.
    fit: Option<f64>,
    credit: f64,
    as_of: Duration,
}

const BURST: Duration = Duration::from_millis(5);
/// A wait below the clock's resolution would be no wait at all.
const SHORTEST_WAIT: Duration = Duration::from_micros(1);

impl Pace {
    pub(crate) fn new(bits_per_second: Option<u64>) -> Self {
        let bytes_per_second = bits_per_second.map(|bits| (bits.max(8) as f64) / 8.0);
        Self { allowed: bytes_per_second, fit: None, credit: 0.0, as_of: Duration::ZERO }
    }

    /// Bytes a second, if there is a limit.
    pub(crate) fn rate(&self) -> Option<f64> {
        match (self.allowed, self.fit) {
            (Some(allowed), Some(fit)) => Some(allowed.min(fit)),
            (allowed, fit) => allowed.or(fit),
        }
    }

    /// Goes no faster than this from now on, and never faster than allowed.
    pub(crate) fn limit_to(&mut self, now: Duration, fit: Option<f64>) {
        let was_limited = self.rate().is_some();
        self.fit = fit;
        if !was_limited {
            (self.credit, self.as_of) = (0.0, now);
        }
    }

    /// When the next batch may go, if not now.
    pub(crate) fn not_before(&mut self, now: Duration) -> Option<Duration> {
        let rate = self.rate()?;
        let elapsed = now.saturating_sub(self.as_of).as_secs_f64();
        self.as_of = self.as_of.max(now);
        self.credit = (self.credit + elapsed * rate).min(rate * BURST.as_secs_f64());
        let wait = Duration::from_secs_f64((-self.credit / rate).max(0.0));
        (self.credit < 0.0).then(|| now + wait.max(SHORTEST_WAIT))
    }

    /// Accounts for payload that was handed out.
    pub(crate) fn spend(&mut self, bytes: u64) {
        self.credit -= bytes as f64;
    }

    /// Takes back what was accounted for and not sent.
    pub(crate) fn refund(&mut self, bytes: u64) {
        self.credit += bytes as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limited_stream_takes_as_long_as_its_bytes_need() {
        let mut pace = Pace::new(Some(8_000_000));
        let mut now = Duration::ZERO;
        for _ in 0..100 {
            while let Some(at) = pace.not_before(now) {
                assert!(at > now, "a wait that does not end");
                now = at;
            }
            pace.spend(100_000);
        }
        // 10 MB at 1 MB/s, less the last batch's debt.
        assert!((9.8..10.1).contains(&now.as_secs_f64()), "{now:?}");
    }

    #[test]
    fn what_fits_the_link_never_exceeds_what_is_allowed() {
        let mut pace = Pace::new(Some(8_000_000));
        pace.limit_to(Duration::ZERO, Some(5e6));
        assert_eq!(pace.rate(), Some(1e6));
        pace.limit_to(Duration::ZERO, Some(5e5));
        pace.spend(500_000);
        assert_eq!(pace.not_before(Duration::ZERO), Some(Duration::from_secs(1)));
        pace.refund(500_000);
        assert_eq!(pace.not_before(Duration::ZERO), None);

        // What was sent without a limit is not owed when one comes.
        let mut pace = Pace::new(None);
        pace.spend(1 << 40);
        pace.limit_to(Duration::from_secs(1), Some(1e6));
        assert_eq!(pace.not_before(Duration::from_secs(1)), None);
    }

    #[test]
    fn no_limit_never_waits() {
        let mut pace = Pace::new(None);
        pace.spend(u64::MAX);
        assert_eq!(pace.not_before(Duration::ZERO), None);
    }
}
