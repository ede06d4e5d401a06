//! Slowing vCPUs down by what they write.

use std::time::Duration;

/// How much a guest's vCPUs may write.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Throttle {
    /// Pages that all vCPUs together may dirty a second. What those that write little leave goes to the others.
    pub pages_per_second: f64,
    /// Largest share of its time that any vCPU may be made to sleep, from 0 to [`Throttle::MAX_SLOWDOWN`].
    pub max_slowdown: f64,
}

impl Throttle {
    /// A vCPU always keeps at least this much of its time: one that stands still answers no interrupt and looks dead.
    pub const MAX_SLOWDOWN: f64 = 0.99;
}

/// How it is known which vCPU dirtied how many pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteAttribution {
    /// Each vCPU's page faults: dirty tracking makes the first write to a page one.
    FaultCounters,
    /// Each vCPU's CPU time, where the host's CPU notes dirty pages without faults. A vCPU that only reads can't be
    /// told from one that writes then; an idle one can.
    RunTime,
}

/// What throttling did to a guest since dirty tracking was started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Throttled {
    /// How pages are attributed at the moment.
    pub attribution: WriteAttribution,
    /// Each vCPU.
    pub vcpus: Vec<ThrottledVcpu>,
}

/// What throttling did to a vCPU since dirty tracking was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThrottledVcpu {
    /// How long it was made to sleep.
    pub slept: Duration,
    /// Pages that it dirtied, as far as harvested, counted each time.
    pub pages: u64,
}
