use std::time::{Duration, Instant};

/// Time since a migration was asked for, which is how engines count.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: Instant,
}

impl Clock {
    /// A clock that shows `elapsed` now: what the daemons used of the set-up before the session began.
    #[must_use]
    pub fn started_before(elapsed: Duration) -> Self {
        let now = Instant::now();
        Self { started: now.checked_sub(elapsed).unwrap_or(now) }
    }

    /// Time since the request.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// The moment at which this clock shows `at`.
    #[must_use]
    pub fn instant(&self, at: Duration) -> Instant {
        self.started + at
    }
}
