//! Trackers against real KVM: a guest of nine bytes writes pages that are known, and the harvest is
//! compared with them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kvm_bindings::{KVM_EXIT_DIRTY_RING_FULL, kvm_regs};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use migrated_guest::{DirtyTracker, DirtyTracking, GuestRam, RingHarvester, TrackerKind, VmmWrites};
use migrated_kernel::MemorySlots;
use migrated_pages::{PAGE_SIZE, PageRun, PageSet};
use migrated_testkit::require;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// 64-bit code: increments the word at each address of a list, then writes where no RAM is.
/// `lodsd; inc dword [rax]; dec ecx; jnz -7; mov [rdi], eax`
const CODE: [u8; 9] = [0xad, 0xff, 0x00, 0xff, 0xc9, 0x75, 0xf9, 0x89, 0x07];
const CODE_AT: u64 = 0x1000;
/// Where no RAM is.
const END: u64 = 0xe000_0000;
/// Paging, coprocessor as on every x86-64, protected mode.
const CR0: u64 = 1 << 31 | 1 << 4 | 1;
const CR4_PAE: u64 = 1 << 5;
/// Enabled and active.
const EFER_LONG_MODE: u64 = 1 << 8 | 1 << 10;
/// Page tables that map 4 GiB to themselves: one PML4 entry, four PDPT entries, 2048 large pages.
const PML4_AT: u64 = 0x2000;
const PDPT_AT: u64 = 0x3000;
const DIRECTORIES_AT: u64 = 0x4000;
/// Present, writable, for user mode; accessed, so that the CPU writes nothing there.
const TABLE: u64 = 0x27;
/// Also large and dirty.
const LARGE_PAGE: u64 = 0xe7;
/// Each vCPU's list of addresses: 4 MiB apart, which is room for a million.
const LIST_AT: u64 = 4 << 20;
/// Here begin the pages that the guest writes; below, it only reads.
const WRITTEN_FROM: u64 = 16 << 20;
/// Guest-physical addresses and bytes of RAM. The second block's bitmap ends within a word.
const RAM: [(GuestAddress, usize); 2] =
    [(GuestAddress(0), 64 << 20), (GuestAddress(1 << 30), 1037 * PAGE_SIZE)];
/// The smallest ring that every host's KVM takes.
const SMALL_RING: u32 = 1024;

/// Privilege levels of x86.
const USER: u8 = 3;
const KERNEL: u8 = 0;

/// A page by its guest-physical address.
type Page = u64;

struct TestVm {
    ram: GuestRam,
    tracker: Box<dyn DirtyTracker>,
    vmm_writes: VmmWrites,
    vcpus: Vec<TestVcpu>,
    _slots: Arc<MemorySlots>,
}

struct TestVcpu {
    fd: VcpuFd,
    list_at: u64,
    ring_full: Option<RingHarvester>,
    ring_full_exits: Arc<AtomicU64>,
}

impl TestVm {
    fn new(kind: TrackerKind, vcpus: u64) -> Self {
        Self::at_level(USER, kind, vcpus)
    }

    fn at_level(level: u8, kind: TrackerKind, vcpus: u64) -> Self {
        let kvm = Kvm::new().unwrap();
        let vm = Arc::new(kvm.create_vm().unwrap());
        let tracking = DirtyTracking::enable(kind, &vm, SMALL_RING).unwrap();
        let memory = GuestMemoryMmap::from_ranges(&RAM).unwrap();
        memory.write_slice(&CODE, GuestAddress(CODE_AT)).unwrap();
        let entries = |first: u64, step: u64, count: u64, flags: u64| -> Vec<u8> {
            (0..count).flat_map(|n| ((first + n * step) | flags).to_le_bytes()).collect()
        };
        for (at, table) in [
            (PML4_AT, entries(PDPT_AT, 0, 1, TABLE)),
            (PDPT_AT, entries(DIRECTORIES_AT, 0x1000, 4, TABLE)),
            (DIRECTORIES_AT, entries(0, 2 << 20, 2048, LARGE_PAGE)),
        ] {
            memory.write_slice(&table, GuestAddress(at)).unwrap();
        }
        let ram = GuestRam::new(memory.clone()).unwrap();
        let slots = Arc::new(MemorySlots::register(Arc::clone(&vm), memory).unwrap());
        let fds: Vec<_> = (0..vcpus).map(|id| long_mode(vm.create_vcpu(id).unwrap(), level)).collect();
        let vmm_writes = VmmWrites::new(ram.layout());
        let attached = tracking.attach(&slots, &ram, &fds, vmm_writes.clone()).unwrap();
        let exits = Arc::new(AtomicU64::new(0));
        let vcpus = fds.into_iter().zip(1..).map(|(fd, nth)| TestVcpu {
            fd,
            list_at: nth * LIST_AT,
            ring_full: attached.ring_full.clone(),
            ring_full_exits: Arc::clone(&exits),
        });
        Self { ram, tracker: attached.tracker, vmm_writes, vcpus: vcpus.collect(), _slots: slots }
    }

