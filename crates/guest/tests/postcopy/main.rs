//! Post-copy on the real userfaultfd, with threads as vCPUs.

mod ram;
mod random;

use std::collections::BTreeSet;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use migrated_guest::{GuestRam, PostcopyError, PostcopyRam};
use migrated_testkit::require;
use rustix::fs::MemfdFlags;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use ram::{HIGH, LOW, PAGES, Ram, every_page, new, old, place, read, receive, run, serve, write};

#[test]
fn stale_pages_wait_for_their_content_and_others_do_not_wait() {
    require!(Userfaultfd);
    let ram = Ram::full();
    // At both ends of the blocks and on both sides of a bitmap's word.
    let stale = [run(LOW, 0, 1), run(LOW, 63, 2), run(LOW, PAGES[0] - 1, 1), run(HIGH, 0, 70)];
    let postcopy = ram.arm(&stale);
    let is_stale = ram.set(&stale);
    // Nobody reads faults yet: whoever touches a page that traps, waits forever.
    for (block, page) in every_page().filter(|(block, page)| !is_stale.contains(*block, *page)) {
        assert_eq!(read(&ram.ram, block, page), old(block, page));
    }
    thread::scope(|scope| {
        let (stop, reader) = serve(scope, &postcopy, |fault| {
            place(&postcopy, &[run(fault.block, fault.page, 1)]);
        });
        for (block, page) in every_page() {
            let expected = if is_stale.contains(block, page) { new(block, page) } else { old(block, page) };
            assert_eq!(read(&ram.ram, block, page), expected, "page {page} of {block:?}");
        }
        stop.stop();
        let faults = reader.join().unwrap();
        assert_eq!(faults.len() as u64, is_stale.len(), "one fault each");
        assert!(faults.iter().all(|fault| is_stale.contains(fault.block, fault.page) && !fault.is_write));
    });
    assert_eq!(postcopy.missing().count(), 0);
    postcopy.finish().unwrap();
}

#[test]
fn memory_that_was_never_touched_is_provided_without_asking_anybody() {
    require!(Userfaultfd);
    let ram = Ram::empty();
    let postcopy = ram.arm(&[run(LOW, 5, 1)]);
    thread::scope(|scope| {
        let (stop, reader) =
            serve(scope, &postcopy, |fault| drop(place(&postcopy, &[run(fault.block, fault.page, 1)])));
        write(&ram.ram, HIGH, 3, 77);
        assert_eq!(read(&ram.ram, HIGH, 3), 77);
        assert_eq!(read(&ram.ram, LOW, 6), 0);
        assert_eq!(read(&ram.ram, LOW, 5), new(LOW, 5), "a missing page that the file doesn't have");
        stop.stop();
        let asked: Vec<_> = reader.join().unwrap().iter().map(|fault| (fault.block, fault.page)).collect();
        assert_eq!(asked, [(LOW, 5)]);
    });
    assert!(ram.allocated() <= 3 * 8, "only what was touched got memory");
    postcopy.finish().unwrap();
}

#[test]
fn many_threads_wait_for_one_page_and_all_are_woken() {
    require!(Userfaultfd);
    const THREADS: usize = 16;
    let ram = Ram::full();
    let postcopy = ram.arm(&[run(HIGH, 9, 1)]);
    let mut reader = postcopy.faults().unwrap();
    thread::scope(|scope| {
        let (ids, told) = mpsc::channel();
        let threads: Vec<_> = (0..THREADS)
            .map(|index| {
                let (ram, ids) = (&ram.ram, ids.clone());
                scope.spawn(move || {
                    ids.send(rustix::thread::gettid().as_raw_nonzero().get() as u32).unwrap();
                    if index % 2 == 0 {
                        // Writes the middle of the page, which nobody else looks at.
                        let at = GuestAddress((1 << 32) + 9 * 4096 + 64 * (1 + index as u64));
                        vm_memory::Bytes::write_obj(ram.memory(), 1u64, at).unwrap();
                    }
                    read(ram, HIGH, 9)
                })
            })
            .collect();
        let mut faults = Vec::new();
        while faults.len() < THREADS {
            assert!(reader.next(Duration::ZERO, &mut faults).unwrap());
        }
        assert!(faults.iter().all(|fault| (fault.block, fault.page) == (HIGH, 9)));
        assert_eq!(faults.iter().filter(|fault| fault.is_write).count(), THREADS / 2);
        let waiting: BTreeSet<u32> = faults.iter().map(|fault| fault.thread).collect();
        assert_eq!(waiting, told.iter().take(THREADS).collect());
        assert_eq!(place(&postcopy, &[run(HIGH, 9, 1)]), [run(HIGH, 9, 1)]);
        for thread in threads {
            assert_eq!(thread.join().unwrap(), new(HIGH, 9));
        }
    });
    postcopy.finish().unwrap();
}

