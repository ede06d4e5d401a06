//! What guest RAM costs on a page's way: found zero, read, hashed, placed; and what the VMM's own writes cost.

mod placing;
mod reading;
mod vmm_writes;

use std::fs::File;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use migrated_guest::GuestRam;
use migrated_pages::{BlockId, PAGE_SIZE, PageRun};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

/// 64 MiB, of which caches hold little from one iteration to the next, as of a guest's RAM.
const PAGES: u64 = 16384;
/// Pages of a batch of 1 MiB, as channels take them.
const BATCH: u64 = 256;
const RAM: BlockId = BlockId(0);

const ALL: PageRun = PageRun { block: RAM, first: 0, count: PAGES };

/// RAM in a memfd, as a VM process has it. Pages for which `has_data` says so hold data, all others are zero, and
/// all have memory: first touches would be all that is measured.
fn ram(has_data: impl Fn(u64) -> bool) -> GuestRam {
    let ram = untouched_ram();
    for page in 0..PAGES {
        let byte = if has_data(page) { (page % 251 + 1) as u8 } else { 0 };
        let at = GuestAddress(page * PAGE_SIZE as u64);
        ram.memory().write_slice(&[byte; PAGE_SIZE], at).expect("the page is RAM");
    }
    ram
}

/// The same, of which no page was ever touched.
fn untouched_ram() -> GuestRam {
    let fd = rustix::fs::memfd_create("bench", rustix::fs::MemfdFlags::CLOEXEC).expect("a memfd");
    let (file, size) = (File::from(fd), PAGES as usize * PAGE_SIZE);
    file.set_len(size as u64).expect("a memfd of 64 MiB");
    let region = GuestRegionMmap::from_range(GuestAddress(0), size, Some(FileOffset::new(file, 0)));
    let memory = GuestMemoryMmap::from_regions(vec![region.expect("a mapping")]);
    GuestRam::new(memory.expect("one region")).expect("whole pages")
}

/// Benchmarks that each go over all of the RAM: so long that each sample is a few iterations.
fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Bytes(ALL.bytes())).sampling_mode(SamplingMode::Flat);
    group
}

/// Batches that follow each other.
fn batches() -> impl Iterator<Item = PageRun> {
    (0..PAGES).step_by(BATCH as usize).map(|first| PageRun { block: RAM, first, count: BATCH })
}

criterion_group!(
    benches,
    reading::zero_scan,
    reading::page_read,
    reading::hash,
    placing::in_place,
    placing::postcopy,
    vmm_writes::harvest
);
criterion_main!(benches);
