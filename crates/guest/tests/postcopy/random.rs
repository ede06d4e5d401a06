//! Random scenarios against an oracle: two threads are the guest, one answers faults, one pushes.

use migrated_guest::{GuestRam, PostcopyRam};
use migrated_pages::{BlockId, PageRun, PageSet};
use migrated_testkit::{Rng, require};
use std::thread;

use crate::ram::{PAGES, Ram, every_page, new, old, read, receive, run, serve, write};

const SCENARIOS: u64 = 2000;
/// Threads that play the guest; each has pages of its own.
const GUESTS: u64 = 2;
/// Accesses of each.
const ACCESSES: u64 = 60;

#[test]
fn whatever_the_order_the_guest_sees_each_page_once_and_right() {
    require!(Userfaultfd);
    (0..SCENARIOS).for_each(scenario);
}

/// What a page holds at the source.
fn source(seed: u64, block: BlockId, page: u64) -> u64 {
    // Long stretches of zero pages, and single ones.
    if (page / 24 + seed).is_multiple_of(3) || (page * 7 + seed).is_multiple_of(11) {
        0
    } else {
        new(block, page)
    }
}

fn random_run(rng: &mut Rng) -> PageRun {
    let block = BlockId(rng.below(2) as u16);
    let first = rng.below(PAGES[block.index()]);
    let count = 1 + rng.below(PAGES[block.index()] - first).min(rng.below(40));
    run(block, first, count)
}

fn scenario(seed: u64) {
    let rng = &mut Rng::new(seed);
    let ram = if seed.is_multiple_of(2) { Ram::full() } else { Ram::empty() };
    let old = |block, page| if seed.is_multiple_of(2) { old(block, page) } else { 0 };
    let runs = |rng: &mut Rng| (0..rng.below(12)).map(|_| random_run(rng)).collect::<Vec<_>>();
    let stale = match seed % 5 {
        0 => PageSet::full(ram.ram.layout()),
        _ => ram.set(&runs(rng)),
    };
    let mut prepared = PostcopyRam::prepare(&ram.ram).unwrap();
    prepared.unmap(&ram.set(&runs(rng))).unwrap();
    let postcopy = prepared.arm(&stale).unwrap();
    let came = |block, page| {
        if stale.contains(block, page) { source(seed, block, page) } else { old(block, page) }
    };

    let written: Vec<Vec<(BlockId, u64, u64)>> = thread::scope(|scope| {
        let (mut answers, postcopy) = (rng.clone(), &postcopy);
        let (stop, reader) = serve(scope, postcopy, move |fault| {
            // A bubble of pages around the fault.
            let first = fault.page - fault.page.min(answers.below(4));
            let count = (fault.page - first + 1 + answers.below(4)).min(PAGES[fault.block.index()] - first);
            send(postcopy, &mut answers, seed, run(fault.block, first, count));
        });
        let guests: Vec<_> = (0..GUESTS)
            .map(|index| {
                let (ram, mut rng) = (&ram.ram, Rng::new(seed ^ (index + 1) << 32));
                scope.spawn(move || play(ram, &mut rng, index, came))
            })
            .collect();
        postcopy.map_present().unwrap();
        while postcopy.missing().count() > 0 {
            let mut wanted = random_run(rng);
            if rng.below(2) == 0 {
                // What is left, as the background push knows it from the received map.
                let left = every_page().find(|(block, page)| postcopy.missing().contains(*block, *page));
                let Some((block, page)) = left else { break };
                wanted = run(block, page, 1 + rng.below(PAGES[block.index()] - page));
            }
            send(postcopy, rng, seed, wanted);
        }
        let written = guests.into_iter().map(|guest| guest.join().unwrap()).collect();
        stop.stop();
        let reported = reader.join().unwrap();
        assert!(reported.iter().all(|fault| stale.contains(fault.block, fault.page)), "seed {seed}");
        written
    });
    postcopy.finish().unwrap();

    let mut expected: Vec<((BlockId, u64), u64)> =
        every_page().map(|(block, page)| ((block, page), came(block, page))).collect();
    for (block, page, word) in written.into_iter().flatten() {
        expected.iter_mut().find(|(name, _)| *name == (block, page)).unwrap().1 = word;
    }
    for ((block, page), expected) in expected {
        assert_eq!(read(&ram.ram, block, page), expected, "seed {seed}: page {page} of {block:?}");
    }
}

/// A frame arrives: zero pages by their names, others with content; now and then the link dies first.
fn send(postcopy: &PostcopyRam, rng: &mut Rng, seed: u64, wanted: PageRun) {
    let pages = wanted.first..wanted.first + wanted.count;
    let mut placed = Vec::new();
    let is_zero = |page: &u64| source(seed, wanted.block, *page) == 0;
    let mut runs: Vec<(PageRun, bool)> = Vec::new();
    for page in pages {
        match runs.last_mut() {
            Some((last, zero)) if *zero == is_zero(&page) => last.count += 1,
            _ => runs.push((run(wanted.block, page, 1), is_zero(&page))),
        }
    }
    let data: Vec<_> = runs.iter().filter(|(_, zero)| !zero).map(|(run, _)| *run).collect();
    while rng.below(4) == 0 {
        let lost = postcopy.claim(data.iter().copied());
        receive(&lost, &data, |_, _| 0xdead);
    }
    let claim = postcopy.claim(data.iter().copied());
    receive(&claim, &data, |block, page| source(seed, block, page));
    claim.place(&mut placed).unwrap();
    for (run, _) in runs.iter().filter(|(_, zero)| *zero) {
        postcopy.place_zero(*run, &mut placed).unwrap();
    }
    assert!(placed.iter().all(|run| !postcopy.missing().contains(run.block, run.first)));
}

/// Reads and writes pages of its own; returns what it wrote last.
fn play(
    ram: &GuestRam,
    rng: &mut Rng,
    index: u64,
    came: impl Fn(BlockId, u64) -> u64,
) -> Vec<(BlockId, u64, u64)> {
    let mut written: Vec<(BlockId, u64, u64)> = Vec::new();
    for access in 0..ACCESSES {
        let run = random_run(rng);
        let (block, page) =
            (run.block, (run.first / GUESTS * GUESTS + index).min(PAGES[run.block.index()] - 1));
        if page % GUESTS != index {
            continue;
        }
        let mine = written.iter().position(|(b, p, _)| (*b, *p) == (block, page));
        if rng.below(2) == 0 {
            let word = 3 << 40 | access;
            write(ram, block, page, word);
            match mine {
                Some(at) => written[at].2 = word,
                None => written.push((block, page, word)),
            }
        } else {
            let expected = mine.map_or_else(|| came(block, page), |at| written[at].2);
            assert_eq!(read(ram, block, page), expected, "page {page} of {block:?}");
        }
        if rng.below(16) == 0 {
            thread::yield_now();
        }
    }
    written
}