    /// Lets vCPU n write the pages of list n, all vCPUs at once.
    fn write(&mut self, lists: &[Vec<Page>]) {
        let ram = &self.ram;
        std::thread::scope(|scope| {
            for (vcpu, pages) in self.vcpus.iter_mut().zip(lists) {
                scope.spawn(move || vcpu.write(ram, pages));
            }
        });
    }

    fn harvest(&mut self) -> BTreeSet<Page> {
        let mut dirty = PageSet::empty(self.ram.layout());
        let newly = self.tracker.harvest(&mut dirty).unwrap();
        assert_eq!(newly, dirty.len());
        // Where the guest reads a page for the first time KVM may map it writable, and call it dirty.
        addresses(&self.ram, &dirty).into_iter().filter(|page| *page >= WRITTEN_FROM).collect()
    }
}

impl TestVcpu {
    fn write(&mut self, ram: &GuestRam, pages: &[Page]) {
        if pages.is_empty() {
            return;
        }
        let list: Vec<u8> = pages.iter().flat_map(|page| (*page as u32).to_le_bytes()).collect();
        ram.memory().write_slice(&list, GuestAddress(self.list_at)).unwrap();
        let (rip, rsi, rdi, rcx) = (CODE_AT, self.list_at, END, pages.len() as u64);
        self.fd.set_regs(&kvm_regs { rip, rsi, rdi, rcx, rflags: 2, ..Default::default() }).unwrap();
        loop {
            match self.fd.run().unwrap() {
                VcpuExit::MmioWrite(END, _) => break,
                VcpuExit::Unsupported(KVM_EXIT_DIRTY_RING_FULL) => {
                    self.ring_full_exits.fetch_add(1, Ordering::Relaxed);
                    self.ring_full.as_ref().expect("a ring that is full").drain().unwrap();
                }
                other => panic!("{other:?}"),
            }
        }
        // KVM finishes the instruction that left guest mode before it takes new registers.
        self.fd.set_kvm_immediate_exit(1);
        self.fd.run().expect_err("an immediate exit");
        self.fd.set_kvm_immediate_exit(0);
    }
}

/// Puts a vCPU into 64-bit mode at a privilege level.
fn long_mode(vcpu: VcpuFd, level: u8) -> VcpuFd {
    let mut sregs = vcpu.get_sregs().unwrap();
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (CR0, PML4_AT, CR4_PAE, EFER_LONG_MODE);
    sregs.cs.type_ = 0xb;
    sregs.ds.type_ = 0x3;
    sregs.es.type_ = 0x3;
    sregs.ss.type_ = 0x3;
    for segment in [&mut sregs.cs, &mut sregs.ds, &mut sregs.es, &mut sregs.ss] {
        (segment.base, segment.limit, segment.selector) = (0, u32::MAX, 8 + u16::from(level));
        (segment.g, segment.db, segment.s, segment.present, segment.dpl) = (1, 1, 1, 1, level);
    }
    (sregs.cs.l, sregs.cs.db) = (1, 0);
    vcpu.set_sregs(&sregs).unwrap();
    vcpu
}

fn addresses(ram: &GuestRam, dirty: &PageSet) -> BTreeSet<Page> {
    let address = |run: PageRun| {
        let base = ram.layout().block(run.block).unwrap().guest_base;
        (run.first..run.first + run.count).map(move |page| base + page * PAGE_SIZE as u64)
    };
    dirty.runs().flat_map(address).collect()
}

/// `count` pages of the first block above everything that the guest reads.
fn low(first: u64, count: u64) -> Vec<Page> {
    (first..first + count).map(|page| WRITTEN_FROM + page * PAGE_SIZE as u64).collect()
}

/// The last pages of the second block.
fn last(count: u64) -> Vec<Page> {
    (1037 - count..1037).map(|page| (1 << 30) + page * PAGE_SIZE as u64).collect()
}

fn set(lists: &[Vec<Page>]) -> BTreeSet<Page> {
    lists.iter().flatten().copied().collect()
}

const KINDS: [TrackerKind; 2] = [TrackerKind::Log, TrackerKind::Ring];

#[test]
fn a_harvest_is_what_was_written_since_the_last_one() {
    require!(Kvm);
    for (kind, vcpus) in KINDS.into_iter().flat_map(|kind| [(kind, 1), (kind, 2)]) {
        let mut vm = TestVm::new(kind, vcpus);
        let rounds = [
            [[low(0, 40), last(3)].concat(), low(30, 100)],
            // The same pages again, and written twice.
            [[low(39, 2), low(39, 2), last(1)].concat(), vec![]],
            [low(2000, 1), low(0, 1)],
        ];
        vm.write(&[low(500, 9), low(600, 9)]);
        vm.tracker.start().unwrap();
        assert_eq!(vm.harvest(), BTreeSet::new(), "{kind:?}: written before tracking");
        for lists in rounds {
            let lists = &lists[..vcpus as usize];
            vm.write(lists);
            assert_eq!(vm.harvest(), set(lists), "{kind:?} with {vcpus} vCPUs");
            assert_eq!(vm.harvest(), BTreeSet::new(), "{kind:?}: an idle guest");
        }
        vm.vmm_writes.mark(1 << 30, 5000);
        assert_eq!(vm.harvest(), BTreeSet::from([1 << 30, (1 << 30) + 4096]), "{kind:?}: the VMM's own");
    }
}

