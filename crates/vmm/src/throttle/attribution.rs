//! Which vCPU wrote how many pages.
//!
//! The dirty log says which pages were written, not by whom, and it says so only when it is harvested. A throttle
//! must know both all the time. What each vCPU has at every moment are counters: of page faults, one for
//! each page that becomes dirty where KVM tracks by write protection, and of CPU time. A harvest says what a tick
//! of such a counter is worth in pages, and from then on ticks are pages. Faults are believed as long as there
//! are enough of them to explain what was harvested; on a host whose CPU notes dirty pages itself there are hardly any.
//!
//! Counters are read a moment after the harvest, on a busy host a long one. What is written in that moment is counted
//! with this harvest and found by the next, which then has fewer ticks than pages. So faults are held against all
//! that was harvested so far, not against a single harvest: else a reader would be taken for a writer for no more
//! than having run. And no fault is worth more than the one page that it made dirty.

use std::time::Duration;

use migrated_guest::WriteAttribution;

use super::meter::Reading;

/// A harvest of fewer pages says nothing about what a tick is worth.
const SAMPLE_MIN: u64 = 64;

/// What each vCPU wrote, from what each did.
#[derive(Debug)]
pub(super) struct Attribution {
    by: WriteAttribution,
    /// Pages that a tick is worth.
    worth: f64,
    /// The vCPUs at the last harvest.
    harvested: Vec<Reading>,
    /// Pages that each has written since the beginning, as far as harvested.
    pages: Vec<u64>,
    /// All faults and all pages of the harvests so far.
    total: (f64, u64),
}

impl Attribution {
    /// Begins with vCPUs that are at `now`. Until the first harvest a fault is taken for a page.
    pub(super) fn new(now: Vec<Reading>) -> Self {
        let countable = now.iter().all(|reading| reading.faults.is_some());
        Self {
            by: if countable { WriteAttribution::FaultCounters } else { WriteAttribution::RunTime },
            worth: if countable { 1.0 } else { 0.0 },
            pages: vec![0; now.len()],
            total: (0.0, 0),
            harvested: now,
        }
    }

    pub(super) const fn by(&self) -> WriteAttribution {
        self.by
    }

    /// Pages that each vCPU has written, as far as harvested.
    pub(super) fn pages(&self) -> &[u64] {
        &self.pages
    }

    /// About as many pages as a vCPU wrote between two readings.
    pub(super) fn written(&self, before: &Reading, now: &Reading) -> f64 {
        ticks(self.by, before, now) * self.worth
    }

    /// `pages` were harvested, with vCPUs that are at `now`.
    pub(super) fn harvest(&mut self, pages: u64, now: Vec<Reading>) {
        let done = |by| -> Vec<f64> {
            self.harvested.iter().zip(&now).map(|(before, now)| ticks(by, before, now)).collect()
        };
        let faults = done(WriteAttribution::FaultCounters);
        self.total.0 += faults.iter().sum::<f64>();
        self.total.1 += pages;
        let (by, ticks, most) = if self.total.0 * 2.0 >= self.total.1 as f64 {
            (WriteAttribution::FaultCounters, faults, 1.0)
        } else {
            (WriteAttribution::RunTime, done(WriteAttribution::RunTime), f64::INFINITY)
        };
        self.harvested = now;
        let all = ticks.iter().sum::<f64>();
        if pages < SAMPLE_MIN || all <= 0.0 {
            return;
        }
        self.by = by;
        self.worth = (pages as f64 / all).min(most);
        for (total, ticks) in self.pages.iter_mut().zip(ticks) {
            *total += (ticks * self.worth) as u64;
        }
    }
}

fn ticks(by: WriteAttribution, before: &Reading, now: &Reading) -> f64 {
    match by {
        WriteAttribution::FaultCounters => {
            let counted = before.faults.zip(now.faults);
            counted.map_or(0.0, |(before, now)| now.saturating_sub(before) as f64)
        }
        WriteAttribution::RunTime => now.ran.saturating_sub(before.ran).max(Duration::ZERO).as_secs_f64(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(faults: Option<u64>, ms: u64) -> Reading {
        Reading { faults, ran: Duration::from_millis(ms) }
    }

    #[test]
    fn faults_are_pages_while_they_explain_the_harvest() {
        let mut attribution = Attribution::new(vec![at(Some(100), 0), at(Some(7), 0)]);
        assert_eq!(attribution.written(&at(Some(100), 0), &at(Some(150), 9)), 50.0);
        // 2000 faults gave 1000 pages: the others were something else.
        attribution.harvest(1000, vec![at(Some(2099), 500), at(Some(8), 500)]);
        assert_eq!(attribution.by(), WriteAttribution::FaultCounters);
        assert_eq!(attribution.pages(), [999, 0]);
        assert_eq!(attribution.written(&at(Some(0), 0), &at(Some(10), 9)), 5.0);
    }

    #[test]
    fn run_time_is_taken_where_pages_become_dirty_without_faults() {
        let mut attribution = Attribution::new(vec![at(Some(0), 0), at(Some(0), 0)]);
        attribution.harvest(10_000, vec![at(Some(40), 300), at(Some(9), 100)]);
        assert_eq!(attribution.by(), WriteAttribution::RunTime);
        assert_eq!(attribution.pages(), [7500, 2500]);
        let pages = attribution.written(&at(Some(0), 0), &at(Some(0), 2));
        assert!((pages - 50.0).abs() < 1e-6, "25 pages a ms: {pages}");
        let uncounted = Attribution::new(vec![at(None, 0)]);
        assert_eq!(uncounted.by(), WriteAttribution::RunTime);
        assert_eq!(uncounted.written(&at(None, 0), &at(None, 9)), 0.0, "nothing is known before a harvest");
    }

    #[test]
    fn a_counter_that_was_read_late_makes_no_writer_of_a_reader() {
        let mut attribution = Attribution::new(vec![at(Some(0), 0), at(Some(0), 0)]);
        // When the counters of the first harvest were read, 1500 pages of the second were written already.
        attribution.harvest(30_000, vec![at(Some(31_500), 500), at(Some(2), 500)]);
        attribution.harvest(1_600, vec![at(Some(31_600), 600), at(Some(4), 600)]);
        assert_eq!(attribution.by(), WriteAttribution::FaultCounters);
        let reader = attribution.written(&at(Some(2), 500), &at(Some(4), 600));
        assert!(reader <= 2.0, "{reader}");
        assert!(attribution.pages()[1] <= 4, "{:?}", attribution.pages());
    }

    #[test]
    fn a_harvest_of_next_to_nothing_teaches_nothing() {
        let mut attribution = Attribution::new(vec![at(Some(0), 0)]);
        attribution.harvest(3, vec![at(Some(1), 900)]);
        assert_eq!((attribution.by(), attribution.worth), (WriteAttribution::FaultCounters, 1.0));
    }
}
