//! Reads the workload guest's counters out of guest RAM.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::counters::{GAP_SLOTS, MAGIC, VERSION, error, header, status, vcpu};
use super::layout::{COUNTERS_BASE, MAX_VCPUS};
use super::params::PAGE_SIZE;

/// What the workload guest says of itself. Times are in µs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadCounters {
    /// Frequency of the TSC that the guest reckons with, in kHz.
    pub tsc_khz: u64,
    /// Pages of the working set.
    pub hot_pages: u64,
    /// Pages of the fill.
    pub fill_pages: u64,
    /// Guest-physical address of the working set's first page.
    pub hot_address: u64,
    /// Guest-physical address of the fill's first page.
    pub fill_address: u64,
    /// Guest-physical address of the table of generations.
    pub generations_address: u64,
    /// All vCPUs together.
    pub total: Totals,
    /// Each vCPU.
    pub vcpus: Vec<VcpuCounters>,
}

/// All vCPUs together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// vCPUs that run their loop.
    pub running: u32,
    /// vCPUs that an exception stopped.
    pub faulted: u32,
    /// Passes that every vCPU has made over its share of the working set.
    pub passes: u64,
    /// Walks that every vCPU's checker has made.
    pub checker_passes: u64,
    /// Pages written.
    pub pages_written: u64,
    /// Accesses that only read.
    pub pages_read: u64,
    /// Errors found.
    pub errors: u64,
    /// Longest TSC gap of any vCPU, in µs.
    pub longest_gap_us: u64,
    /// Steps of the TSC backward.
    pub tsc_backward_steps: u64,
    /// Rounds of all loops; stands still when the guest does.
    pub heartbeat: u64,
}

/// One vCPU's counters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuCounters {
    /// What it does.
    pub status: VcpuStatus,
    /// Rounds of its loop.
    pub heartbeat: u64,
    /// The TSC in its last round.
    pub tsc: u64,
    /// Passes over its share of the working set: as many accesses as it has pages.
    pub passes: u64,
    /// Pages written.
    pub pages_written: u64,
    /// Accesses that only read.
    pub pages_read: u64,
    /// Walks of its checker over all that it answers for.
    pub checker_passes: u64,
    /// Pages that its checker read.
    pub checker_pages: u64,
    /// Errors found.
    pub errors: u64,
    /// The same by what they are about.
    pub errors_of_kind: ErrorCounts,
    /// The first of them.
    pub first_error: Option<FirstError>,
    /// Longest time between two rounds, in µs.
    pub longest_gap_us: u64,
    /// Steps of the TSC backward.
    pub tsc_backward_steps: u64,
    /// The largest of them, in µs.
    pub tsc_backward_largest_us: u64,
    /// How long it filled its RAM at start, in µs; 0 until it has.
    pub fill_us: u64,
    /// Gaps of more than 20 µs that no longer one came after, from the oldest.
    pub gaps: Vec<Gap>,
}

/// What a vCPU does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum VcpuStatus {
    /// Not there yet.
    Absent,
    /// Fills its share of RAM.
    Filling,
    /// Runs its loop.
    Running,
    /// Stopped for good by an exception.
    Faulted {
        /// Vector of the exception.
        vector: u64,
        /// Address of the instruction.
        rip: u64,
    },
}

/// Errors found, by what they are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorCounts {
    /// A page of the working set did not hold what was last written to it.
    pub hot: u64,
    /// A page of the fill did not hold what was filled in.
    pub fill: u64,
    /// The generations of the pages did not add up to the number of writes.
    pub generations: u64,
    /// A counter did not hold what was last written to it.
    pub counters: u64,
}

/// The first error that a vCPU found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirstError {
    /// What it is about: `hot`, `fill`, `generations` or `counters`.
    pub kind: String,
    /// Guest-physical address of the word.
    pub address: u64,
    /// What should have been there.
    pub expected: u64,
    /// What was.
    pub found: u64,
}

/// A time that a vCPU stood still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// How long, in µs.
    pub us: u64,
    /// The TSC at its end.
    pub end_tsc: u64,
}

