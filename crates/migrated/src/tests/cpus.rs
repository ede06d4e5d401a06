//! CPUs of real machines, from the dumps that `migrated-cpuid` is tested with.

use std::path::PathBuf;

use migrated_cpuid::{BaselineSpec, CpuDump, GuestCpu, HostCpu};

use crate::daemon::guest_of;

/// The file of a dump.
pub fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../cpuid/tests/dumps").join(name).with_extension("json")
}

/// Its text.
pub fn text(name: &str) -> String {
    std::fs::read_to_string(file(name)).unwrap()
}

/// The CPU in it.
pub fn host(name: &str) -> HostCpu {
    CpuDump::parse(&text(name)).unwrap().try_into().unwrap()
}

/// A guest of that baseline on that machine.
pub fn guest(machine: &str, baseline: &str) -> GuestCpu {
    guest_of(&host(machine), &BaselineSpec::Named(baseline.into())).unwrap()
}