#[test]
fn tracking_ends_and_begins_anew() {
    require!(Kvm);
    for kind in KINDS {
        let mut vm = TestVm::new(kind, 1);
        for round in 0..3 {
            vm.tracker.start().unwrap();
            vm.write(&[low(round, 2)]);
            assert_eq!(vm.harvest(), set(&[low(round, 2)]), "{kind:?}");
            vm.write(&[low(10, 5)]);
            vm.tracker.stop().unwrap();
            vm.write(&[low(100, 5000)]);
        }
        vm.tracker.start().unwrap();
        assert_eq!(vm.harvest(), BTreeSet::new(), "{kind:?}: written before or between");
    }
}

#[test]
fn full_rings_lose_nothing() {
    require!(Kvm);
    let mut vm = TestVm::new(TrackerKind::Ring, 2);
    vm.tracker.start().unwrap();
    let lists = [low(0, 5000), low(5000, 5000)];
    for _ in 0..2 {
        vm.write(&lists);
        assert!(vm.harvest() == set(&lists), "pages are missing");
    }
    assert!(vm.vcpus[0].ring_full_exits.load(Ordering::Relaxed) >= 8, "10000 pages need full rings");
}

/// A KVM that emulates kernel mode may fill a ring past its end before it looks.
#[test]
fn an_overrun_ring_is_noticed() {
    require!(Kvm);
    let mut vm = TestVm::at_level(KERNEL, TrackerKind::Ring, 2);
    vm.tracker.start().unwrap();
    let lists = [low(0, 5000), low(5000, 5000)];
    vm.write(&lists);
    let mut dirty = PageSet::empty(vm.ram.layout());
    if vm.tracker.harvest(&mut dirty).is_ok() {
        let missing = set(&lists).difference(&addresses(&vm.ram, &dirty)).count();
        assert_eq!(missing, 0, "pages are missing and nobody noticed");
    }
    vm.tracker.stop().unwrap();
    vm.write(&lists);
}

#[test]
fn a_copy_kept_while_the_guest_writes_is_equal_in_the_end() {
    require!(Kvm);
    for kind in KINDS {
        let mut vm = TestVm::new(kind, 2);
        let TestVm { ram, tracker, vcpus, .. } = &mut vm;
        let pages = 700;
        let list = |seed: u64| -> Vec<Page> {
            // Few pages, often, in an order that repeats late: most writes meet a harvest or a read.
            (0..20_000).map(|n: u64| WRITTEN_FROM + (n * n + n * seed) % pages * PAGE_SIZE as u64).collect()
        };
        tracker.start().unwrap();
        let mut dirty = PageSet::empty(ram.layout());
        let mut copy = vec![0u8; pages as usize * PAGE_SIZE];
        let mut read = |ram: &GuestRam, dirty: &mut PageSet| {
            for run in dirty.runs().collect::<Vec<_>>() {
                dirty.remove(run);
                let Some(page) = run.first.checked_sub(WRITTEN_FROM / PAGE_SIZE as u64) else { continue };
                let at = page as usize * PAGE_SIZE;
                ram.slice(run).copy_to(&mut copy[at..at + run.bytes() as usize]);
            }
        };
        std::thread::scope(|scope| {
            let ram = &*ram;
            let writers: Vec<_> = vcpus
                .iter_mut()
                .zip([1, 7])
                .map(|(vcpu, seed)| scope.spawn(move || vcpu.write(ram, &list(seed))))
                .collect();
            while !writers.iter().all(|writer| writer.is_finished()) {
                tracker.harvest(&mut dirty).unwrap();
                read(ram, &mut dirty);
            }
        });
        tracker.harvest(&mut dirty).unwrap();
        read(ram, &mut dirty);
        let mut now = vec![0u8; copy.len()];
        ram.memory().read_slice(&mut now, GuestAddress(WRITTEN_FROM)).unwrap();
        assert!(now == copy, "{kind:?}: the copy lacks a write");
        assert!(now.iter().any(|byte| *byte != 0), "the guest wrote");
    }
}

#[test]
fn tracking_is_chosen_before_the_first_vcpu() {
    require!(Kvm);
    let vm = Arc::new(Kvm::new().unwrap().create_vm().unwrap());
    let chosen = DirtyTracking::enable(TrackerKind::Auto, &vm, SMALL_RING).unwrap().kind();
    assert_eq!(chosen, TrackerKind::Log);
    vm.create_vcpu(0).unwrap();
    let late = DirtyTracking::enable(TrackerKind::Ring, &vm, SMALL_RING);
    assert!(late.unwrap_err().to_string().contains("the VM has a vCPU already"));
}
