//! The counters that the guest keeps and the host reads: the layout of their pages in `u64` words.
//!
//! Shared source. Page 0, the header, is written once at boot; each vCPU then has a page of its own
//! that only it writes, each word in one aligned store, so that a reader never sees half a word.
//!
//! **The longest gap since any moment.** The host must learn how long a vCPU stood still during a
//! migration without writing guest RAM (that would dirty a page) and without knowing beforehand when
//! it will ask. So a vCPU keeps its gaps as a stack of strictly decreasing length: a new gap removes
//! all that are not longer than itself, then lies on top. What remains below a gap is older and
//! longer, so the longest gap that ended after moment T is simply the lowest entry that ended
//! after T, for every T. Of n gaps of random length about ln(n) are on the stack at a time, so
//! [`GAP_SLOTS`] are plenty; on a full stack the newest and shortest gap is not recorded. Gaps under
//! [`GAP_FLOOR_US`] are noise and never are.

/// `MIGRWORK` in ASCII, little endian: there are counters.
pub const MAGIC: u64 = u64::from_le_bytes(*b"MIGRWORK");
/// Version of this layout.
pub const VERSION: u64 = 1;
/// Shortest gap that is put on the stack, in µs.
pub const GAP_FLOOR_US: u64 = 20;
/// Room for gaps on the stack.
pub const GAP_SLOTS: u64 = 64;

/// Words of the header page.
pub mod header {
    /// [`MAGIC`](super::MAGIC), written last.
    pub const MAGIC: u64 = 0;
    /// [`VERSION`](super::VERSION).
    pub const VERSION: u64 = 1;
    /// vCPUs that take part.
    pub const VCPUS: u64 = 2;
    /// Frequency of the TSC in kHz.
    pub const TSC_KHZ: u64 = 3;
    /// Pages of the working set.
    pub const HOT_PAGES: u64 = 4;
    /// Pages of the fill.
    pub const FILL_PAGES: u64 = 5;
    /// Guest-physical address of the working set's first page.
    pub const HOT_ADDRESS: u64 = 6;
    /// Guest-physical address of the fill's first page.
    pub const FILL_ADDRESS: u64 = 7;
    /// Guest-physical address of the table of generations.
    pub const GENERATIONS_ADDRESS: u64 = 8;
}

/// Words of a vCPU's page.
pub mod vcpu {
    /// One of [`status`](super::status).
    pub const STATUS: u64 = 0;
    /// Counts rounds of the loop (and pages while filling): stands still when the vCPU does.
    pub const HEARTBEAT: u64 = 1;
    /// TSC of the last round, which the next is measured from.
    pub const TSC: u64 = 2;
    /// Passes over the vCPU's share of the working set: as many accesses as it has pages.
    pub const PASSES: u64 = 3;
    /// Pages written.
    pub const PAGES_WRITTEN: u64 = 4;
    /// Accesses that only read.
    pub const PAGES_READ: u64 = 5;
    /// Walks of the checker over all that the vCPU answers for.
    pub const CHECKER_PASSES: u64 = 6;
    /// Pages that the checker read.
    pub const CHECKER_PAGES: u64 = 7;
    /// Errors found.
    pub const ERRORS: u64 = 8;
    /// First error: one of [`error`](super::error), 0 for none. Written after the three others.
    pub const FIRST_ERROR: u64 = 9;
    /// First error: guest-physical address of the word.
    pub const FIRST_ERROR_ADDRESS: u64 = 10;
    /// First error: what should have been there.
    pub const FIRST_ERROR_EXPECTED: u64 = 11;
    /// First error: what was.
    pub const FIRST_ERROR_FOUND: u64 = 12;
    /// Longest time between two rounds, in ticks.
    pub const LONGEST_GAP: u64 = 13;
    /// Times the TSC went backward.
    pub const BACKWARD_STEPS: u64 = 14;
    /// Largest step backward, in ticks.
    pub const BACKWARD_LARGEST: u64 = 15;
    /// Exception that stopped the vCPU, when its status says so: vector.
    pub const FAULT_VECTOR: u64 = 16;
    /// Exception: address of the instruction.
    pub const FAULT_RIP: u64 = 17;
    /// TSC when the vCPU began to fill.
    pub const FILL_BEGAN: u64 = 18;
    /// TSC when it had filled.
    pub const FILL_ENDED: u64 = 19;
    /// Errors of each kind: this word plus one of [`error`](super::error).
    pub const ERRORS_OF_KIND: u64 = 20;
    /// Gaps on the stack.
    pub const GAPS: u64 = 31;
    /// The stack, from the longest: a gap's length in ticks, then the TSC at its end.
    pub const GAP_STACK: u64 = 32;
}

/// What a vCPU does.
pub mod status {
    /// Not there yet.
    pub const ABSENT: u64 = 0;
    /// Fills its share of RAM.
    pub const FILLING: u64 = 1;
    /// Runs its loop.
    pub const RUNNING: u64 = 2;
    /// Stopped for good by an exception.
    pub const FAULTED: u64 = 3;
}

/// What an error is about.
pub mod error {
    /// A page of the working set does not hold what was last written to it.
    pub const HOT: u64 = 1;
    /// A page of the fill does not hold what was filled in.
    pub const FILL: u64 = 2;
    /// The generations don't add up to the number of writes.
    pub const GENERATIONS: u64 = 3;
    /// A counter does not hold what was last written to it.
    pub const COUNTERS: u64 = 4;
}
