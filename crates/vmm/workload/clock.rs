//! Watches the TSC: the longest time that the vCPU stood still, and steps backward.

use crate::counters::{GAP_FLOOR_US, GAP_SLOTS, vcpu};
use crate::memory::{load, store};
use crate::vcpu::counter;

/// One vCPU's watch.
pub struct Clock {
    index: u64,
    longest: u64,
    /// Shortest gap that is recorded.
    floor: u64,
    /// What a gap must exceed to be looked at: `longest` until that has passed `floor`.
    trigger: u64,
}

impl Clock {
    /// A watch that starts now.
    pub fn new(index: u64, tsc_khz: u64, now: u64) -> Self {
        store(counter(index, vcpu::TSC), now);
        Self { index, longest: 0, floor: tsc_khz * GAP_FLOOR_US / 1000, trigger: 0 }
    }

    /// Takes note of the time. Says whether the TSC went backward, so that nobody waits for what was planned.
    #[inline]
    pub fn observe(&mut self, now: u64) -> bool {
        let last = counter(self.index, vcpu::TSC);
        let gap = now.wrapping_sub(load(last));
        store(last, now);
        // A step backward is a huge gap here.
        gap > self.trigger && self.record(gap, now)
    }

    #[cold]
    fn record(&mut self, gap: u64, now: u64) -> bool {
        let at = |word| counter(self.index, word);
        if gap.cast_signed() < 0 {
            store(at(vcpu::BACKWARD_STEPS), load(at(vcpu::BACKWARD_STEPS)) + 1);
            let step = gap.wrapping_neg();
            store(at(vcpu::BACKWARD_LARGEST), step.max(load(at(vcpu::BACKWARD_LARGEST))));
            return true;
        }
        if gap > self.longest {
            self.longest = gap;
            self.trigger = gap.min(self.floor);
            store(at(vcpu::LONGEST_GAP), gap);
        }
        if gap > self.floor {
            let slot = |n: u64| at(vcpu::GAP_STACK + 2 * n);
            let mut top = load(at(vcpu::GAPS)).min(GAP_SLOTS);
            while top > 0 && load(slot(top - 1)) <= gap {
                top -= 1;
            }
            if top < GAP_SLOTS {
                // Shortened, written, lengthened: a reader between sees no half entry.
                store(at(vcpu::GAPS), top);
                store(slot(top), gap);
                store(slot(top) + 8, now);
                store(at(vcpu::GAPS), top + 1);
            }
        }
        false
    }
}
