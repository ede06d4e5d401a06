//! A guest whose RAM is real memory and whose writes come at known moments: right after each harvest, as
//! those of a guest that runs on while its pages are read.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::Instant;

use migrated_guest::{
    FirstRun, Guest, GuestError, GuestRam, IncomingGuest, LateDelivery, LateInput, PausedGuest, Refused,
    SectionId, StateSection,
};
use migrated_pages::{BlockId, PAGE_SIZE, PageRun, PageSet};
use migrated_testkit::Rng;
use parking_lot::Mutex;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

/// How many copies run, and whether there were ever two.
#[derive(Debug, Default)]
pub struct Runners {
    now: AtomicI32,
    worst: AtomicI32,
}

impl Runners {
    fn enter(&self) {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.worst.fetch_max(now, Ordering::SeqCst);
    }

    fn leave(&self) {
        self.now.fetch_sub(1, Ordering::SeqCst);
    }

    pub fn now(&self) -> i32 {
        self.now.load(Ordering::SeqCst)
    }

    pub fn worst(&self) -> i32 {
        self.worst.load(Ordering::SeqCst)
    }
}

/// RAM of `pages` pages in two memfds, as a VMM has it.
pub fn ram(pages: usize) -> GuestRam {
    let low = pages / 2;
    let region = |(base, pages): (u64, usize)| {
        let file = File::from(rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        file.set_len((pages * PAGE_SIZE) as u64).unwrap();
        let file = Some(FileOffset::new(file, 0));
        GuestRegionMmap::from_range(GuestAddress(base), pages * PAGE_SIZE, file).unwrap()
    };
    let regions = [(0, low), (1 << 32, pages - low)].into_iter().map(region).collect();
    GuestRam::new(GuestMemoryMmap::from_regions(regions).unwrap()).unwrap()
}

/// All of RAM's contents.
pub fn contents(ram: &GuestRam) -> Vec<Vec<u8>> {
    let of = |block: BlockId| {
        let count = ram.layout().blocks()[block.index()].pages;
        let mut bytes = vec![0; count as usize * PAGE_SIZE];
        ram.slice(PageRun { block, first: 0, count }).copy_to(&mut bytes);
        bytes
    };
    ram.layout().ids().map(of).collect()
}

/// What comes from outside for a guest, and what of it came to it late.
#[derive(Clone, Debug, Default)]
pub struct Tap {
    /// Comes once the guest is paused.
    late: Vec<LateInput>,
    waiting: Arc<Mutex<VecDeque<LateInput>>>,
    delivered: Arc<Mutex<Vec<LateInput>>>,
}

impl Tap {
    /// Frames that come once the guest is paused.
    pub fn with(late: Vec<LateInput>) -> Self {
        Self { late, ..Self::default() }
    }

    /// What the guest got where it came to.
    pub fn delivered(&self) -> Vec<LateInput> {
        self.delivered.lock().clone()
    }

    /// What nobody has taken.
    pub fn waiting(&self) -> usize {
        self.waiting.lock().len()
    }
}

impl LateDelivery for Tap {
    fn deliver(&mut self, inputs: Vec<LateInput>) {
        self.delivered.lock().extend(inputs);
    }
}

#[derive(Debug)]
struct Shared {
    ram: GuestRam,
    tap: Tap,
    runners: Arc<Runners>,
    dirty: Mutex<Option<PageSet>>,
    rng: Mutex<Rng>,
    writes_per_harvest: u64,
    cpu: AtomicU64,
}

impl Shared {
    fn write(&self, count: u64) {
        let mut rng = self.rng.lock();
        for _ in 0..count {
            let block = BlockId(rng.below(2) as u16);
            let page = rng.below(self.ram.layout().blocks()[block.index()].pages);
            let address = self.ram.layout().blocks()[block.index()].guest_base + page * PAGE_SIZE as u64;
            let value = if rng.below(8) == 0 { [0; PAGE_SIZE] } else { [rng.next() as u8; PAGE_SIZE] };
            self.ram.memory().write_slice(&value, GuestAddress(address)).unwrap();
            self.cpu.fetch_add(1, Ordering::SeqCst);
            if let Some(dirty) = &mut *self.dirty.lock() {
                dirty.insert(PageRun { block, first: page, count: 1 });
            }
        }
    }

    fn harvest(&self, into: &mut PageSet) -> u64 {
        let mut dirty = self.dirty.lock();
        let empty = PageSet::empty(self.ram.layout());
        dirty.as_mut().map_or(0, |dirty| into.union(&std::mem::replace(dirty, empty)))
    }
}

#[derive(Debug)]
pub struct RunningGuest(Arc<Shared>);

#[derive(Debug)]
pub struct StoppedGuest(Arc<Shared>);

#[derive(Debug)]
pub struct EmptyGuest {
    shared: Arc<Shared>,
    pub restore_fails: bool,
    /// Restoring reads each of these pages first, as KVM reads some that hold state.
    pub restore_reads: Vec<PageRun>,
}

impl RunningGuest {
    /// A guest with data in about half of its pages.
    pub fn new(pages: usize, writes_per_harvest: u64, seed: u64, runners: &Arc<Runners>, tap: &Tap) -> Self {
        let shared = shared(pages, writes_per_harvest, seed, runners, tap);
        shared.write(pages as u64);
        runners.enter();
        Self(Arc::new(shared))
    }
}

impl EmptyGuest {
    pub fn new(pages: usize, runners: &Arc<Runners>, tap: &Tap) -> Self {
        Self {
            shared: Arc::new(shared(pages, 0, 1, runners, tap)),
            restore_fails: false,
            restore_reads: Vec::new(),
        }
    }
}

fn shared(pages: usize, writes_per_harvest: u64, seed: u64, runners: &Arc<Runners>, tap: &Tap) -> Shared {
    Shared {
        ram: ram(pages),
        tap: tap.clone(),
        runners: runners.clone(),
        dirty: Mutex::new(None),
        rng: Mutex::new(Rng::new(seed)),
        writes_per_harvest,
        cpu: AtomicU64::new(0),
    }
}

/// The state section that every guest here has.
pub fn section() -> SectionId {
    SectionId { kind: "cpu".into(), instance: 0, version: 1 }
}

impl Guest for RunningGuest {
    type Paused = StoppedGuest;

    fn ram(&self) -> &GuestRam {
        &self.0.ram
    }

    fn start_tracking(&mut self) -> Result<(), GuestError> {
        *self.0.dirty.lock() = Some(PageSet::empty(self.0.ram.layout()));
        self.0.write(self.0.writes_per_harvest);
        Ok(())
    }

    fn harvest(&mut self, dirty: &mut PageSet) -> Result<u64, GuestError> {
        let new = self.0.harvest(dirty);
        self.0.write(self.0.writes_per_harvest);
        Ok(new)
    }

    fn stop_tracking(&mut self) -> Result<(), GuestError> {
        *self.0.dirty.lock() = None;
        Ok(())
    }

    fn late_delivery(&self) -> Box<dyn LateDelivery> {
        Box::new(self.0.tap.clone())
    }

    fn pause(self) -> Result<StoppedGuest, Refused<Self>> {
        self.0.runners.leave();
        self.0.tap.waiting.lock().extend(self.0.tap.late.iter().cloned());
        Ok(StoppedGuest(self.0))
    }
}

impl PausedGuest for StoppedGuest {
    type Running = RunningGuest;

    fn ram(&self) -> &GuestRam {
        &self.0.ram
    }

    fn harvest(&mut self, dirty: &mut PageSet) -> Result<u64, GuestError> {
        Ok(self.0.harvest(dirty))
    }

    fn save(&mut self) -> Result<Vec<StateSection>, GuestError> {
        let data = self.0.cpu.load(Ordering::SeqCst).to_le_bytes().to_vec();
        Ok(vec![StateSection { id: section(), data }])
    }

    fn resume(self) -> Result<RunningGuest, Refused<Self>> {
        self.0.runners.enter();
        Ok(RunningGuest(self.0))
    }

    fn late_input(&mut self, limit_bytes: usize) -> Vec<LateInput> {
        let mut waiting = self.0.tap.waiting.lock();
        let mut left = limit_bytes;
        let mut taken = Vec::new();
        while let Some(rest) = waiting.front().and_then(|input| left.checked_sub(input.data.len())) {
            left = rest;
            taken.extend(waiting.pop_front());
        }
        taken
    }

    fn retire(self) {}
}

impl IncomingGuest for EmptyGuest {
    type Running = RunningGuest;

    fn ram(&self) -> &GuestRam {
        &self.shared.ram
    }

    fn restore(&mut self, sections: Vec<StateSection>) -> Result<(), GuestError> {
        let refuse =
            |reason: &str| Err(GuestError::Section { section: "cpu/0 v1".into(), reason: reason.to_owned() });
        let mut byte = [0];
        self.restore_reads.iter().for_each(|run| _ = self.shared.ram.slice(*run).copy_to(&mut byte));
        if self.restore_fails {
            return refuse("made to fail");
        }
        let [StateSection { id, data }] = &sections[..] else { return refuse("not one section") };
        let Some(cpu) = data.first_chunk::<8>().filter(|_| *id == section()) else {
            return refuse("another section");
        };
        self.shared.cpu.store(u64::from_le_bytes(*cpu), Ordering::SeqCst);
        Ok(())
    }

    fn start(self) -> Result<(RunningGuest, FirstRun), GuestError> {
        self.shared.runners.enter();
        Ok((RunningGuest(self.shared), FirstRun { at: Instant::now() }))
    }
}
