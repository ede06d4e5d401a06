//! Time across a migration.
//!
//! A guest reads time from its TSC and from kvmclock. While it is on its way both must go on as if the
//! guest had been running: a clock that stood still would lag behind the world's, and timers armed
//! before the pause would fire late by it. So each is saved together with the wall clock's time of its
//! reading, and restored as the saved value plus what the wall clock says has passed since. The
//! wall clock is the only one that two hosts share; by how far theirs disagree the guest's time jumps.
//! It never jumps back: where the destination's wall clock is behind, nothing is added. Within one host
//! the TSC so continues to the accuracy of one system call.
//!
//! The TSC is written through its MSR and not as an offset to the host's (KVM_VCPU_TSC_OFFSET): the MSR
//! means the same whether or not KVM scales the TSC, and works on every KVM. Values written for several
//! vCPUs one after another differ by the time that passes in between; KVM knows that (a write within a
//! second of the expected value joins the previous vCPU's offset), so synchronised TSCs stay so.

use std::time::{SystemTime, UNIX_EPOCH};

use kvm_bindings::{KVM_CLOCK_REALTIME, kvm_clock_data};
use kvm_ioctls::{Cap, VcpuFd, VmFd};
use migrated_guest::GuestError;
use serde::{Deserialize, Serialize};

use super::msrs::{self, TSC, TSC_DEADLINE};
use super::section::{from_raw, raw};
use crate::cpu::same_frequency;
use crate::error::KvmContext;

/// The wall clock in ns since 1970.
fn wall_clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// Wall-clock time since `then`, in ns; 0 where this host's clock is not there yet.
fn passed_since(then: u64) -> u64 {
    wall_clock().saturating_sub(then)
}

/// A vCPU's TSC.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Tsc {
    khz: u32,
    value: u64,
    /// Wall clock when `value` was read, in ns since 1970.
    at: u64,
    /// TSC value at which the local APIC's timer fires; 0 is never.
    deadline: u64,
}

impl Tsc {
    pub(super) fn save(vcpu: &VcpuFd, khz: u32) -> Result<Self, GuestError> {
        let deadline = msrs::read(vcpu, TSC_DEADLINE).guest("KVM_GET_MSRS of the TSC deadline")?;
        let value = msrs::read(vcpu, TSC).guest("KVM_GET_MSRS of the TSC")?;
        Ok(Self { khz, value: value.unwrap_or(0), at: wall_clock(), deadline: deadline.unwrap_or(0) })
    }

    pub(super) fn restore(&self, vcpu: &VcpuFd, khz: u32) -> Result<(), String> {
        if !same_frequency(self.khz, khz) {
            return Err(format!("the TSC ran at {} kHz, here it runs at {khz} kHz", self.khz));
        }
        let set = |index, value| match msrs::write(vcpu, index, value) {
            Ok(true) => Ok(()),
            Ok(false) => Err(format!("KVM won't set MSR {index:#x} to {value:#x}")),
            Err(error) => Err(format!("KVM_SET_MSRS failed: {error}")),
        };
        set(TSC, self.value.wrapping_add(ticks(passed_since(self.at), self.khz)))?;
        if self.deadline != 0 { set(TSC_DEADLINE, self.deadline) } else { Ok(()) }
    }
}

/// TSC ticks in so many ns.
fn ticks(ns: u64, khz: u32) -> u64 {
    (u128::from(ns) * u128::from(khz) / 1_000_000) as u64
}

/// kvmclock, the same for all vCPUs.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Clock {
    /// `kvm_clock_data`, in KVM's bytes.
    data: Vec<u8>,
    /// Wall clock when it was read, in ns since 1970.
    at: u64,
}

impl Clock {
    pub(super) fn save(vm: &VmFd) -> Result<Self, GuestError> {
        let data = vm.get_clock().guest("KVM_GET_CLOCK")?;
        Ok(Self { data: raw(&data), at: wall_clock() })
    }

    /// KVM adds the passed time itself where both hosts' KVM read the wall clock along with kvmclock
    /// (KVM_CLOCK_REALTIME, where the host's own clock is its TSC).
    pub(super) fn restore(&self, vm: &VmFd) -> Result<(), String> {
        let saved: kvm_clock_data = from_raw(&self.data)?;
        let here = u32::try_from(vm.check_extension_int(Cap::AdjustClock)).unwrap_or(0);
        let data = if saved.flags & here & KVM_CLOCK_REALTIME != 0 {
            kvm_clock_data {
                clock: saved.clock,
                flags: KVM_CLOCK_REALTIME,
                realtime: saved.realtime,
                ..Default::default()
            }
        } else {
            let clock = saved.clock.saturating_add(passed_since(self.at));
            kvm_clock_data { clock, ..Default::default() }
        };
        vm.set_clock(&data).map_err(|error| format!("KVM_SET_CLOCK failed: {error}"))
    }
}

/// Tells a guest that uses kvmclock that it was stopped, so that its watchdogs forgive the gap.
pub(super) fn forgive_pause(vcpu: &VcpuFd) -> Result<(), String> {
    match vcpu.kvmclock_ctrl() {
        // The guest has no kvmclock.
        Err(error) if error.errno() == libc::EINVAL => Ok(()),
        other => other.map_err(|error| format!("KVM_KVMCLOCK_CTRL failed: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_follow_the_frequency_without_overflow() {
        assert_eq!(ticks(1_000_000, 2_596_098), 2_596_098);
        let century = 100 * 365 * 86_400 * 1_000_000_000u64;
        assert_eq!(ticks(century, 4_000_000), century * 4);
    }

    #[test]
    fn a_wall_clock_that_is_behind_adds_nothing() {
        assert_eq!(passed_since(u64::MAX), 0);
        assert!(passed_since(0) > 0);
    }
}
