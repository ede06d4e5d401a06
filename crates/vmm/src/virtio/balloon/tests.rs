use std::sync::OnceLock;

use migrated_guest::{GuestRam, PageClass, PostcopyRam, WatchedRam};
use migrated_pages::{BlockId, PAGE_SIZE, PageRun, PageSet};
use migrated_testkit::require;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::super::testing::{Buffer, Driver, Interrupt, Ram};
use super::*;
use crate::{BalloonError, MemoryBacking, memory};

const REPORT: usize = 4;
const PAGE: u64 = PAGE_SIZE as u64;
/// Pages from here on hold what tests write; below are the queues.
const FIRST: u64 = 64;

struct Host {
    ram: Ram,
    watched: Arc<OnceLock<WatchedRam>>,
    control: Arc<BalloonControl>,
}

impl Host {
    fn new(bytes: u64) -> Self {
        let ram = Ram::of(memory::allocate(bytes, MemoryBacking::Memfd, false).unwrap());
        Self { ram, watched: Arc::default(), control: Arc::new(BalloonControl::new().unwrap()) }
    }

    fn balloon(&self) -> Balloon {
        self.balloon_on(MemoryBacking::Memfd)
    }

    fn balloon_on(&self, backing: MemoryBacking) -> Balloon {
        let (guest, writes) = (self.ram.guest.clone(), self.ram.writes.clone());
        let pages = FreePages::new(guest, backing, writes, self.watched.clone());
        Balloon::new(pages, self.control.clone())
    }

    /// Content in all pages but the queues', and memory for those as well.
    fn fill(&self) {
        for page in 0..self.ram.guest.layout().total_pages() {
            let content = if page < FIRST { 0 } else { page };
            self.ram.guest.memory().write_obj(content, GuestAddress(page * PAGE)).unwrap();
        }
    }

    fn is_there(&self, page: u64) -> bool {
        self.ram.guest.memory().read_obj::<u64>(GuestAddress(page * PAGE)).unwrap() == page
    }

    /// Bytes of memory that the RAM's file has.
    fn resident(&self) -> u64 {
        let region = self.ram.guest.memory().iter().next().unwrap();
        rustix::fs::fstat(region.file_offset().unwrap().file()).unwrap().st_blocks as u64 * 512
    }
}

fn pages(first: u64, count: u64) -> Buffer {
    Buffer::Writable(first * PAGE, (count * PAGE) as u32)
}

#[test]
fn reported_pages_are_holes_that_a_migration_sends_once_more_and_others_stay() {
    let host = Host::new(8 << 20);
    let mut balloon = host.balloon();
    let mut driver = Driver::new(&host.ram, &mut balloon);
    host.fill();
    let before = host.resident();
    let end = host.ram.guest.layout().total_bytes();
    // Whole pages; a part of a page on either side; RAM's end; none of it RAM.
    driver.give(
        REPORT,
        &[
            pages(100, 50),
            Buffer::Writable(200 * PAGE + 1, 3 * PAGE as u32),
            Buffer::Writable(end - 2 * PAGE, 1 << 20),
            Buffer::Writable(0xc000_0000, 1 << 20),
            Buffer::Writable(u64::MAX - 10, 4096),
        ],
    );
    assert_eq!(driver.notify(&mut balloon, REPORT).unwrap(), Served::All);
    assert_eq!(driver.answers(REPORT), [0]);
    assert_eq!(driver.interrupts(), [Interrupt::Queue(REPORT)]);

    let last = end / PAGE;
    let gone: Vec<u64> = (100..150).chain(201..203).chain(last - 2..last).collect();
    assert_eq!(host.resident(), before - gone.len() as u64 * PAGE);
    assert_eq!(host.control.status().given_back_bytes, gone.len() as u64 * PAGE);
    let rings = |page: &u64| *page >= FIRST;
    assert_eq!(host.ram.written().into_iter().filter(rings).collect::<Vec<_>>(), gone);
    let mut classes = Vec::new();
    let reported = PageRun { block: BlockId(0), first: 100, count: 50 };
    host.ram.guest.split_zero(reported, &mut classes);
    assert_eq!(classes, [(reported, PageClass::Zero)]);
    assert_eq!(host.resident(), before - gone.len() as u64 * PAGE, "looking gives no page memory");
    for page in FIRST..last {
        assert_eq!(host.is_there(page), !gone.contains(&page), "page {page}");
    }
}

