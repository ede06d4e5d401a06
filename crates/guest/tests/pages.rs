//! What [`GuestRam`] says of its pages, against looking at every byte.

use migrated_guest::{GuestRam, PageClass};
use migrated_pages::{BlockId, PAGE_SIZE, PageRun};
use proptest::prelude::*;
use std::fs::File;
use std::os::unix::fs::MetadataExt;

use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};
use xxhash_rust::xxh3::xxh3_64;

const PAGES: u64 = 24;
/// The block that is written; the other begins at address 0.
const BLOCK: BlockId = BlockId(1);
const BASE: u64 = 1 << 32;

fn ram(content: &[(usize, u8)]) -> (GuestRam, Vec<u8>) {
    let bytes = PAGES as usize * PAGE_SIZE;
    let memory =
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), PAGE_SIZE), (GuestAddress(BASE), bytes)]).unwrap();
    let mut copy = vec![0; bytes];
    content.iter().for_each(|(at, value)| copy[*at] = *value);
    memory.write_slice(&copy, GuestAddress(BASE)).unwrap();
    (GuestRam::new(memory).unwrap(), copy)
}

fn bytes() -> impl Strategy<Value = Vec<(usize, u8)>> {
    prop::collection::vec((0..PAGES as usize * PAGE_SIZE, 0..3u8), 0..16)
}

fn run() -> impl Strategy<Value = PageRun> {
    (0..PAGES).prop_flat_map(|first| {
        (1..=PAGES - first).prop_map(move |count| PageRun { block: BLOCK, first, count })
    })
}

fn page(copy: &[u8], index: u64) -> &[u8] {
    &copy[index as usize * PAGE_SIZE..][..PAGE_SIZE]
}

fn is_zero(copy: &[u8], index: u64) -> bool {
    page(copy, index).iter().all(|byte| *byte == 0)
}

