//! What a frame's head and table cost, made by the source and checked by the destination. The payload isn't touched
//! here: it goes from guest RAM to guest RAM.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use migrated_pages::{BlockId, PageRun, RamBlock, RamLayout};
use migrated_wire::{
    FRAME_HEAD_LEN, FrameHead, FrameKind, FrameRun, PageClass, RUN_LEN, decode_table, encode_run,
};

/// Two blocks, as a guest with more RAM than fits below 4 GiB has.
fn layout() -> RamLayout {
    let block = |name: &str, guest_base, pages| RamBlock { name: name.into(), guest_base, pages };
    RamLayout::new(vec![block("ram0", 0, 3 << 18), block("ram1", 4 << 30, 1 << 18)]).expect("two blocks")
}

/// Frames of 1 MiB: one run, as of RAM that is sent for the first time, and as many runs as pages, as of pages that
/// were written at random; every fourth of those is zero.
fn frames() -> [(&'static str, Vec<FrameRun>); 2] {
    let run = |first, count, class| FrameRun { pages: PageRun { block: BlockId(1), first, count }, class };
    let scattered = (0..256).map(|page| {
        let class = if page % 4 == 0 { PageClass::Zero } else { PageClass::Data };
        run(page * 7, 1, class)
    });
    [("one_run", vec![run(4096, 256, PageClass::Data)]), ("scattered", scattered.collect())]
}

fn encode_into(runs: &[FrameRun], out: &mut Vec<u8>) {
    FrameHead { kind: FrameKind::Pages, iteration: 3, runs: runs.len() as u32, pages: 0 }.encode(out);
    runs.iter().for_each(|run| encode_run(run, out));
}

fn encode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wire/encode");
    for (name, runs) in frames() {
        let mut out = Vec::with_capacity(FRAME_HEAD_LEN + runs.len() * RUN_LEN);
        group.throughput(Throughput::Elements(runs.len() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                out.clear();
                encode_into(black_box(&runs), &mut out);
                black_box(&out).len()
            });
        });
    }
}

fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wire/decode");
    let layout = layout();
    for (name, runs) in frames() {
        let mut bytes = Vec::new();
        encode_into(&runs, &mut bytes);
        let mut decoded = Vec::with_capacity(runs.len());
        group.throughput(Throughput::Elements(runs.len() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let (head, table) = black_box(&bytes).split_first_chunk().expect("a whole head");
                let head = FrameHead::decode(head).expect("a valid head");
                decode_table(&head, table, &layout, &mut decoded).expect("a valid table")
            });
        });
    }
}

criterion_group!(benches, encode, decode);
criterion_main!(benches);
