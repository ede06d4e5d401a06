use std::time::Duration;

use migrated_engine::{ThrottleCounts, ThrottleOrder};

/// A guest of one vCPU that keeps to its budget.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    order: Option<ThrottleOrder>,
    /// Pages that it may write now.
    allowance: f64,
    /// When it wrote last.
    then: Duration,
    slept: Duration,
    written: u64,
}

impl Throttle {
    pub(super) const fn set(&mut self, order: Option<ThrottleOrder>) {
        self.order = order;
    }

    pub(super) const fn is_on(&self) -> bool {
        self.order.is_some()
    }

    pub(super) fn counts(&self) -> ThrottleCounts {
        ThrottleCounts { vcpus: vec![(self.slept, self.written)], ..ThrottleCounts::default() }
    }

    /// How many of the pages that the guest would write at `now` it may write.
    pub(super) fn allow(&mut self, now: Duration, pages: u64) -> u64 {
        let elapsed = now.saturating_sub(std::mem::replace(&mut self.then, now));
        let Some(order) = self.order.filter(|_| pages > 0) else { return pages };
        self.allowance += order.pages_per_second as f64 * elapsed.as_secs_f64();
        // As much as it writes in the time that it must be left.
        let least = (pages as f64 * f64::from(100 - order.max_slowdown_percent) / 100.0).ceil() as u64;
        let allowed = (self.allowance as u64).clamp(least, pages);
        self.allowance = (self.allowance - allowed as f64).clamp(-1e3, pages as f64);
        self.slept += elapsed.mul_f64(1.0 - allowed as f64 / pages as f64);
        self.written += allowed;
        allowed
    }
}