impl WorkloadCounters {
    /// The longest gap of any vCPU that ended after the TSC read `tsc`, in µs; 0 when none exceeded 20 µs. A pause
    /// is seen when the heartbeat of each vCPU is 2 ahead of what it was in the pause: it may stop a vCPU in a round
    /// that has looked at the clock already.
    #[must_use]
    pub fn gap_since(&self, tsc: u64) -> u64 {
        self.vcpus.iter().map(|vcpu| vcpu.gap_since(tsc)).max().unwrap_or(0)
    }
}

impl VcpuCounters {
    /// As [`WorkloadCounters::gap_since`], of this vCPU.
    #[must_use]
    pub fn gap_since(&self, tsc: u64) -> u64 {
        // From the oldest to the newest they get shorter: the first that counts is the longest.
        self.gaps.iter().find(|gap| gap.end_tsc > tsc).map_or(0, |gap| gap.us)
    }
}

/// The counters of the workload guest in `memory`; `None` when no such guest runs there (yet).
///
/// The guest may be writing them meanwhile: each number is whole, but two may be of different rounds. While
/// post-copy brings the guest's RAM this waits for the pages; [`Vm::workload`](crate::Vm::workload) does not.
#[must_use]
pub fn read(memory: &GuestMemoryMmap<()>) -> Option<WorkloadCounters> {
    read_if(memory, |_| true)
}

/// Where the counters of a guest with so many vCPUs lie in guest-physical memory: first byte and number of bytes.
#[must_use]
pub const fn counters_range(vcpus: u32) -> (u64, u64) {
    (COUNTERS_BASE, (1 + vcpus as u64) * PAGE_SIZE)
}

/// As [`read`], from a copy of [`counters_range`], such as another VMM saved.
#[must_use]
pub fn read_saved(bytes: &[u8]) -> Option<WorkloadCounters> {
    let base = GuestAddress(COUNTERS_BASE);
    let memory = GuestMemoryMmap::from_ranges(&[(base, bytes.len())]).ok()?;
    memory.write_slice(bytes, base).ok()?;
    read(&memory)
}

/// As [`read`], but `None` as well when not all pages that it would look at are there.
pub(crate) fn read_if(
    memory: &GuestMemoryMmap<()>,
    is_there: impl Fn(GuestAddress) -> bool,
) -> Option<WorkloadCounters> {
    if !is_there(GuestAddress(COUNTERS_BASE)) {
        return None;
    }
    let header = |word| load(memory, COUNTERS_BASE, word);
    if header(header::MAGIC)? != MAGIC || header(header::VERSION)? != VERSION {
        return None;
    }
    let tsc_khz = header(header::TSC_KHZ)?;
    let count = header(header::VCPUS)?;
    if tsc_khz == 0 || !(1..=MAX_VCPUS).contains(&count) {
        return None;
    }
    if !(0..count).all(|index| is_there(GuestAddress(vcpu_page(index)))) {
        return None;
    }
    let vcpus = (0..count).map(|index| read_vcpu(memory, index, tsc_khz)).collect::<Option<Vec<_>>>()?;
    Some(WorkloadCounters {
        tsc_khz,
        hot_pages: header(header::HOT_PAGES)?,
        fill_pages: header(header::FILL_PAGES)?,
        hot_address: header(header::HOT_ADDRESS)?,
        fill_address: header(header::FILL_ADDRESS)?,
        generations_address: header(header::GENERATIONS_ADDRESS)?,
        total: Totals::of(&vcpus),
        vcpus,
    })
}

/// Where a vCPU's counters lie.
const fn vcpu_page(index: u64) -> u64 {
    COUNTERS_BASE + (1 + index) * PAGE_SIZE
}