#[test]
fn reserved_huge_pages_stay_the_guests_and_are_zero_to_a_migration() {
    let host = Host::new(4 << 20);
    let mut balloon = host.balloon_on(MemoryBacking::Hugetlb2m);
    let mut driver = Driver::new(&host.ram, &mut balloon);
    host.fill();
    let before = host.resident();
    driver.give(REPORT, &[pages(100, 50)]);
    driver.notify(&mut balloon, REPORT).unwrap();
    assert_eq!((driver.answers(REPORT), host.resident()), (vec![0], before));
    assert_eq!(host.control.status().given_back_bytes, 0);
    assert!((100..150).all(|page| host.ram.guest.is_zero(BlockId(0), page)));
    assert!(host.ram.written().ends_with(&(100..150).collect::<Vec<_>>()));
}

#[test]
fn linux_reports_in_the_queue_that_it_counts_and_unknown_queues_are_left_alone() {
    let host = Host::new(2 << 20);
    let mut balloon = host.balloon();
    let mut driver = Driver::new(&host.ram, &mut balloon);
    host.fill();
    for queue in [2, 3] {
        driver.give(queue, &[pages(100 * queue as u64, 10)]);
        assert_eq!(driver.notify(&mut balloon, queue).unwrap(), Served::All);
    }
    assert_eq!((driver.answers(2), driver.answers(3)), (vec![0], vec![]));
    assert!(!host.is_there(200) && host.is_there(300));
}

#[test]
fn a_guest_that_wants_its_poison_back_keeps_its_pages() {
    let reported = |features: u64, poison: u32| {
        let host = Host::new(2 << 20);
        let mut balloon = host.balloon();
        let mut driver = Driver::new(&host.ram, &mut balloon);
        balloon.activate(features);
        balloon.write_config(POISON_VAL as u64, &poison.to_le_bytes());
        host.fill();
        driver.give(REPORT, &[pages(100, 1)]);
        driver.notify(&mut balloon, REPORT).unwrap();
        assert_eq!(driver.answers(REPORT), [0], "the guest waits for the answer in any case");
        !host.is_there(100)
    };
    let all = VIRTIO_BALLOON_F_PAGE_POISON | VIRTIO_BALLOON_F_REPORTING;
    assert!(!reported(all, 0xaaaa_aaaa));
    assert!(reported(all, 0), "init_on_free");
    assert!(reported(VIRTIO_BALLOON_F_REPORTING, 0xaaaa_aaaa), "a field without a meaning");
}

/// What a destination has after rounds of pre-copy that send what was written.
fn send_round(from: &GuestRam, to: &GuestRam, runs: impl Iterator<Item = PageRun>) {
    let mut classes = Vec::new();
    runs.for_each(|run| from.split_zero(run, &mut classes));
    for (run, class) in classes {
        match class {
            PageClass::Zero => to.zero(run),
            PageClass::Data => from.slice(run).copy_to_volatile_slice(to.slice(run)),
        }
    }
}

fn hashes(ram: &GuestRam) -> Vec<u64> {
    let mut hashes = Vec::new();
    ram.layout().whole_pages(0, u64::MAX).for_each(|run| ram.hash_pages(run, &mut hashes));
    hashes
}

#[test]
fn both_ends_have_the_same_memory_after_reports_between_rounds() {
    let host = Host::new(4 << 20);
    let mut balloon = host.balloon();
    let mut driver = Driver::new(&host.ram, &mut balloon);
    host.fill();
    let destination = memory::allocate(4 << 20, MemoryBacking::Memfd, false).unwrap();
    let everything = || host.ram.guest.layout().whole_pages(0, u64::MAX).collect::<Vec<_>>();
    send_round(&host.ram.guest, &destination, everything().into_iter());
    for round in 0..3 {
        driver.give(REPORT, &[pages(100 + 200 * round, 150), pages(260 + 200 * round, 3)]);
        // What a vCPU writes KVM reports; here that is all of the rings.
        let mut dirty = PageSet::empty(host.ram.guest.layout());
        dirty.insert(PageRun { block: BlockId(0), first: 0, count: FIRST });
        driver.notify(&mut balloon, REPORT).unwrap();
        host.ram.writes.take_into(&mut dirty);
        send_round(&host.ram.guest, &destination, dirty.runs());
    }
    assert!(hashes(&host.ram.guest) == hashes(&destination));
}

