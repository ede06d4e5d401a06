//! A KVM that is only data: memory whose pages have versions, and the rules of logging.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use migrated_kernel::{DirtyGfn, KvmError, ManualProtect, RingOverrun};
use migrated_pages::{PageBitmap, RamLayout};

use super::log::DirtyLog;
use super::ring::Rings;

/// A page: (block, index).
pub type Page = (u16, u64);

/// What goes wrong during one operation of a tracker, and what the guest does meanwhile.
#[derive(Clone, Debug, Default)]
pub struct Upset {
    /// The kernel call, counted from 0, that fails.
    pub fail_call: Option<usize>,
    /// Whether a failing call does half its work first.
    pub half_done: bool,
    /// Writes by (call before which it happens, vCPU, page).
    pub writes: Vec<(usize, usize, Page)>,
}

pub struct FakeVm {
    protect: ManualProtect,
    logging: bool,
    /// Per block: pages whose next write is seen.
    protected: Vec<PageBitmap>,
    /// Per block: the dirty log.
    log: Vec<PageBitmap>,
    rings: Vec<VecDeque<Entry>>,
    ring_entries: usize,
    versions: BTreeMap<Page, u64>,
    upset: Upset,
    calls: usize,
    /// Writes for which a ring had no room: the vCPU has left guest mode and waits.
    pub stalled: Vec<(usize, Page)>,
}

struct Entry {
    gfn: DirtyGfn,
    collected: bool,
}

/// The fake, shared by a tracker and its test.
#[derive(Clone)]
pub struct FakeKernel(Arc<Mutex<FakeVm>>);

impl FakeKernel {
    /// A VM with a ring of `ring_entries` for each vCPU, or, with 0 of them, with a dirty log.
    pub fn new(layout: &RamLayout, protect: ManualProtect, vcpus: usize, ring_entries: usize) -> Self {
        let empty = || layout.blocks().iter().map(|block| PageBitmap::new(block.pages)).collect::<Vec<_>>();
        Self(Arc::new(Mutex::new(FakeVm {
            protect,
            logging: false,
            protected: empty(),
            log: empty(),
            rings: (0..vcpus).map(|_| VecDeque::new()).collect(),
            ring_entries,
            versions: BTreeMap::new(),
            upset: Upset::default(),
            calls: 0,
            stalled: Vec::new(),
        })))
    }

    pub fn lock(&self) -> MutexGuard<'_, FakeVm> {
        self.0.lock().unwrap()
    }
}

impl FakeVm {
    /// Arms what goes wrong until the next `upset`.
    pub fn upset(&mut self, upset: Upset) {
        self.upset = upset;
        self.calls = 0;
    }

    pub fn version(&self, page: Page) -> u64 {
        self.versions.get(&page).copied().unwrap_or(0)
    }

    pub fn versions(&self) -> BTreeMap<Page, u64> {
        self.versions.clone()
    }

    /// A write by the VMM, of which KVM knows nothing.
    pub fn write_unseen(&mut self, page: Page) {
        *self.versions.entry(page).or_default() += 1;
    }

    /// A write by a vCPU. False, and nothing written, when it must leave guest mode for a full ring.
    pub fn write(&mut self, vcpu: usize, page: Page) -> bool {
        let (block, index) = (usize::from(page.0), page.1);
        if self.logging && self.protected[block].get(index) {
            if self.ring_entries == 0 {
                self.log[block].set(index);
            } else if self.rings[vcpu].len() < self.ring_entries {
                let gfn = DirtyGfn { slot: page.0.into(), offset: index };
                self.rings[vcpu].push_back(Entry { gfn, collected: false });
            } else {
                return false;
            }
            self.protected[block].clear(index);
        }
        self.write_unseen(page);
        true
    }

    /// The guest acts before the call, then: the share of its work that the call does, and whether it fails.
    fn enter(&mut self) -> (usize, bool) {
        let call = self.calls;
        self.calls += 1;
        let writes: Vec<_> = self.upset.writes.iter().filter(|w| w.0 == call).copied().collect();
        for (_, vcpu, page) in writes {
            if !self.write(vcpu, page) {
                self.stalled.push((vcpu, page));
            }
        }
        match (self.upset.fail_call == Some(call), self.upset.half_done) {
            (false, _) => (1, false),
            (true, true) => (2, true),
            (true, false) => (usize::MAX, true),
        }
    }

    fn switch(&mut self, on: bool) -> Result<(), KvmError> {
        let (_, fail) = self.enter();
        if fail {
            return refused();
        }
        if on && !self.logging {
            let initially_set = self.ring_entries == 0 && self.protect == ManualProtect::InitiallySet;
            for (protected, log) in self.protected.iter_mut().zip(&mut self.log) {
                let all = PageBitmap::full(log.pages());
                let none = PageBitmap::new(log.pages());
                (*protected, *log) = if initially_set { (none, all) } else { (all, none) };
            }
        }
        self.logging = on;
        Ok(())
    }
}

fn refused() -> Result<(), KvmError> {
    Err(KvmError::Call { call: "fake", meaning: "injected", source: io::ErrorKind::Other.into() })
}

impl DirtyLog for FakeKernel {
    fn set_logging(&self, on: bool) -> Result<(), KvmError> {
        self.lock().switch(on)
    }

    fn read(&self, slot: usize, bitmap: &mut [u64]) -> Result<(), KvmError> {
        let mut vm = self.lock();
        let (_, fail) = vm.enter();
        assert!(vm.logging, "the dirty log is read only while tracking");
        bitmap.copy_from_slice(vm.log[slot].words());
        if fail { refused() } else { Ok(()) }
    }

    fn clear(&self, slot: usize, first_word: usize, words: &[u64]) -> Result<(), KvmError> {
        let mut vm = self.lock();
        let (share, fail) = vm.enter();
        let first = first_word as u64 * 64;
        for (at, word) in (0..).zip(&words[..words.len() / share]) {
            for bit in (0..64).filter(|bit| word & (1 << bit) != 0) {
                let page = first + at * 64 + bit;
                if vm.log[slot].get(page) {
                    vm.log[slot].clear(page);
                    vm.protected[slot].set(page);
                }
            }
        }
        if fail { refused() } else { Ok(()) }
    }
}

impl Rings for FakeKernel {
    fn set_logging(&mut self, on: bool) -> Result<(), KvmError> {
        self.lock().switch(on)
    }

    fn collect(&mut self, into: &mut Vec<DirtyGfn>) -> Result<(), RingOverrun> {
        let mut vm = self.lock();
        vm.enter();
        for entry in vm.rings.iter_mut().flatten().filter(|entry| !entry.collected) {
            entry.collected = true;
            into.push(entry.gfn);
        }
        Ok(())
    }

    fn abandon(&mut self) {
        unreachable!("this KVM never overruns a ring");
    }

    /// Half its work is, here, success cut short by a signal, as the kernel does it.
    fn reset(&mut self) -> Result<u32, KvmError> {
        let mut guard = self.lock();
        let (share, fail) = guard.enter();
        let vm = &mut *guard;
        let mut left = vm.rings.iter().flatten().filter(|entry| entry.collected).count() / share;
        let mut given_back = 0;
        for ring in &mut vm.rings {
            while left > 0 && ring.front().is_some_and(|entry| entry.collected) {
                let Some(entry) = ring.pop_front() else { break };
                vm.protected[entry.gfn.slot as usize].set(entry.gfn.offset);
                left -= 1;
                given_back += 1;
            }
        }
        if fail && share == usize::MAX { refused().map(|()| 0) } else { Ok(given_back) }
    }
}
