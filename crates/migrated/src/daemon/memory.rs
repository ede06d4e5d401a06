//! Whether there is RAM for one more guest.
//!
//! Guests' RAM is allocated as they touch it, so what the system calls available is not free: what
//! the guests here were promised and haven't touched yet must be taken off first.

use migrated_control::{MemoryBacking, VmSpec};
use thiserror::Error;

use super::vm::Vm;
use crate::config::GuestsConfig;

/// There is too little RAM for a guest.
#[derive(Debug, PartialEq, Eq, Error)]
#[error(
    "the guest wants {wanted} MiB of RAM and this host has {available} MiB left for guests ({why}); \
     free some or choose another host"
)]
pub struct NoRoom {
    /// MiB wanted.
    pub wanted: u64,
    /// MiB left.
    pub available: u64,
    /// What the figure comes from.
    pub why: &'static str,
}

const HUGE_PAGE: u64 = 2 << 20;

/// Checks that a guest of `spec` fits beside `others`.
pub fn check_room<'a>(
    config: &GuestsConfig,
    spec: &VmSpec,
    others: impl Iterator<Item = &'a Vm> + Clone,
) -> Result<(), NoRoom> {
    let fits = |available: u64, why| {
        if spec.memory_bytes <= available {
            return Ok(());
        }
        Err(NoRoom { wanted: spec.memory_bytes >> 20, available: available >> 20, why })
    };
    if let Some(limit) = config.memory_limit_bytes {
        let promised: u64 =
            others.clone().filter(|vm| vm.holds_memory()).map(|vm| vm.spec.memory_bytes).sum();
        fits(limit.saturating_sub(promised), "guests.memory_limit_bytes less what other guests have")?;
    }
    if spec.backing == MemoryBacking::Hugetlb2m {
        return fits(free_huge_pages() * HUGE_PAGE, "free 2 MiB huge pages");
    }
    let untouched: u64 = others
        .filter(|vm| vm.holds_memory() && vm.spec.backing != MemoryBacking::Hugetlb2m)
        .map(|vm| vm.spec.memory_bytes.saturating_sub(vm.pid().map_or(0, resident_shared)))
        .sum();
    let available = available_memory().saturating_sub(untouched).saturating_sub(config.memory_reserve_bytes);
    fits(
        available,
        "available memory less what other guests may still touch, less guests.memory_reserve_bytes",
    )
}

/// What the system says can be allocated without swapping, in bytes.
fn available_memory() -> u64 {
    kib_field("/proc/meminfo", "MemAvailable:")
}

/// Shared memory that a process has touched, in bytes: guests' RAM is a memfd.
fn resident_shared(pid: u32) -> u64 {
    kib_field(&format!("/proc/{pid}/status"), "RssShmem:")
}

fn kib_field(file: &str, field: &str) -> u64 {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|rest| rest.split_whitespace().next()).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0)
        << 10
}

fn free_huge_pages() -> u64 {
    let file = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
    std::fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}