#[test]
fn pages_stay_while_post_copy_brings_others_and_are_given_back_afterwards() {
    require!(Userfaultfd);
    let host = Host::new(4 << 20);
    let mut balloon = host.balloon();
    let mut driver = Driver::new(&host.ram, &mut balloon);
    host.fill();
    let mut stale = PageSet::empty(host.ram.guest.layout());
    stale.insert(PageRun { block: BlockId(0), first: 300, count: 2 });
    let postcopy = PostcopyRam::prepare(&host.ram.guest).unwrap().arm(&stale).unwrap();
    host.watched.set(postcopy.watched().clone()).unwrap();

    let staged =
        |page: u64| postcopy.staging().memory().read_obj::<u64>(GuestAddress(page * PAGE)).unwrap() == page;
    let report = |driver: &mut Driver<'_>, balloon: &mut Balloon| {
        driver.give(REPORT, &[pages(298, 6)]);
        driver.notify(balloon, REPORT).unwrap();
        assert_eq!(driver.answers(REPORT), [0]);
    };
    let before = host.resident();
    report(&mut driver, &mut balloon);
    assert!((298..304).all(staged) && host.resident() == before, "missing or not, they stay");
    assert_eq!(postcopy.missing().count(), 2);

    postcopy.claim([PageRun { block: BlockId(0), first: 300, count: 2 }]).place(&mut Vec::new()).unwrap();
    report(&mut driver, &mut balloon);
    assert!((298..304).all(staged), "still watched");
    postcopy.finish().unwrap();
    report(&mut driver, &mut balloon);
    assert!((298..304).all(|page| !host.is_there(page)));
    assert_eq!(host.control.status().given_back_bytes, 6 * PAGE);
}

#[test]
fn all_of_a_guests_ram_is_given_back_in_pieces() {
    let bytes: u64 = 160 << 20;
    let host = Host::new(bytes);
    let mut balloon = host.balloon();
    let mut driver = Driver::new(&host.ram, &mut balloon);
    let (first, count) = (FIRST, bytes / PAGE - FIRST);
    for page in [first, first + count / 2, first + count - 1] {
        host.ram.guest.memory().write_obj(page, GuestAddress(page * PAGE)).unwrap();
    }
    driver.give(REPORT, &[pages(first, count)]);
    assert_eq!(driver.notify(&mut balloon, REPORT).unwrap(), Served::More);
    assert!(!host.is_there(first) && host.is_there(first + count / 2));
    assert!(driver.answers(REPORT).is_empty(), "not while a part of it is to come");
    assert_eq!(driver.notify(&mut balloon, REPORT).unwrap(), Served::More);
    assert_eq!(driver.notify(&mut balloon, REPORT).unwrap(), Served::All);
    assert_eq!(driver.answers(REPORT), [0]);
    assert!(!host.is_there(first + count - 1));
    assert_eq!(host.control.status().given_back_bytes, count * PAGE);
}

#[test]
fn inflating_takes_listed_pages_in_any_order_and_deflating_is_answered() {
    let host = Host::new(4 << 20);
    let mut balloon = host.balloon();
    let mut driver = Driver::new(&host.ram, &mut balloon);
    host.fill();
    let list: Vec<u8> =
        [301u32, 299, 300, 400, 400, u32::MAX].iter().flat_map(|page| page.to_le_bytes()).collect();
    host.ram.guest.memory().write_slice(&list, GuestAddress(FIRST * PAGE)).unwrap();
    let request = [Buffer::Readable(FIRST * PAGE, 10), Buffer::Readable(FIRST * PAGE + 10, 14)];
    driver.give(INFLATE, &request);
    driver.give(DEFLATE, &request);
    assert_eq!(driver.notify(&mut balloon, INFLATE).unwrap(), Served::All);
    assert_eq!(driver.notify(&mut balloon, DEFLATE).unwrap(), Served::All);
    assert_eq!((driver.answers(INFLATE), driver.answers(DEFLATE)), (vec![0], vec![0]));
    let gone: Vec<_> = (FIRST + 1..1024).filter(|page| !host.is_there(*page)).collect();
    assert_eq!(gone, [299, 300, 301, 400]);
}

#[test]
fn a_long_list_is_served_in_pieces() {
    let host = Host::new(2 << 20);
    let mut balloon = host.balloon();
    let mut driver = Driver::new(&host.ram, &mut balloon);
    // The same quarter of a MiB again and again: page 0, many times.
    let lists = [Buffer::Readable(FIRST * PAGE, 256 << 10); 2];
    driver.give(INFLATE, &lists);
    let mut pieces = 1;
    while driver.notify(&mut balloon, INFLATE).unwrap() == Served::More {
        pieces += 1;
    }
    assert_eq!((pieces, driver.answers(INFLATE)), (9, vec![0]));
}

#[test]
fn the_guest_hears_of_a_new_target_and_says_how_far_it_is() {
    let host = Host::new(2 << 20);
    let mut balloon = host.balloon();
    let mut driver = Driver::new(&host.ram, &mut balloon);
    host.control.set_target((1 << 20) + 1, || true).unwrap();
    driver.host(&mut balloon);
    assert_eq!(driver.interrupts(), [Interrupt::Config]);
    let mut config = [0xff; 20];
    balloon.read_config(0, &mut config);
    assert_eq!((config[..4].to_vec(), config[16..].to_vec()), (256u32.to_le_bytes().to_vec(), vec![0; 4]));
    balloon.write_config(ACTUAL as u64, &7u32.to_le_bytes());
    balloon.write_config(NUM_PAGES as u64, &9u32.to_le_bytes());
    balloon.write_config(14, &[1; 100]);
    balloon.write_config(u64::MAX, &[1]);
    let status = host.control.status();
    assert_eq!((status.target_bytes, status.actual_bytes), (1 << 20, 7 * PAGE));
    balloon.reset();
    let status = host.control.status();
    assert_eq!((status.target_bytes, status.actual_bytes), (1 << 20, 0), "the host still wants it");
}

