//! Threads that use the guest's RAM as vCPUs do: they wait where a page is missing, and check what they see.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use migrated_guest::GuestRam;
use migrated_pages::{BlockId, PAGE_SIZE, PageRun};
use migrated_testkit::Rng;

/// What pages were filled with, by whom only they are written.
pub type Writes = BTreeMap<(BlockId, u64), u8>;

/// Of so many pages one is read by all vCPUs and written by none; the others are one vCPU's each.
const SHARED_EVERY: u64 = 5;

pub struct Vcpus {
    threads: Vec<JoinHandle<Writes>>,
    stop: Arc<AtomicBool>,
}

impl Vcpus {
    /// vCPUs of a guest that just began to run; `origin` is its RAM at the source, which nothing changes now.
    pub fn start(count: usize, ram: &GuestRam, origin: &GuestRam) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = |index: usize| {
            let (ram, origin, stop) = (ram.clone(), origin.clone(), stop.clone());
            thread::spawn(move || run(index as u64, count as u64, &ram, &origin, &stop))
        };
        Self { threads: (0..count).map(thread).collect(), stop }
    }

    /// Ends them, and fails when one saw what it must not.
    pub fn stop(self) -> Writes {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().flat_map(|thread| thread.join().expect("it saw what it must")).collect()
    }
}

/// Memory after these writes.
pub fn apply(writes: &Writes, contents: &mut [Vec<u8>]) {
    for ((block, page), value) in writes {
        contents[block.index()][*page as usize * PAGE_SIZE..][..PAGE_SIZE].fill(*value);
    }
}

fn run(index: u64, count: u64, ram: &GuestRam, origin: &GuestRam, stop: &AtomicBool) -> Writes {
    let (mut rng, mut writes) = (Rng::new(index + 1), Writes::new());
    let (mut seen, mut expected) = ([0; PAGE_SIZE], [0; PAGE_SIZE]);
    let total = ram.layout().total_pages();
    let low = ram.layout().blocks()[0].pages;
    let mut touched = 0;
    while !stop.load(Ordering::Relaxed) {
        // Jumps, and runs of neighbours.
        touched = if rng.below(4) == 0 { rng.below(total) } else { (touched + 1) % total };
        let (block, first) = if touched < low { (BlockId(0), touched) } else { (BlockId(1), touched - low) };
        let is_shared = touched % SHARED_EVERY == 0;
        if !is_shared && touched % count != index {
            continue;
        }
        let page = PageRun { block, first, count: 1 };
        ram.slice(page).copy_to(&mut seen);
        match writes.get(&(block, first)) {
            Some(value) => expected.fill(*value),
            None => _ = origin.slice(page).copy_to(&mut expected),
        }
        assert!(seen == expected, "{page:?} holds {}…, not {}…", seen[0], expected[0]);
        if !is_shared && rng.below(2) == 0 {
            let value = rng.next() as u8;
            ram.slice(page).copy_from(&[value; PAGE_SIZE]);
            writes.insert((block, first), value);
        }
    }
    writes
}
