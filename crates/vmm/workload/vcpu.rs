//! A vCPU's loop: looks at the clock, accesses a page when one is due, checks a page when one is due.
//!
//! Each vCPU owns a share of the working set and of the fill; nobody else touches it. Beside the pages
//! it checks its books: the sum of its share's generations, which the checker adds up as it walks, must
//! be the number of its writes, and each counter must hold what it last held, both by its own stack. So to go
//! back in time unnoticed a page would have to take the table of generations, the counters and the stack along.

use crate::clock::Clock;
use crate::counters::{error, status, vcpu};
use crate::layout::COUNTERS_BASE;
use crate::machine::tsc;
use crate::memory::{load, store};
use crate::pages::{Mismatch, Pages};
use crate::params::{PAGE_SIZE, Pattern, Rate};
use crate::random::Random;
use crate::serial::{Hex, print};
use crate::setup::Setup;

/// Guest-physical address of a word of a vCPU's counters.
pub const fn counter(index: u64, word: u64) -> u64 {
    COUNTERS_BASE + (1 + index) * PAGE_SIZE + word * 8
}

/// Most time that a vCPU catches up on after it stood still, in ms: no burst follows a pause.
const CATCH_UP_MS: u64 = 10;

/// A piece of the arena: its first page and how many.
#[derive(Clone, Copy)]
struct Share {
    first: u64,
    count: u64,
}

impl Share {
    fn of(first: u64, count: u64, index: u64, vcpus: u64) -> Self {
        let part = |n: u64| count * n / vcpus;
        Self { first: first + part(index), count: part(index + 1) - part(index) }
    }
}

/// When something is due, in ticks.
struct Pace {
    due: u64,
    every: u64,
    catch_up: u64,
}

impl Pace {
    /// `share` vCPUs divide the rate among them. Without `work` nothing is ever due.
    fn new(rate: Rate, share: u64, work: u64, tsc_khz: u64) -> Self {
        let every = match rate {
            _ if work == 0 => u64::MAX,
            Rate::Max => 0,
            Rate::PerSecond(0) => u64::MAX,
            Rate::PerSecond(n) => tsc_khz * 1000 * share / n,
        };
        Self { due: 0, every, catch_up: tsc_khz * CATCH_UP_MS }
    }

    /// Counts from `now` on.
    fn restart(&mut self, now: u64) {
        self.due = now.saturating_add(self.every);
    }

    #[inline]
    fn is_due(&mut self, now: u64) -> bool {
        if now < self.due {
            return false;
        }
        self.due = self.due.max(now.saturating_sub(self.catch_up)) + self.every;
        true
    }
}

struct Vcpu {
    setup: &'static Setup,
    pages: Pages,
    index: u64,
    hot: Share,
    fill: Share,
    random: Random,
    /// Next slot of the working set, for sequential order.
    next: u64,
    /// Accesses in this pass.
    accesses: u64,
    // What the counters of these names must hold.
    heartbeat: u64,
    passes: u64,
    written: u64,
    read: u64,
    walks: u64,
    checked: u64,
    /// What the generations should add up to.
    expected_sum: u64,
    /// What they add up to in the part that the checker has passed.
    walked_sum: u64,
    /// Next page of the checker: slots of the working set, then of the fill.
    walk: u64,
}

/// Runs a vCPU for ever.
pub fn run(index: u64, setup: &'static Setup) -> ! {
    let params = &setup.params;
    let seed = params.seed;
    let mut this = Vcpu {
        setup,
        pages: Pages { content: params.content, seed },
        index,
        hot: Share::of(setup.plan.hot, setup.plan.hot_pages, index, params.vcpus),
        fill: Share::of(setup.plan.fill, setup.plan.fill_pages, index, params.vcpus),
        random: Random(seed ^ (index << 32)),
        next: 0,
        accesses: 0,
        heartbeat: 0,
        passes: 0,
        written: 0,
        read: 0,
        walks: 0,
        checked: 0,
        expected_sum: 0,
        walked_sum: 0,
        walk: 0,
    };
    this.fill_all();
    let mut accesses = Pace::new(params.rate, params.vcpus, this.hot.count, setup.tsc_khz);
    let mut checks = Pace::new(params.check, 1, this.hot.count + this.fill.count, setup.tsc_khz);
    let mut now = tsc();
    let mut clock = Clock::new(index, setup.tsc_khz, now);
    accesses.restart(now);
    checks.restart(now);
    loop {
        now = tsc();
        if clock.observe(now) {
            accesses.restart(now);
            checks.restart(now);
        }
        this.beat();
        if accesses.is_due(now) {
            this.access();
        }
        if checks.is_due(now) {
            this.check();
        }
    }
}

impl Vcpu {
    fn counter(&self, word: u64) -> u64 {
        counter(self.index, word)
    }

    fn beat(&mut self) {
        self.heartbeat = self.count(vcpu::HEARTBEAT, self.heartbeat);
    }

    /// Counts one up in a word that must hold `expected`.
    #[inline]
    fn count(&self, word: u64, expected: u64) -> u64 {
        let address = self.counter(word);
        let found = load(address);
        if found != expected {
            self.error(error::COUNTERS, Mismatch { address, expected, found });
        }
        store(address, expected + 1);
        expected + 1
    }