impl Totals {
    fn of(vcpus: &[VcpuCounters]) -> Self {
        let sum = |field: fn(&VcpuCounters) -> u64| vcpus.iter().map(field).fold(0, u64::wrapping_add);
        let count = |is: fn(&VcpuStatus) -> bool| vcpus.iter().filter(|v| is(&v.status)).count() as u32;
        Self {
            running: count(|status| *status == VcpuStatus::Running),
            faulted: count(|status| matches!(status, VcpuStatus::Faulted { .. })),
            passes: vcpus.iter().map(|v| v.passes).min().unwrap_or(0),
            checker_passes: vcpus.iter().map(|v| v.checker_passes).min().unwrap_or(0),
            pages_written: sum(|v| v.pages_written),
            pages_read: sum(|v| v.pages_read),
            errors: sum(|v| v.errors),
            longest_gap_us: vcpus.iter().map(|v| v.longest_gap_us).max().unwrap_or(0),
            tsc_backward_steps: sum(|v| v.tsc_backward_steps),
            heartbeat: sum(|v| v.heartbeat),
        }
    }
}

/// One word; relaxed order would do for numbers that stand alone, acquire keeps the stack of gaps in order.
fn load(memory: &GuestMemoryMmap<()>, page: u64, word: u64) -> Option<u64> {
    memory.load(GuestAddress(page + word * 8), Ordering::Acquire).ok()
}

fn read_vcpu(memory: &GuestMemoryMmap<()>, index: u64, tsc_khz: u64) -> Option<VcpuCounters> {
    let at = |word| load(memory, vcpu_page(index), word);
    let us = |ticks: u64| (u128::from(ticks) * 1000 / u128::from(tsc_khz)) as u64;
    let status = match at(vcpu::STATUS)? {
        status::FILLING => VcpuStatus::Filling,
        status::RUNNING => VcpuStatus::Running,
        status::FAULTED => VcpuStatus::Faulted { vector: at(vcpu::FAULT_VECTOR)?, rip: at(vcpu::FAULT_RIP)? },
        _ => VcpuStatus::Absent,
    };
    let kind = match at(vcpu::FIRST_ERROR)? {
        error::HOT => Some("hot"),
        error::FILL => Some("fill"),
        error::GENERATIONS => Some("generations"),
        error::COUNTERS => Some("counters"),
        _ => None,
    };
    let first_error = match kind {
        Some(kind) => Some(FirstError {
            kind: kind.into(),
            address: at(vcpu::FIRST_ERROR_ADDRESS)?,
            expected: at(vcpu::FIRST_ERROR_EXPECTED)?,
            found: at(vcpu::FIRST_ERROR_FOUND)?,
        }),
        None => None,
    };
    let gaps = (0..at(vcpu::GAPS)?.min(GAP_SLOTS))
        .map(|n| {
            let word = vcpu::GAP_STACK + 2 * n;
            Some(Gap { us: us(at(word)?), end_tsc: at(word + 1)? })
        })
        .collect::<Option<Vec<_>>>()?;
    Some(VcpuCounters {
        status,
        heartbeat: at(vcpu::HEARTBEAT)?,
        tsc: at(vcpu::TSC)?,
        passes: at(vcpu::PASSES)?,
        pages_written: at(vcpu::PAGES_WRITTEN)?,
        pages_read: at(vcpu::PAGES_READ)?,
        checker_passes: at(vcpu::CHECKER_PASSES)?,
        checker_pages: at(vcpu::CHECKER_PAGES)?,
        errors: at(vcpu::ERRORS)?,
        errors_of_kind: ErrorCounts {
            hot: at(vcpu::ERRORS_OF_KIND + error::HOT)?,
            fill: at(vcpu::ERRORS_OF_KIND + error::FILL)?,
            generations: at(vcpu::ERRORS_OF_KIND + error::GENERATIONS)?,
            counters: at(vcpu::ERRORS_OF_KIND + error::COUNTERS)?,
        },
        first_error,
        longest_gap_us: us(at(vcpu::LONGEST_GAP)?),
        tsc_backward_steps: at(vcpu::BACKWARD_STEPS)?,
        tsc_backward_largest_us: us(at(vcpu::BACKWARD_LARGEST)?),
        fill_us: us(at(vcpu::FILL_ENDED)?.saturating_sub(at(vcpu::FILL_BEGAN)?)),
        gaps,
    })
}
