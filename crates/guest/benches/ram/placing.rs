//! The destination's part: what a received page costs until the guest has it. Pages come out of a buffer here, where a
//! transport copies them out of a socket.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::Criterion;
use migrated_guest::{GuestRam, PostcopyError, PostcopyRam};
use migrated_pages::{PageRun, PageSet};
use vm_memory::VolatileSlice;

use crate::{ALL, BATCH, batches, group, ram};

fn received() -> Vec<u8> {
    vec![0x5a; PageRun { count: BATCH, ..ALL }.bytes() as usize]
}

fn receive(batch: &[u8], into: &[VolatileSlice<'_>]) {
    let mut rest = black_box(batch);
    for slice in into {
        let (now, later) = rest.split_at(slice.len());
        slice.copy_from(now);
        rest = later;
    }
}

/// Pre-copy: straight into guest RAM, by the guest's mapping or, when post-copy may follow, by a second one.
pub fn in_place(criterion: &mut Criterion) {
    let mut group = group(criterion, "guest/place");
    let (ram, received) = (ram(|_| true), received());
    let mut bench = |name: &str, ram: &GuestRam| {
        let mut slices = Vec::new();
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                for batch in batches() {
                    slices.clear();
                    ram.slices(&[batch], &mut slices);
                    receive(&received, &slices);
                }
            });
        });
    };
    bench("guest_mapping", &ram);
    match PostcopyRam::prepare(&ram) {
        Ok(prepared) => bench("second_mapping", prepared.staging()),
        Err(error) => skipped("guest/place/second_mapping", &error),
    }
}

/// Post-copy: into the second mapping, then UFFDIO_CONTINUE. Taking the pages out of the guest's mapping, so that there is
/// something to place, is not measured.
pub fn postcopy(criterion: &mut Criterion) {
    let ram = ram(|_| true);
    let (all, none) = (PageSet::full(ram.layout()), PageSet::empty(ram.layout()));
    let armed = PostcopyRam::prepare(&ram).and_then(|prepared| prepared.arm(&none));
    let armed = match armed {
        Ok(armed) => armed,
        Err(error) => return skipped("guest/postcopy", &error),
    };
    let received = received();
    let mut group = group(criterion, "guest/postcopy");
    let mut bench = |name: &str, count: u64| {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|times| {
                let mut placing = Duration::ZERO;
                for _ in 0..times {
                    armed.arm_more(&all).expect("nothing is missing");
                    let begun = Instant::now();
                    place_all(&armed, count, &received);
                    placing += begun.elapsed();
                }
                placing
            });
        });
    };
    bench("batches", BATCH);
    bench("single_pages", 1);
    group.finish();
    armed.finish().expect("everything was placed");
}

/// Places all pages, `count` at a time.
fn place_all(armed: &PostcopyRam, count: u64, received: &[u8]) {
    let (mut slices, mut placed) = (Vec::new(), Vec::new());
    for first in (0..ALL.count).step_by(count as usize) {
        let claim = armed.claim([PageRun { first, count, ..ALL }]);
        slices.clear();
        claim.slices(&mut slices);
        receive(received, &slices);
        claim.place(&mut placed).expect("the pages are missing and have memory");
    }
}

fn skipped(benchmark: &str, error: &PostcopyError) {
    eprintln!("{benchmark} is not measured: {error}");
}