#[test]
fn what_the_guest_wrote_is_never_overwritten() {
    require!(Userfaultfd);
    let ram = Ram::full();
    let stale = [run(LOW, 10, 20)];
    let postcopy = ram.arm(&stale);
    assert_eq!(place(&postcopy, &[run(LOW, 12, 2)]), [run(LOW, 12, 2)]);
    write(&ram.ram, LOW, 12, 7);
    // The same pages once more, amid others: they go nowhere, the others to their places.
    assert_eq!(place(&postcopy, &[run(LOW, 11, 4)]), [run(LOW, 11, 1), run(LOW, 14, 1)]);
    assert_eq!(place(&postcopy, &[run(LOW, 11, 4), run(HIGH, 0, 40)]), []);
    let mut placed = Vec::new();
    postcopy.place_zero(run(LOW, 11, 4), &mut placed).unwrap();
    assert_eq!(placed, []);
    let found = [10, 11, 12, 13, 14].map(|page| read(postcopy.staging(), LOW, page));
    assert_eq!(found, [old(LOW, 10), new(LOW, 11), 7, new(LOW, 13), new(LOW, 14)]);
    assert_eq!(postcopy.missing().count(), 16);
    postcopy.abandon().unwrap();
}

#[test]
fn a_claim_that_is_dropped_leaves_the_pages_missing_for_the_next() {
    require!(Userfaultfd);
    let ram = Ram::full();
    let postcopy = ram.arm(&[run(LOW, 0, 8)]);
    let claim = postcopy.claim([run(LOW, 0, 4), run(LOW, 2, 4)]);
    assert_eq!(claim.runs().collect::<Vec<_>>(), [run(LOW, 0, 4), run(LOW, 4, 2)], "no page twice");
    receive(&claim, &[run(LOW, 0, 4), run(LOW, 2, 4)], |_, _| 99);
    assert_eq!(postcopy.claim([run(LOW, 0, 8)]).runs().collect::<Vec<_>>(), [run(LOW, 6, 2)]);
    drop(claim);
    assert_eq!(postcopy.missing().count(), 8);
    assert_eq!(place(&postcopy, &[run(LOW, 0, 8)]), [run(LOW, 0, 8)]);
    assert!((0..8).all(|page| read(&ram.ram, LOW, page) == new(LOW, page)));
    postcopy.finish().unwrap();
}

#[test]
fn zero_pages_become_zero_and_get_memory_only_where_there_was_some() {
    require!(Userfaultfd);
    let ram = Ram::empty();
    write(&ram.ram, LOW, 70, old(LOW, 70));
    let before = ram.allocated();
    let postcopy = ram.arm(&[run(LOW, 0, PAGES[0]), run(HIGH, 0, PAGES[1])]);
    thread::scope(|scope| {
        let mut reader = postcopy.faults().unwrap();
        let waits = scope.spawn(|| read(&ram.ram, LOW, 100));
        let mut faults = Vec::new();
        assert!(reader.next(Duration::ZERO, &mut faults).unwrap());
        assert_eq!((faults[0].block, faults[0].page), (LOW, 100));
        let stop = reader.stop_handle();
        let provides = scope.spawn(move || reader.next(Duration::ZERO, &mut Vec::new()).unwrap());
        let mut placed = Vec::new();
        for run in [run(LOW, 0, PAGES[0]), run(HIGH, 0, PAGES[1])] {
            postcopy.place_zero(run, &mut placed).unwrap();
        }
        assert_eq!(placed.iter().map(|run| run.count).sum::<u64>(), PAGES.iter().sum::<u64>());
        assert_eq!(waits.join().unwrap(), 0, "who waited already is woken");
        assert_eq!(read(&ram.ram, LOW, 70), 0, "what was there is gone");
        assert!(ram.allocated() <= before + 17 * 8, "untouched memory stays so");
        assert_eq!(read(&ram.ram, HIGH, 5), 0);
        stop.stop();
        assert!(!provides.join().unwrap(), "nothing to ask for");
    });
    postcopy.finish().unwrap();
}

#[test]
fn a_short_run_of_zero_pages_needs_no_second_fault() {
    require!(Userfaultfd);
    let ram = Ram::empty();
    let postcopy = ram.arm(&[run(HIGH, 0, 8)]);
    postcopy.place_zero(run(HIGH, 0, 8), &mut Vec::new()).unwrap();
    // Nobody reads faults.
    assert!((0..8).all(|page| read(&ram.ram, HIGH, page) == 0));
    postcopy.finish().unwrap();
}

#[test]
fn pages_unmapped_by_mistake_come_back() {
    require!(Userfaultfd);
    let ram = Ram::empty();
    // The file lacks a page in the middle.
    let has = |page: &u64| *page != 42;
    (20..60).filter(has).for_each(|page| write(&ram.ram, LOW, page, old(LOW, page)));
    let mut prepared = PostcopyRam::prepare(&ram.ram).unwrap();
    prepared.unmap(&ram.set(&[run(LOW, 10, 40), run(LOW, 60, 5)])).unwrap();
    let postcopy = prepared.arm(&ram.set(&[run(LOW, 30, 3), run(LOW, 35, 1)])).unwrap();
    postcopy.map_present().unwrap();
    for page in (20..60).filter(has).filter(|page| !postcopy.missing().contains(LOW, *page)) {
        // Nobody reads faults.
        assert_eq!(read(&ram.ram, LOW, page), old(LOW, page));
    }
    place(&postcopy, &[run(LOW, 30, 6)]);
    assert_eq!(
        [30, 33, 35].map(|page| read(&ram.ram, LOW, page)),
        [new(LOW, 30), old(LOW, 33), new(LOW, 35)]
    );
    postcopy.finish().unwrap();
}

