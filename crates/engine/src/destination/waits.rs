use std::collections::BTreeMap;
use std::time::Duration;

use migrated_pages::{BlockId, PageRun};

use crate::record::{Postcopy, ThreadWaits};

/// Moments of pages' arrival, on the clock of all other times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrived {
    /// Their payload was read.
    pub read: Duration,
    /// The kernel was about to be told.
    pub ready: Duration,
    /// The guest had them, and whoever waited was woken.
    pub woken: Duration,
}

/// Over so long the most faults are told.
const PEAK_WINDOW: Duration = Duration::from_millis(100);
/// Threads told of one by one: the most that KVM allows vCPUs is 4096, but a record is read by people, too.
const THREADS_MAX: usize = 256;

type Page = (BlockId, u64);

/// Who waits for which page since when, and what that adds up to.
///
/// A thread waits for one page at a time. It is woken when its page is placed, a moment before that is told here,
/// and may have faulted again by then: its newest fault is the one that counts. *All* wait when every thread that
/// ever faulted does: vCPUs that haven't yet are taken to need nothing that is missing.
#[derive(Debug, Default)]
pub(super) struct Waits {
    pages: BTreeMap<Page, Waited>,
    threads: BTreeMap<u32, Thread>,
    waiting: usize,
    all_since: Option<Duration>,
    all: Duration,
    /// Faults in the current window, and its number.
    window: (u128, u64),
    peak: u64,
}

#[derive(Debug)]
struct Waited {
    since: Duration,
    /// When a request was handed to the transport.
    requested: Option<Duration>,
    threads: Vec<u32>,
}

#[derive(Debug, Default)]
struct Thread {
    name: String,
    page: Option<(Page, Duration)>,
    faults: u64,
    blocked: Duration,
}

impl Waits {
    /// A thread waits for a page.
    pub(super) fn fault(&mut self, now: Duration, page: Page, thread: u32) {
        let window = now.as_nanos() / PEAK_WINDOW.as_nanos();
        let faults = if self.window.0 == window { self.window.1 + 1 } else { 1 };
        self.window = (window, faults);
        self.peak = self.peak.max(faults);

        let waited =
            self.pages.entry(page).or_insert(Waited { since: now, requested: None, threads: Vec::new() });
        if self.threads.len() >= THREADS_MAX && !self.threads.contains_key(&thread) {
            return;
        }
        waited.threads.push(thread);
        self.go_on(now, thread);
        let thread = self.threads.entry(thread).or_default();
        thread.page = Some((page, now));
        thread.faults += 1;
        self.waiting += 1;
        if self.waiting == self.threads.len() {
            self.all_since.get_or_insert(now);
        } else {
            self.end_all(now);
        }
    }

    /// What people call a thread.
    pub(super) fn name(&mut self, thread: u32, name: String) {
        if let Some(thread) = self.threads.get_mut(&thread) {
            thread.name = name;
        }
    }

    /// These pages were asked for.
    pub(super) fn requested(&mut self, now: Duration, pages: &[PageRun]) {
        for run in pages {
            for page in run.first..run.first + run.count {
                if let Some(waited) = self.pages.get_mut(&(run.block, page)) {
                    waited.requested = Some(now);
                }
            }
        }
    }

    /// Pages are in place, and whoever waited for one goes on.
    pub(super) fn placed(&mut self, run: PageRun, arrived: Arrived, counts: &mut Postcopy) {
        let pages = (run.block, run.first)..(run.block, run.first + run.count);
        while let Some((&page, _)) = self.pages.range(pages.clone()).next() {
            let Some(waited) = self.pages.remove(&page) else { break };
            let Arrived { read, ready, woken } = arrived;
            counts.fault_latency.add(woken.saturating_sub(waited.since));
            if let Some(requested) = waited.requested.filter(|requested| *requested <= read) {
                let parts = &mut counts.fault_parts;
                parts.request.add(requested.saturating_sub(waited.since));
                parts.wire.add(read - requested);
                parts.place.add(ready.saturating_sub(read));
                parts.wake.add(woken.saturating_sub(ready));
            }
            for thread in waited.threads {
                let waits = self.threads.get(&thread).and_then(|thread| thread.page);
                if waits.is_some_and(|(waits_for, _)| waits_for == page) {
                    self.go_on(woken, thread);
                    self.end_all(woken);
                }
            }
        }
    }

    fn go_on(&mut self, now: Duration, thread: u32) {
        let Some(thread) = self.threads.get_mut(&thread) else { return };
        if let Some((_, since)) = thread.page.take() {
            thread.blocked += now.saturating_sub(since);
            self.waiting -= 1;
        }
    }

