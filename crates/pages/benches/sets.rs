//! What a round's dirty pages cost before any of them is read: harvested, cut into runs, handed out, counted.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use migrated_pages::{BlockId, PageRun, PageSet, RamBlock, RamLayout, ReceivedMap};

/// A guest of 1 GiB.
const PAGES: u64 = 1 << 18;
/// Pages of a batch of 1 MiB, as channels take them.
const BATCH: u64 = 256;
const RAM: BlockId = BlockId(0);

/// How a guest wrote, and the word of a dirty bitmap that it leaves again and again.
const PATTERNS: [(&str, u64); 3] = [
    // Every 16th page: each is a run of its own.
    ("scattered", 0x0001_0001_0001_0001),
    // 48 pages in a row, then 16 that nobody wrote.
    ("clustered", 0x0000_ffff_ffff_ffff),
    ("all", u64::MAX),
];

fn layout() -> RamLayout {
    let ram = RamBlock { name: "ram0".into(), guest_base: 0, pages: PAGES };
    RamLayout::new(vec![ram]).expect("one block")
}

fn bitmap(word: u64) -> Vec<u64> {
    vec![word; (PAGES / 64) as usize]
}

fn dirty(word: u64) -> PageSet {
    let mut set = PageSet::empty(&layout());
    set.insert_words(RAM, &bitmap(word));
    set
}

fn harvest(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pages/harvest");
    group.throughput(Throughput::Elements(PAGES));
    for (name, word) in PATTERNS {
        let (harvested, mut set) = (bitmap(word), PageSet::empty(&layout()));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                set.clear();
                set.insert_words(RAM, black_box(&harvested))
            });
        });
    }
    let (other, mut set) = (dirty(PATTERNS[1].1), dirty(PATTERNS[0].1));
    group.bench_function("union", |bencher| bencher.iter(|| set.union(black_box(&other))));
}

fn runs(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pages/runs");
    for (name, word) in PATTERNS {
        let set = dirty(word);
        group.throughput(Throughput::Elements(set.len()));
        group.bench_function(name, |bencher| {
            bencher.iter(|| black_box(&set).runs().map(|run| run.count).sum::<u64>());
        });
    }
}

/// What `Source::next_batch` does with the pages that are still to go.
fn hand_out(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pages/hand_out");
    for (name, word) in PATTERNS {
        let (full, mut rest) = (dirty(word), PageSet::empty(&layout()));
        group.throughput(Throughput::Elements(full.len()));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                rest.union(&full);
                let mut cursor = 0;
                while let Some(run) = rest.next_run(RAM, cursor, BATCH) {
                    cursor = run.first + run.count;
                    black_box(rest.remove(run));
                }
            });
        });
    }
}

fn receive(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pages/receive");
    group.throughput(Throughput::Elements(PAGES));
    for (name, count) in [("batches", BATCH), ("single_pages", 1)] {
        let mut map = ReceivedMap::new(&layout());
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                map.remove(PageRun { block: RAM, first: 0, count: PAGES });
                for first in (0..PAGES).step_by(count as usize) {
                    map.insert(PageRun { block: RAM, first, count });
                }
                map.is_complete()
            });
        });
    }
}

criterion_group!(benches, harvest, runs, hand_out, receive);
criterion_main!(benches);
