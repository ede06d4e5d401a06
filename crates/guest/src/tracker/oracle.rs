//! Trackers against a naive oracle: a copy of the guest that is kept up by harvesting and reading
//! equals the guest in the end, whatever it writes when and whatever fails.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use migrated_kernel::{DirtyGfn, KvmError, ManualProtect, RingOverrun};
use migrated_pages::{BlockId, PAGE_SIZE, PageRun, PageSet, RamBlock, RamLayout};
use proptest::prelude::*;

use super::fake::{FakeKernel, Page, Upset};
use super::log::DirtyLogTracker;
use super::ring::{DirtyRingTracker, RingHarvester, Rings};
use super::{DirtyTracker, VmmWrites};

const VCPUS: usize = 2;
/// The second block's bitmap is cleared in three pieces.
const BLOCKS: [u64; 2] = [70, 40_000];
const HIGH: u64 = 1 << 32;

#[derive(Clone, Debug)]
enum Step {
    Write(usize, Page),
    VmmWrite(Page),
    Harvest(Upset),
    /// Send up to so many runs of dirty pages, from the front.
    Read(usize),
    /// Give up and begin anew, as a second attempt to migrate does.
    Restart(Upset),
}

fn page() -> impl Strategy<Value = Page> {
    prop_oneof![
        (Just(0), 0..BLOCKS[0]),
        (Just(1), 0..BLOCKS[1]),
        (Just(1), prop_oneof![Just(0), 60..70u64, 16_380..16_390u64, BLOCKS[1] - 3..BLOCKS[1]]),
    ]
}

fn upset() -> impl Strategy<Value = Upset> {
    let writes = prop::collection::vec((0..8usize, 0..VCPUS, page()), 0..6);
    (prop::option::weighted(0.3, 0..6usize), any::<bool>(), writes)
        .prop_map(|(fail_call, half_done, writes)| Upset { fail_call, half_done, writes })
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0..VCPUS, page()).prop_map(|(vcpu, page)| Step::Write(vcpu, page)),
        2 => page().prop_map(Step::VmmWrite),
        4 => upset().prop_map(Step::Harvest),
        4 => (1..8usize).prop_map(Step::Read),
        1 => upset().prop_map(Step::Restart),
    ];
    prop::collection::vec(step, 0..60)
}

struct Model {
    kernel: FakeKernel,
    tracker: Box<dyn DirtyTracker>,
    harvester: Option<RingHarvester>,
    vmm_writes: VmmWrites,
    dirty: PageSet,
    /// The other side: each page as it was last sent.
    copy: BTreeMap<Page, u64>,
    /// What a harvest may report: pages written since the last one. `None` after a failure, when a
    /// tracker may report more.
    written: Option<BTreeSet<Page>>,
}

impl Model {
    fn new(protect: ManualProtect, ring_entries: usize) -> Self {
        let block = |name: &str, guest_base, pages| RamBlock { name: name.into(), guest_base, pages };
        let layout =
            RamLayout::new(vec![block("low", 0, BLOCKS[0]), block("high", HIGH, BLOCKS[1])]).unwrap();
        let kernel = FakeKernel::new(&layout, protect, VCPUS, ring_entries);
        let vmm_writes = VmmWrites::new(&layout);
        let (boxed, writes) = (kernel.clone(), vmm_writes.clone());
        let (tracker, harvester): (Box<dyn DirtyTracker>, _) = if ring_entries == 0 {
            (Box::new(DirtyLogTracker::new(Box::new(boxed), protect, &layout, writes)), None)
        } else {
            let tracker = DirtyRingTracker::new(Box::new(boxed), &layout, writes);
            let harvester = tracker.harvester();
            (Box::new(tracker), Some(harvester))
        };
        let dirty = PageSet::empty(&layout);
        Self { kernel, tracker, harvester, vmm_writes, dirty, copy: BTreeMap::new(), written: None }
    }

    fn note(&mut self, page: Page) {
        if let Some(written) = &mut self.written {
            written.insert(page);
        }
    }

    /// A vCPU's write; it drains its full ring first, as its thread would.
    fn write(&mut self, vcpu: usize, page: Page) {
        while !self.kernel.lock().write(vcpu, page) {
            self.harvester.as_ref().expect("only rings fill up").drain().expect("nothing fails here");
        }
        self.note(page);
    }

    fn settle(&mut self, upset: &Upset) {
        self.kernel.lock().upset(Upset::default());
        let stalled = std::mem::take(&mut self.kernel.lock().stalled);
        stalled.into_iter().for_each(|(vcpu, page)| self.write(vcpu, page));
        if !upset.writes.is_empty() || upset.fail_call.is_some() {
            // What was written during the harvest may be in it or in the next one.
            self.written = None;
        }
    }

    fn harvest(&mut self, upset: Upset) -> bool {
        self.kernel.lock().upset(upset.clone());
        let mut harvested = self.dirty.clone();
        let before = harvested.len();
        let result = self.tracker.harvest(&mut harvested);
        if let Ok(newly) = result {
            assert_eq!(before + newly, harvested.len(), "a harvest counts what is new");
        }
        if let (Some(written), true) = (&self.written, result.is_ok() && upset.writes.is_empty()) {
            let mut expected = self.dirty.clone();
            for (block, first) in written {
                expected.insert(PageRun { block: BlockId(*block), first: *first, count: 1 });
            }
            assert_eq!(harvested, expected, "a harvest reports exactly what was written");
        }
        self.dirty = harvested;
        self.written = result.is_ok().then(BTreeSet::new);
        self.settle(&upset);
        result.is_ok()
    }

