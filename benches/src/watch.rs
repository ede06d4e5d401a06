//! Looks at a guest that moves, and at what it gets done.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use migrated_api::{Vm, VmState, WorkloadCounters};

use crate::guest::NAME;
use crate::lab::{Api, Host};

/// Time between two looks: short beside everything that is measured by them, long beside what one costs.
const PERIOD: Duration = Duration::from_millis(20);

/// What a guest had got done at a moment.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// The moment.
    pub at: Instant,
    /// The host at which it ran.
    pub host: usize,
    /// Its counters.
    pub counters: WorkloadCounters,
}

/// A thread that looks at a guest by the API of whichever of two hosts it runs at.
#[derive(Debug)]
pub struct Watch {
    end: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Sample>>,
}

impl Watch {
    /// Begins to look.
    ///
    /// # Errors
    /// The system gives no more threads or descriptors.
    pub fn start(hosts: &[Host; 2]) -> Result<Self> {
        let apis = [hosts[0].api.another()?, hosts[1].api.another()?];
        let end = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&end);
        let thread = std::thread::Builder::new().name("watch".into()).spawn(move || watch(&apis, &told))?;
        Ok(Self { end, thread })
    }

    /// Ends, and gives everything seen.
    ///
    /// # Errors
    /// The thread panicked.
    pub fn end(self) -> Result<Vec<Sample>> {
        self.end.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the watching thread panicked"))
    }
}

fn watch(apis: &[Api; 2], end: &AtomicBool) -> Vec<Sample> {
    let (mut samples, mut here) = (Vec::new(), 0);
    while !end.load(Ordering::Relaxed) {
        for host in [here, 1 - here] {
            if let Some((at, counters)) = look(&apis[host]) {
                samples.push(Sample { at, host, counters });
                here = host;
                break;
            }
        }
        std::thread::sleep(PERIOD);
    }
    samples
}

/// The counters are those of a moment between the question and the answer.
fn look(api: &Api) -> Option<(Instant, WorkloadCounters)> {
    let asked = Instant::now();
    let vm: Vm = api.get(&format!("/v1/vms/{NAME}")).ok()?;
    let counters = vm.workload.filter(|_| vm.state == VmState::Running)?;
    Some((asked + asked.elapsed() / 2, counters))
}

/// The longest time that the guest stood still in a look's period, in µs. A look that is the first at its host is left
/// out: it tells the longest since the guest's boot.
#[must_use]
pub fn longest_stall_us(samples: &[Sample]) -> f64 {
    let later = samples.windows(2).filter(|two| two[0].host == two[1].host);
    later.map(|two| two[1].counters.gap_recent_us).fold(0.0, f64::max)
}

/// A count that only grows, at some moments.
#[derive(Clone, Debug, Default)]
pub struct Course(Vec<(Instant, f64)>);

impl Course {
    /// What `count` makes of samples.
    #[must_use]
    pub fn of(samples: &[Sample], count: impl Fn(&WorkloadCounters) -> u64) -> Self {
        Self::new(samples.iter().map(|sample| (sample.at, count(&sample.counters))))
    }

    /// From moments, in order.
    #[must_use]
    pub fn new(points: impl IntoIterator<Item = (Instant, u64)>) -> Self {
        Self(points.into_iter().map(|(at, count)| (at, count as f64)).collect())
    }

    /// The count at a moment: between two looks in proportion. `None` without any look.
    fn at(&self, at: Instant) -> Option<f64> {
        let after = self.0.partition_point(|(moment, _)| *moment <= at);
        let (before, after) = (self.0.get(after.wrapping_sub(1)), self.0.get(after));
        match (before, after) {
            (Some((from, low)), Some((to, high))) => {
                let share = (at - *from).as_secs_f64() / (*to - *from).as_secs_f64();
                Some(low + (high - low) * share)
            }
            (one, other) => one.or(other).map(|(_, count)| *count),
        }
    }

    /// How fast it grew between two moments, a second. `None` when nothing was seen, or the moments are one.
    #[must_use]
    pub fn rate(&self, from: Instant, to: Instant) -> Option<f64> {
        let seconds = to.checked_duration_since(from)?.as_secs_f64();
        (seconds > 0.0).then_some((self.at(to)? - self.at(from)?) / seconds)
    }

    /// The degradation area between two moments, in seconds: the integral of (baseline − rate) ÷ baseline, which
    /// is the time that would have done for what was done, short of the time that there was.
    #[must_use]
    pub fn lost_s(&self, baseline: f64, from: Instant, to: Instant) -> Option<f64> {
        let seconds = to.checked_duration_since(from)?.as_secs_f64();
        (baseline > 0.0).then_some(seconds - (self.at(to)? - self.at(from)?) / baseline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    #[test]
    fn rates_and_areas_of_a_guest_that_stood_still() {
        let start = Instant::now();
        // 1000 a second, nothing from 1 s to 2 s, then 1000 a second.
        let course = Course::new(
            [(0, 0), (1000, 1000), (2000, 1000), (3000, 2000)].map(|(ms, n)| (after(start, ms), n)),
        );
        let rate = |from, to| course.rate(after(start, from), after(start, to)).unwrap();
        assert!((rate(0, 1000) - 1000.0).abs() < 1e-6);
        assert!((rate(500, 2500) - 500.0).abs() < 1e-6, "{}", rate(500, 2500));
        let lost = course.lost_s(1000.0, after(start, 500), after(start, 3000)).unwrap();
        assert!((lost - 1.0).abs() < 1e-6, "{lost}");
        assert_eq!(course.rate(start, start), None);
        assert_eq!(Course::default().rate(start, after(start, 1)), None);
    }

    #[test]
    fn the_first_look_at_a_host_tells_of_older_gaps() {
        let at = Instant::now();
        let sample = |host, gap_recent_us| {
            let counters = WorkloadCounters { gap_recent_us, ..WorkloadCounters::default() };
            Sample { at, host, counters }
        };
        let samples = [sample(0, 900.0), sample(0, 5.0), sample(1, 800.0), sample(1, 7.0)];
        assert!((longest_stall_us(&samples) - 7.0).abs() < 1e-9);
    }
}