/// The same in a memfd, of which only pages with content were ever touched.
fn sparse(content: &[(usize, u8)]) -> (GuestRam, File, Vec<u8>) {
    let bytes = PAGES as usize * PAGE_SIZE;
    let file = File::from(rustix::fs::memfd_create("pages", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    file.set_len(bytes as u64).unwrap();
    let backing = FileOffset::new(file.try_clone().unwrap(), 0);
    let region = GuestRegionMmap::from_range(GuestAddress(BASE), bytes, Some(backing)).unwrap();
    let low = GuestRegionMmap::from_range(GuestAddress(0), PAGE_SIZE, None).unwrap();
    let memory = GuestMemoryMmap::from_regions(vec![low, region]).unwrap();
    let mut copy = vec![0; bytes];
    for (at, value) in content {
        copy[*at] = *value;
        memory.write_obj(*value, GuestAddress(BASE + *at as u64)).unwrap();
    }
    (GuestRam::new(memory).unwrap(), file, copy)
}

proptest! {
    #[test]
    fn untouched_memory_is_found_zero_and_stays_untouched(content in bytes(), run in run()) {
        let (ram, file, copy) = sparse(&content);
        let touched = file.metadata().unwrap().blocks();
        let mut out = Vec::new();
        ram.split_zero(run, &mut out);
        let parts = out.iter().flat_map(|(part, class)| (part.first..part.first + part.count).map(move |p| (p, *class)));
        let parts: Vec<_> = parts.collect();
        prop_assert_eq!(parts.len() as u64, run.count);
        for ((page, class), expected) in parts.into_iter().zip(run.first..) {
            prop_assert_eq!(page, expected);
            prop_assert_eq!(class == PageClass::Zero, is_zero(&copy, page));
        }
        prop_assert!(out.windows(2).all(|pair| pair[0].1 != pair[1].1), "neighbours differ");
        // What lies close behind a touched page is looked at, and short runs are.
        if run.count >= 16 && content.is_empty() {
            prop_assert_eq!(file.metadata().unwrap().blocks(), touched);
        }
    }

    #[test]
    fn zero_pages_are_split_off_in_maximal_runs(content in bytes(), run in run()) {
        let (ram, copy) = ram(&content);
        let earlier = (PageRun { block: BLOCK, first: 0, count: 1 }, PageClass::Zero);
        let mut out = vec![earlier];
        ram.split_zero(run, &mut out);
        prop_assert_eq!(out.remove(0), earlier, "what was there stays");
        let mut next = run.first;
        for (part, class) in &out {
            prop_assert_eq!((part.block, part.first), (run.block, next));
            next += part.count;
            for index in part.first..next {
                prop_assert_eq!(is_zero(&copy, index), *class == PageClass::Zero);
                prop_assert_eq!(ram.is_zero(BLOCK, index), *class == PageClass::Zero);
            }
        }
        prop_assert_eq!(next, run.first + run.count);
        prop_assert!(out.windows(2).all(|pair| pair[0].1 != pair[1].1), "neighbours differ");
    }

    #[test]
    fn zeroing_changes_the_run_and_nothing_else(content in bytes(), run in run()) {
        let (ram, mut expected) = ram(&content);
        ram.zero(run);
        expected[run.first as usize * PAGE_SIZE..][..run.bytes() as usize].fill(0);
        let mut now = vec![0; expected.len()];
        ram.memory().read_slice(&mut now, GuestAddress(BASE)).unwrap();
        prop_assert!(now == expected);
    }

    #[test]
    fn zeroing_what_is_populated_gives_no_page_memory(content in bytes(), run in run()) {
        let (ram, file, mut expected) = sparse(&content);
        let touched = file.metadata().unwrap().blocks();
        ram.zero_populated(run);
        prop_assert_eq!(file.metadata().unwrap().blocks(), touched);
        expected[run.first as usize * PAGE_SIZE..][..run.bytes() as usize].fill(0);
        let mut now = vec![0; expected.len()];
        ram.memory().read_slice(&mut now, GuestAddress(BASE)).unwrap();
        prop_assert!(now == expected);
    }

    #[test]
    fn hashes_and_slices_are_of_the_pages_asked_for(content in bytes(), runs in prop::collection::vec(run(), 0..4)) {
        let (ram, copy) = ram(&content);
        let (mut hashes, mut slices) = (Vec::new(), Vec::new());
        runs.iter().for_each(|run| ram.hash_pages(*run, &mut hashes));
        ram.slices(&runs, &mut slices);
        let pages = runs.iter().flat_map(|run| run.first..run.first + run.count);
        prop_assert_eq!(hashes, pages.map(|index| xxh3_64(page(&copy, index))).collect::<Vec<_>>());
        prop_assert_eq!(slices.len(), runs.len());
        for (slice, run) in slices.iter().zip(&runs) {
            let mut read = vec![0; slice.len()];
            slice.copy_to(&mut read[..]);
            prop_assert!(read == copy[run.first as usize * PAGE_SIZE..][..run.bytes() as usize]);
        }
    }
}

#[test]
#[should_panic = "outside of guest RAM"]
fn a_run_outside_is_refused() {
    let (ram, _) = ram(&[]);
    let _ = ram.slice(PageRun { block: BLOCK, first: PAGES - 1, count: 2 });
}

/// RAM of two blocks in memfds, of which the pages for which `has` says so have content.
fn large(pages: u64, has: impl Fn(u64) -> bool) -> GuestRam {
    let region = |base: u64, pages: u64| {
        let bytes = pages as usize * PAGE_SIZE;
        let file = File::from(rustix::fs::memfd_create("pages", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        file.set_len(bytes as u64).unwrap();
        GuestRegionMmap::from_range(GuestAddress(base), bytes, Some(FileOffset::new(file, 0))).unwrap()
    };
    let memory = GuestMemoryMmap::from_regions(vec![region(0, 40), region(BASE, pages)]).unwrap();
    for page in (0..pages).filter(|page| has(*page)) {
        memory.write_obj(1u8, GuestAddress(BASE + page * PAGE_SIZE as u64)).unwrap();
    }
    GuestRam::new(memory).unwrap()
}

#[test]
fn pages_with_content_are_counted_in_a_small_guest_and_estimated_in_a_large_one() {
    assert_eq!(large(1000, |page| page % 3 == 0).estimate_nonzero(), 334);
    assert_eq!(large(1000, |_| false).estimate_nonzero(), 0);
    // 800 MiB, of which a third is looked at, in one place of each part of 49 pages: no rhythm must deceive it.
    let pages = 200_000;
    for (name, has) in [
        ("the first quarter", (|page| page < 50_000) as fn(u64) -> bool),
        ("every fourth page", |page| page % 4 == 0),
        ("the first quarter of each 4 MiB", |page| page % 1024 < 256),
        ("the first quarter of each part", |page| page % 49 < 12),
    ] {
        let estimate = large(pages, has).estimate_nonzero() as f64 / pages as f64;
        assert!((0.23..0.27).contains(&estimate), "{name}: {estimate}");
    }
}
