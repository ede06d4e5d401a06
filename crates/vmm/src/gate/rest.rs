use std::time::{Duration, Instant};

/// When a vCPU may run again, and how long it was kept from it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rest {
    until: Option<Instant>,
    /// Since when its thread has waited for `until`, and for nothing else.
    since: Option<Instant>,
    rested: Duration,
}

impl Rest {
    /// From now on the vCPU may not run before `until`.
    pub(super) const fn order(&mut self, until: Instant) {
        self.until = Some(until);
    }

    /// Whether the vCPU must not run.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// The vCPU's thread is about to wait: until when, if it must.
    pub(super) fn rest(&mut self, now: Instant) -> Option<Instant> {
        if !self.is_due(now) {
            self.end(now);
            return None;
        }
        self.since.get_or_insert(now);
        self.until
    }

    /// Something else keeps the vCPU from running: that is not the rest's time.
    pub(super) fn interrupt(&mut self, now: Instant) {
        self.rested = self.rested(now);
        self.since = None;
    }

    /// The vCPU may run.
    pub(super) fn end(&mut self, now: Instant) {
        self.interrupt(now);
        self.until = None;
    }

    /// How long the vCPU has rested.
    pub(super) fn rested(&self, now: Instant) -> Duration {
        self.rested + self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn only_the_time_that_the_thread_waited_for_the_rest_counts() {
        let begin = Instant::now();
        let mut rest = Rest::default();
        assert!(!rest.is_due(begin) && rest.rest(begin).is_none());
        rest.order(begin + 10 * MS);
        assert!(rest.is_due(begin + 9 * MS) && !rest.is_due(begin + 10 * MS));
        assert_eq!(rest.rested(begin + 2 * MS), Duration::ZERO, "it has not left the guest yet");
        assert_eq!(rest.rest(begin + 2 * MS), Some(begin + 10 * MS));
        assert_eq!(rest.rested(begin + 5 * MS), 3 * MS);
        rest.interrupt(begin + 6 * MS);
        assert_eq!(rest.rested(begin + 8 * MS), 4 * MS, "a pause is no rest");
        assert_eq!(rest.rest(begin + 8 * MS), Some(begin + 10 * MS));
        assert_eq!(rest.rest(begin + 11 * MS), None);
        assert_eq!(rest.rested(begin + 20 * MS), 7 * MS);
    }

    #[test]
    fn a_rest_that_was_ended_is_over() {
        let begin = Instant::now();
        let mut rest = Rest::default();
        rest.order(begin + 10 * MS);
        rest.rest(begin);
        rest.end(begin + 4 * MS);
        assert!(!rest.is_due(begin + 5 * MS));
        assert_eq!(rest.rested(begin + 9 * MS), 4 * MS);
    }
}