    fn end_all(&mut self, now: Duration) {
        if let Some(since) = self.all_since.take() {
            self.all += now.saturating_sub(since);
        }
    }

    /// Writes down what it all adds up to now; `followed` is for how long pages have followed the guest.
    pub(super) fn report(&self, now: Duration, followed: Duration, counts: &mut Postcopy) {
        let us = |time: Duration| time.as_secs_f64() * 1e6;
        let all = self.all + self.all_since.map_or(Duration::ZERO, |since| now.saturating_sub(since));
        counts.all_blocked_us = us(all);
        counts.faults_per_second_peak = self.peak as f64 / PEAK_WINDOW.as_secs_f64();
        let faults = (counts.faults + counts.faults_shared) as f64;
        counts.faults_per_second = if followed.is_zero() { 0.0 } else { faults / followed.as_secs_f64() };
        counts.blocked = self
            .threads
            .iter()
            .map(|(id, thread)| {
                let waits = thread.page.map_or(Duration::ZERO, |(_, since)| now.saturating_sub(since));
                ThreadWaits {
                    thread: *id,
                    name: thread.name.clone(),
                    faults: thread.faults,
                    blocked_us: us(thread.blocked + waits),
                }
            })
            .collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAM: BlockId = BlockId(0);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn page(first: u64) -> PageRun {
        PageRun { block: RAM, first, count: 1 }
    }

    fn at(read: u64, ready: u64, woken: u64) -> Arrived {
        Arrived { read: ms(read), ready: ms(ready), woken: ms(woken) }
    }

    #[test]
    fn a_wait_is_split_where_the_page_was_asked_for() {
        let (mut waits, mut counts) = (Waits::default(), Postcopy::default());
        waits.fault(ms(10), (RAM, 3), 7);
        waits.fault(ms(11), (RAM, 4), 8);
        waits.requested(ms(12), &[page(3)]);
        waits.placed(page(3), at(20, 21, 25), &mut counts);
        // Pushed before anybody had asked.
        waits.placed(page(4), at(20, 21, 25), &mut counts);
        assert_eq!((counts.fault_latency.count(), counts.fault_latency.sum_us), (2, 29_000));
        let parts = &counts.fault_parts;
        let sums = [&parts.request, &parts.wire, &parts.place, &parts.wake].map(|part| part.sum_us);
        assert_eq!(sums, [2_000, 8_000, 1_000, 4_000]);
        assert_eq!(sums.iter().sum::<u64>(), 15_000, "the whole wait");
    }

    #[test]
    fn threads_are_blocked_until_woken_and_all_of_them_only_together() {
        let (mut waits, mut counts) = (Waits::default(), Postcopy::default());
        waits.fault(ms(0), (RAM, 1), 7);
        waits.fault(ms(2), (RAM, 2), 8);
        // Both wait from 2 to 5.
        waits.placed(page(1), at(5, 5, 5), &mut counts);
        waits.fault(ms(8), (RAM, 2), 7);
        // And from 8 to 10.
        waits.placed(page(2), at(10, 10, 10), &mut counts);
        waits.name(8, "vcpu1".into());
        counts.faults = 3;
        waits.report(ms(30), ms(30), &mut counts);
        let blocked: Vec<_> = counts.blocked.iter().map(|t| (t.thread, t.faults, t.blocked_us)).collect();
        assert_eq!(blocked, [(7, 2, 7_000.0), (8, 1, 8_000.0)]);
        assert_eq!(counts.blocked[1].name, "vcpu1");
        // Alone from 0 to 2, when nobody else had faulted yet.
        assert_eq!(counts.all_blocked_us, 7_000.0);
        assert_eq!((counts.faults_per_second, counts.faults_per_second_peak), (100.0, 30.0));
    }

    #[test]
    fn a_thread_that_faults_again_before_its_wake_is_told_waits_for_the_newer_page() {
        let (mut waits, mut counts) = (Waits::default(), Postcopy::default());
        waits.fault(ms(0), (RAM, 1), 7);
        waits.fault(ms(5), (RAM, 2), 7);
        waits.placed(page(1), at(4, 4, 4), &mut counts);
        waits.report(ms(6), ms(6), &mut counts);
        assert_eq!(counts.blocked[0].blocked_us, 6_000.0);
        waits.placed(page(2), at(9, 9, 9), &mut counts);
        waits.report(ms(20), ms(20), &mut counts);
        assert_eq!((counts.blocked[0].blocked_us, counts.all_blocked_us), (9_000.0, 9_000.0));
    }
}