#[test]
fn a_guest_that_stands_still_or_has_no_driver_is_not_asked() {
    let host = Host::new(2 << 20);
    let mut balloon = host.balloon();
    let refused = |runs| host.control.set_target(1 << 20, || runs).unwrap_err();
    assert!(matches!(refused(true), BalloonError::NoDriver));
    let mut driver = Driver::new(&host.ram, &mut balloon);
    assert!(matches!(refused(false), BalloonError::NotRunning));
    driver.host(&mut balloon);
    assert_eq!((host.control.status().target_bytes, driver.interrupts()), (0, vec![]));
    balloon.reset();
    assert!(matches!(refused(true), BalloonError::NoDriver));
}

#[test]
fn its_state_moves_and_one_that_fits_no_guest_of_this_size_is_refused() {
    let host = Host::new(2 << 20);
    let mut balloon = host.balloon();
    let mut driver = Driver::new(&host.ram, &mut balloon);
    host.control.set_target(1 << 20, || true).unwrap();
    balloon.write_config(ACTUAL as u64, &7u32.to_le_bytes());
    balloon.write_config(POISON_VAL as u64, &5u32.to_le_bytes());
    driver.give(REPORT, &[pages(100, 1)]);
    driver.notify(&mut balloon, REPORT).unwrap();
    let state = balloon.save();

    let other = Host::new(2 << 20);
    let mut arrived = other.balloon();
    arrived.restore(&state).unwrap();
    assert_eq!(other.control.status(), host.control.status());
    assert_eq!((arrived.save(), arrived.poison), (state.clone(), 5));
    let mut driver = driver.moved(&other.ram, &mut arrived);
    driver.arrive(&mut arrived);
    assert_eq!(driver.interrupts(), [Interrupt::Config], "it was told nothing at the source");

    assert!(arrived.restore(&state[..state.len() - 1]).is_err());
    assert!(arrived.restore(&[&state[..], &[0]].concat()).is_err());
    host.control.set_target(4 << 20, || true).unwrap();
    let refusal = other.balloon().restore(&balloon.save()).unwrap_err();
    assert!(refusal.contains("1024 pages, the guest has 512"), "{refusal}");
}

fn any_buffer() -> impl Strategy<Value = Buffer> {
    let at = prop_oneof![0u64..4 << 20, any::<u64>()];
    let len = prop_oneof![0u32..64 << 10, any::<u32>()];
    (at, len, any::<bool>()).prop_map(|(at, len, writable)| {
        if writable { Buffer::Writable(at, len) } else { Buffer::Readable(at, len) }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_driver_breaks_it(
        requests in prop::collection::vec((0usize..5, prop::collection::vec(any_buffer(), 1..4)), 1..8),
        noise in prop::collection::vec((0u64..2 << 20, any::<u64>()), 0..32),
        config in prop::collection::vec((any::<u8>(), any::<[u8; 8]>()), 0..4),
    ) {
        let host = Host::new(2 << 20);
        let mut balloon = host.balloon();
        let mut driver = Driver::new(&host.ram, &mut balloon);
        for (offset, bytes) in config {
            balloon.write_config(offset.into(), &bytes);
        }
        requests.iter().for_each(|(queue, buffers)| driver.give(*queue, buffers));
        for (at, value) in noise {
            // Past RAM's end there is nothing to disturb.
            let _ = host.ram.guest.memory().write_obj(value, GuestAddress(at));
        }
        for queue in 0..5 {
            // A list of page numbers may be as long as a request, in any number of pieces.
            let mut pieces = 0;
            while let Ok(Served::More) = driver.notify(&mut balloon, queue) {
                pieces += 1;
                if pieces == 100 {
                    break;
                }
            }
        }
        let state = balloon.save();
        prop_assert!(state.len() < 64);
        other_accepts(&state)?;
    }

    #[test]
    fn no_state_breaks_it(data in prop::collection::vec(any::<u8>(), 0..32)) {
        let host = Host::new(2 << 20);
        let mut balloon = host.balloon();
        if balloon.restore(&data).is_ok() {
            prop_assert!(host.control.target() <= 512);
        }
    }
}

fn other_accepts(state: &[u8]) -> Result<(), TestCaseError> {
    let other = Host::new(2 << 20);
    prop_assert_eq!(other.balloon().restore(state), Ok(()));
    Ok(())
}