#[test]
fn a_reader_is_ended_asleep_and_awake() {
    require!(Userfaultfd);
    let ram = Ram::full();
    let postcopy = ram.arm(&[run(LOW, 0, 1)]);
    for spin in [Duration::ZERO, Duration::from_secs(3600)] {
        let mut reader = postcopy.faults().unwrap();
        let stop = reader.stop_handle();
        let thread = thread::spawn(move || (reader.next(spin, &mut Vec::new()).unwrap(), reader));
        stop.stop();
        let (more, mut reader) = thread.join().unwrap();
        assert!(!more && !reader.next(spin, &mut Vec::new()).unwrap(), "it stays ended");
    }
    postcopy.abandon().unwrap();
}

#[test]
fn the_end_wakes_everybody_and_comes_only_when_nothing_is_missing() {
    require!(Userfaultfd);
    let ram = Ram::empty();
    let postcopy = ram.arm(&[run(HIGH, 0, PAGES[1]), run(LOW, 1, 1)]);
    thread::scope(|scope| {
        let waits: Vec<_> = (0..4)
            .map(|page| {
                scope.spawn({
                    let ram = &ram.ram;
                    move || read(ram, HIGH, page)
                })
            })
            .collect();
        postcopy.place_zero(run(HIGH, 0, PAGES[1]), &mut Vec::new()).unwrap();
        assert!(matches!(postcopy.finish(), Err(PostcopyError::Missing { pages: 1 })));
        place(&postcopy, &[run(LOW, 1, 1)]);
        // Nobody read the faults of the threads.
        postcopy.finish().unwrap();
        assert!(waits.into_iter().all(|thread| thread.join().unwrap() == 0));
    });
    postcopy.finish().unwrap();
    assert_eq!(read(&ram.ram, LOW, 1), new(LOW, 1));
    write(&ram.ram, LOW, 100, 3);
}

#[test]
fn giving_up_frees_who_waits() {
    require!(Userfaultfd);
    let ram = Ram::full();
    let postcopy = ram.arm(&[run(LOW, 0, 4)]);
    thread::scope(|scope| {
        let waits = scope.spawn(|| read(&ram.ram, LOW, 0));
        let mut faults = Vec::new();
        assert!(postcopy.faults().unwrap().next(Duration::ZERO, &mut faults).unwrap());
        postcopy.abandon().unwrap();
        waits.join().unwrap();
    });
}

#[test]
fn ram_that_is_dropped_with_pages_missing_is_let_go_by_nobody() {
    require!(Userfaultfd);
    let ram = Ram::full();
    drop(ram.arm(&[run(LOW, 0, 1)]));
    let none = ram.set(&[]);
    // The kernel lets one userfaultfd watch a page, so the first still does.
    let error = PostcopyRam::prepare(&ram.ram).unwrap().arm(&none).unwrap_err().to_string();
    assert!(error.contains("another userfaultfd"), "{error}");
    let other = Ram::full();
    let postcopy = other.arm(&[run(LOW, 0, 1)]);
    postcopy.abandon().unwrap();
    drop(postcopy);
    other.arm(&[]).finish().unwrap();
}

#[test]
fn other_backings_are_refused_in_words() {
    let refusal = |memory| {
        let ram = GuestRam::new(memory).unwrap();
        let support = PostcopyRam::support(&ram).unwrap_err();
        assert!(matches!(support, PostcopyError::Unsupported { .. }), "{support}");
        assert_eq!(PostcopyRam::prepare(&ram).unwrap_err().to_string(), support.to_string());
        support.to_string()
    };
    let anonymous = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
    assert!(refusal(anonymous).contains("anonymous memory"));
    // Mapping reserves huge pages, which the host may lack; not to be reserved they are mapped twice as well.
    let huge = rustix::fs::memfd_create("huge", MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB).unwrap();
    rustix::fs::ftruncate(&huge, 2 << 20).unwrap();
    let file = Some(FileOffset::new(huge.into(), 0));
    let flags = rustix::mm::MapFlags::SHARED | rustix::mm::MapFlags::NORESERVE;
    let mapping = vm_memory::MmapRegion::build(file, 2 << 20, 3, flags.bits() as i32).unwrap();
    let region = GuestRegionMmap::new(mapping, GuestAddress(0)).unwrap();
    let huge = GuestMemoryMmap::from_regions(vec![region]).unwrap();
    assert!(refusal(huge).contains("hugetlbfs"));
}
