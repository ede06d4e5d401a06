use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// How long a vCPU rests between two series of readings. Short enough to have one soon after the guest was moved,
/// long enough to leave a slow machine its time.
const REST: Duration = Duration::from_millis(2);
/// Readings of a series: on several vCPUs they interleave.
const SERIES: u32 = 8;

/// A watch over the clocks: one thread on each vCPU reads them, in turn with the others.
#[derive(Debug)]
pub struct Clocks {
    latest: Mutex<(Instant, SystemTime)>,
    backward_ns: AtomicU64,
    gap_ns: AtomicU64,
}

/// What a watch has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readings {
    /// Longest step by which a clock, monotonic or of the wall, read less than just before on this vCPU or another.
    pub backward_ns: u64,
    /// Longest time between two readings on one vCPU since the last time that anybody asked, by the monotonic clock: about
    /// how long the guest has stood still.
    pub gap_ns: u64,
}

impl Clocks {
    /// Starts to watch all vCPUs that this process may use.
    ///
    /// # Errors
    /// The kernel doesn't tell which they are, or has no room for another thread.
    pub fn watch() -> std::io::Result<&'static Self> {
        let clocks: &'static Self = Box::leak(Box::new(Self::new()));
        let all = sched_getaffinity(None)?;
        for cpu in (0..CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu)) {
            let mut only = CpuSet::new();
            only.set(cpu);
            let watch = move || {
                sched_setaffinity(None, &only).expect("a vCPU that this process may use");
                clocks.watch_here();
            };
            thread::Builder::new().name(format!("clocks-{cpu}")).spawn(watch)?;
        }
        Ok(clocks)
    }

    fn new() -> Self {
        Self {
            latest: Mutex::new((Instant::now(), SystemTime::now())),
            backward_ns: AtomicU64::new(0),
            gap_ns: AtomicU64::new(0),
        }
    }

    /// What was seen up to now. The next gap is that of the time from here on.
    #[must_use]
    pub fn take(&self) -> Readings {
        Readings {
            backward_ns: self.backward_ns.load(Ordering::Relaxed),
            gap_ns: self.gap_ns.swap(0, Ordering::Relaxed),
        }
    }

    fn watch_here(&self) -> ! {
        let mut before = self.read(|| (Instant::now(), SystemTime::now()));
        loop {
            for _ in 0..SERIES {
                let now = self.read(|| (Instant::now(), SystemTime::now()));
                let gap = now.saturating_duration_since(before);
                self.gap_ns.fetch_max(nanoseconds(gap), Ordering::Relaxed);
                before = now;
            }
            thread::sleep(REST);
        }
    }

    /// Takes one reading. The lock puts those of all vCPUs in an order that clocks have to follow.
    fn read(&self, clocks: impl FnOnce() -> (Instant, SystemTime)) -> Instant {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let (monotonic, wall) = clocks();
        let back = latest.0.saturating_duration_since(monotonic);
        let wall_back = latest.1.duration_since(wall).unwrap_or_default();
        self.backward_ns.fetch_max(nanoseconds(back.max(wall_back)), Ordering::Relaxed);
        *latest = (monotonic, wall);
        monotonic
    }
}

/// 584 years fit.
fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_clocks_step_back_is_seen_and_the_longest_kept() {
        let clocks = Clocks::new();
        let (monotonic, wall) = (Instant::now() + Duration::from_secs(9), SystemTime::now());
        let at = |ms: u64, wall_ms: u64| {
            (monotonic + Duration::from_millis(ms), wall + Duration::from_millis(wall_ms))
        };
        for (reading, backward_ms) in
            [(at(0, 100), 0), (at(5, 105), 0), (at(3, 106), 2), (at(4, 99), 7), (at(5, 99), 7)]
        {
            clocks.read(|| reading);
            assert_eq!(clocks.take().backward_ns, backward_ms * 1_000_000);
        }
    }

    #[test]
    fn every_vcpu_is_watched() {
        let clocks = Clocks::watch().unwrap();
        migrated_testkit::wait_until("a gap is seen", Duration::from_secs(60), || clocks.take().gap_ns > 0);
        assert_eq!(clocks.take().backward_ns, 0);
    }
}