    /// Sends pages, after a failed harvest as well.
    fn read(&mut self, runs: usize) {
        for run in self.dirty.runs().take(runs).collect::<Vec<_>>() {
            self.dirty.remove(run);
            for index in run.first..run.first + run.count {
                let page = (run.block.0, index);
                self.copy.insert(page, self.kernel.lock().version(page));
            }
        }
    }

    fn restart(&mut self, upset: Upset) {
        self.kernel.lock().upset(upset.clone());
        let stopped = self.tracker.stop();
        let started = self.tracker.start();
        self.settle(&upset);
        if stopped.is_err() || started.is_err() {
            self.tracker.start().expect("nothing fails here");
        }
        self.written = (upset.writes.is_empty()).then(BTreeSet::new);
        self.dirty.clear();
        // A new attempt sends everything first.
        self.copy = self.kernel.lock().versions();
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Write(vcpu, page) => self.write(vcpu, page),
            Step::VmmWrite(page) => {
                self.kernel.lock().write_unseen(page);
                let base = if page.0 == 0 { 0 } else { HIGH };
                self.vmm_writes.mark(base + page.1 * PAGE_SIZE as u64 + 17, 8);
                self.note(page);
            }
            Step::Harvest(upset) => {
                self.harvest(upset);
            }
            Step::Read(runs) => self.read(runs),
            Step::Restart(upset) => self.restart(upset),
        }
    }

    fn run(mut self, steps: Vec<Step>) {
        self.restart(Upset::default());
        steps.into_iter().for_each(|step| self.step(step));
        // The guest is paused: one harvest, and the rest is sent.
        assert!(self.harvest(Upset::default()));
        self.read(usize::MAX);
        assert_eq!(self.copy, self.kernel.lock().versions(), "the copy lacks a write");
        assert!(self.harvest(Upset::default()) && self.dirty.is_empty(), "a paused guest writes nothing");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn the_log_loses_no_write(steps in steps(), initially_set: bool) {
        let protect =
            if initially_set { ManualProtect::InitiallySet } else { ManualProtect::ProtectedAtStart };
        Model::new(protect, 0).run(steps);
    }

    #[test]
    fn rings_lose_no_write(steps in steps(), ring_entries in 1..12usize) {
        Model::new(ManualProtect::ProtectedAtStart, ring_entries).run(steps);
    }
}

/// Rings that say once what they are told to.
struct Scripted {
    entries: Vec<DirtyGfn>,
    overrun: bool,
    /// What a reset gives back.
    given_back: u32,
    calls: Calls,
}

impl Rings for Scripted {
    fn set_logging(&mut self, on: bool) -> Result<(), KvmError> {
        self.calls.lock().unwrap().push(if on { "on" } else { "off" });
        Ok(())
    }

    fn collect(&mut self, into: &mut Vec<DirtyGfn>) -> Result<(), RingOverrun> {
        into.append(&mut self.entries);
        if std::mem::take(&mut self.overrun) { Err(RingOverrun) } else { Ok(()) }
    }

    fn reset(&mut self) -> Result<u32, KvmError> {
        Ok(self.given_back)
    }

    fn abandon(&mut self) {
        self.calls.lock().unwrap().push("abandon");
    }
}

fn scripted(entries: &[(u32, u64)], overrun: bool, given_back: u32) -> (DirtyRingTracker, PageSet, Calls) {
    let layout = RamLayout::new(vec![RamBlock { name: "a".into(), guest_base: 0, pages: 4 }]).unwrap();
    let calls = Calls::default();
    let entries = entries.iter().map(|(slot, offset)| DirtyGfn { slot: *slot, offset: *offset }).collect();
    let rings = Scripted { entries, overrun, given_back, calls: Arc::clone(&calls) };
    let tracker = DirtyRingTracker::new(Box::new(rings), &layout, VmmWrites::new(&layout));
    (tracker, PageSet::empty(&layout), calls)
}

type Calls = Arc<Mutex<Vec<&'static str>>>;

#[test]
fn a_page_that_the_guest_has_not_is_an_error_and_the_others_are_kept() {
    let (mut tracker, mut dirty, _) = scripted(&[(0, 3), (0, 4), (1, 0), (0x1_0000, 0)], false, 4);
    let error = tracker.harvest(&mut dirty).expect_err("unknown pages").to_string();
    assert!(error.contains("harvest of dirty rings"), "{error}");
    assert!(dirty.contains(BlockId(0), 3) && dirty.len() == 1);
    assert_eq!(tracker.harvest(&mut dirty).expect("said once"), 0);
}

#[test]
fn after_an_overrun_the_guest_goes_on_and_tracking_never_does() {
    // Seen when collecting, or by a reset that gives nothing back.
    for (overrun, given_back) in [(true, 1), (false, 0)] {
        let (mut tracker, mut dirty, calls) = scripted(&[(0, 1)], overrun, given_back);
        tracker.harvester().drain().expect("the vCPU can run on");
        assert_eq!(*calls.lock().unwrap(), ["off", "abandon"]);
        let error = tracker.harvest(&mut dirty).expect_err("pages are unknown").to_string();
        assert!(error.contains("make the VM with the dirty log"), "{error}");
        tracker.stop().expect("tracking can end");
        tracker.start().expect_err("for good");
        assert!(!calls.lock().unwrap().contains(&"on"));
    }
}
