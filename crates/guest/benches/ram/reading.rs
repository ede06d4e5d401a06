//! The source's part, and the hashes of both ends.

use std::hint::black_box;

use criterion::Criterion;
use migrated_guest::GuestRam;
use migrated_pages::PageRun;

use crate::{ALL, BATCH, PAGES, RAM, batches, group, ram, untouched_ram};

/// Zero pages are read to their end, pages with data mostly only up to their first line, and pages without memory not
/// at all.
pub fn zero_scan(criterion: &mut Criterion) {
    let mut group = group(criterion, "guest/zero_scan");
    let rams: [(&str, GuestRam); 4] = [
        ("zero", ram(|_| false)),
        ("data", ram(|_| true)),
        ("alternating", ram(|page| page % 2 == 0)),
        ("untouched", untouched_ram()),
    ];
    for (name, ram) in rams {
        let mut parts = Vec::new();
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                parts.clear();
                batches().for_each(|batch| ram.split_zero(batch, &mut parts));
                black_box(&parts).len()
            });
        });
    }
}

/// Guest RAM copied out, as a transport does that can't send it in place: TLS, or the in-memory one.
pub fn page_read(criterion: &mut Criterion) {
    let mut group = group(criterion, "guest/page_read");
    let ram = ram(|_| true);
    // Every page once, and none beside the one before: 17 and the number of pages have no common divisor.
    let scattered = (0..PAGES).map(|at| PageRun { block: RAM, first: at * 17 % PAGES, count: 1 });
    for (name, runs) in [("batches", batches().collect::<Vec<_>>()), ("scattered", scattered.collect())] {
        let mut copy = vec![0u8; PageRun { count: BATCH, ..ALL }.bytes() as usize];
        let mut slices = Vec::new();
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                slices.clear();
                ram.slices(&runs, &mut slices);
                slices.iter().map(|slice| slice.copy_to(black_box(&mut copy[..]))).sum::<usize>()
            });
        });
    }
}

pub fn hash(criterion: &mut Criterion) {
    let mut group = group(criterion, "guest/hash");
    for (name, ram) in [("data", ram(|_| true)), ("zero", ram(|_| false))] {
        let mut hashes = Vec::with_capacity(PAGES as usize);
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                hashes.clear();
                batches().for_each(|batch| ram.hash_pages(batch, &mut hashes));
                black_box(&hashes).len()
            });
        });
    }
}
