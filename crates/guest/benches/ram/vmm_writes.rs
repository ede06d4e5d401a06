//! Dirty tracking as far as it needs no KVM: the VMM's own writes.

use criterion::{Criterion, Throughput};
use migrated_guest::VmmWrites;
use migrated_pages::{PAGE_SIZE, PageSet, RamBlock, RamLayout};

/// A guest of 64 GiB, where a harvest that looks at each page would be seen.
const PAGES: u64 = 16 << 20;
/// Pages that devices wrote since the last harvest.
const WRITTEN: u64 = 1000;

pub fn harvest(criterion: &mut Criterion) {
    let ram = RamBlock { name: "ram0".into(), guest_base: 0, pages: PAGES };
    let layout = RamLayout::new(vec![ram]).expect("one block");
    let (writes, mut dirty) = (VmmWrites::new(&layout), PageSet::empty(&layout));

    let mut group = criterion.benchmark_group("guest/vmm_writes");
    group.bench_function("harvest_of_none", |bencher| bencher.iter(|| writes.take_into(&mut dirty)));
    group.throughput(Throughput::Elements(WRITTEN));
    group.bench_function("marked_and_harvested", |bencher| {
        bencher.iter(|| {
            // Rings and buffers lie close together, in several places.
            for page in 0..WRITTEN {
                let at = page % 8 * (PAGES / 8) + page / 8;
                writes.mark(at * PAGE_SIZE as u64, 1500);
            }
            writes.take_into(&mut dirty)
        });
    });
}