    /// Fills the whole share and sets all generations to 0.
    fn fill_all(&mut self) {
        store(self.counter(vcpu::STATUS), status::FILLING);
        store(self.counter(vcpu::FILL_BEGAN), tsc());
        for slot in 0..self.hot.count {
            store(self.generation(slot), 0);
        }
        for page in [self.hot, self.fill].into_iter().flat_map(|s| s.first..s.first + s.count) {
            self.pages.write_all(self.setup.arena.address(page), page, 0);
            self.beat();
        }
        store(self.counter(vcpu::FILL_ENDED), tsc());
        store(self.counter(vcpu::STATUS), status::RUNNING);
        if self.index == 0 {
            print(&["workload: running\r\n"]);
        }
    }

    /// Address of the generation of a slot of this vCPU's working set.
    fn generation(&self, slot: u64) -> u64 {
        let page = self.hot.first - self.setup.plan.hot + slot;
        self.setup.arena.address(self.setup.plan.generations) + page * 8
    }

    fn next_slot(&mut self) -> u64 {
        let count = self.hot.count;
        match self.setup.params.pattern {
            Pattern::Sequential => {
                let slot = self.next;
                self.next = if slot + 1 == count { 0 } else { slot + 1 };
                slot
            }
            Pattern::Random => self.random.below(count),
            Pattern::Zipf => zipf(&mut self.random, count),
        }
    }

    /// Checks a page of the working set, and writes it unless this access only reads.
    fn access(&mut self) {
        let slot = self.next_slot();
        let page = self.hot.first + slot;
        let address = self.setup.arena.address(page);
        let table = self.generation(slot);
        let generation = load(table);
        if let Err(mismatch) = self.pages.check(address, page, generation) {
            self.repair(error::HOT, mismatch, page, generation);
        }
        let params = &self.setup.params;
        let readonly = if self.index + params.readers >= params.vcpus { 100 } else { params.readonly };
        if readonly > 0 && self.random.below(100) < readonly {
            self.read = self.count(vcpu::PAGES_READ, self.read);
        } else {
            self.pages.write(address, page, generation + 1);
            store(table, generation + 1);
            self.count_write(slot);
        }
        self.accesses += 1;
        if self.accesses == self.hot.count {
            self.accesses = 0;
            self.passes = self.count(vcpu::PASSES, self.passes);
        }
    }

    fn count_write(&mut self, slot: u64) {
        self.written = self.count(vcpu::PAGES_WRITTEN, self.written);
        self.expected_sum += 1;
        if slot < self.walk {
            self.walked_sum += 1;
        }
    }

    /// The checker's next page.
    fn check(&mut self) {
        if self.walk < self.hot.count {
            let page = self.hot.first + self.walk;
            let generation = load(self.generation(self.walk));
            self.check_page(error::HOT, page, generation);
            self.walked_sum += generation;
        } else {
            self.check_page(error::FILL, self.fill.first + self.walk - self.hot.count, 0);
        }
        self.walk += 1;
        if self.walk == self.hot.count {
            self.check_sum();
        }
        if self.walk == self.hot.count + self.fill.count {
            self.walk = 0;
            self.walked_sum = 0;
            self.walks = self.count(vcpu::CHECKER_PASSES, self.walks);
        }
        self.checked = self.count(vcpu::CHECKER_PAGES, self.checked);
    }

    fn check_page(&mut self, kind: u64, page: u64, generation: u64) {
        if let Err(mismatch) = self.pages.check_all(self.setup.arena.address(page), page, generation) {
            self.repair(kind, mismatch, page, generation);
        }
    }

    fn check_sum(&mut self) {
        if self.walked_sum != self.expected_sum {
            let (expected, found) = (self.expected_sum, self.walked_sum);
            self.expected_sum = found;
            self.error(error::GENERATIONS, Mismatch { address: self.generation(0), expected, found });
        }
    }

    /// Counts an error and makes the page good, so that it is counted once.
    #[cold]
    fn repair(&mut self, kind: u64, mismatch: Mismatch, page: u64, generation: u64) {
        self.error(kind, mismatch);
        self.pages.write_all(self.setup.arena.address(page), page, generation);
    }

    #[cold]
    fn error(&self, kind: u64, mismatch: Mismatch) {
        let Mismatch { address, expected, found } = mismatch;
        let errors = load(self.counter(vcpu::ERRORS)) + 1;
        store(self.counter(vcpu::ERRORS), errors);
        let of_kind = self.counter(vcpu::ERRORS_OF_KIND + kind);
        store(of_kind, load(of_kind) + 1);
        if errors == 1 {
            store(self.counter(vcpu::FIRST_ERROR_ADDRESS), address);
            store(self.counter(vcpu::FIRST_ERROR_EXPECTED), expected);
            store(self.counter(vcpu::FIRST_ERROR_FOUND), found);
            store(self.counter(vcpu::FIRST_ERROR), kind);
            let [kind, address, expected, found] = [kind, address, expected, found].map(Hex::new);
            print(&["workload: error ", kind.text(), " at ", address.text()]);
            print(&[": expected ", expected.text(), ", found ", found.text(), "\r\n"]);
        }
    }
}

/// A slot below `count`, the n-th most popular with a probability of about 1/n (Zipf's law with exponent 1):
/// every power of two is equally likely, and so is every rank between it and the next. Popular slots are
/// scattered by a prime, lest they be neighbours.
fn zipf(random: &mut Random, count: u64) -> u64 {
    /// The largest prime below 2³²; working sets have fewer pages.
    const SCATTER: u64 = 4_294_967_291;
    let octaves = u64::from(u64::BITS - count.leading_zeros());
    loop {
        let octave = random.below(octaves);
        let rank = (1 << octave) + random.below(1 << octave) - 1;
        if rank < count {
            return (rank * SCATTER) % count;
        }
    }
}
