//! Time across a migration.
//!
//! A guest reads time from its TSC and from kvmclock. While it is on its way both must go on as if the
//! guest had been running: a clock that stood still would lag behind the world's, and timers armed
//! before the pause would fire late by it. So each is saved together with the wall clock's time of its
//! reading, and restored as the saved value plus what the wall clock says has passed since.
//!
//! **Hosts whose clocks disagree.** The wall clock is the only one that two hosts share. If the destination's is ahead by
//! d, the guest's time jumps ahead by d; if it is behind, time goes on from where it stood, without the time of the
//! pause as far as d eats that up. It never jumps back. Either way a guest that had the right time at the source has
//! the destination's right time, except that it stays ahead of a destination that is behind. Daemons compare
//! their clocks before anything moves, and refuse what would be a jump of a second.
//!
//! **Several vCPUs.** The TSC is written through its MSR and not as an offset to the host's (KVM_VCPU_TSC_OFFSET): the
//! MSR means the same whether or not KVM scales the TSC, and works on every KVM. KVM takes a write within a second
//! of what a vCPU's TSC was expected to be for an attempt to synchronise it with the last one that was written, and gives
//! it the very same offset. For the second vCPU and all others that is what is wanted: values that were written one
//! after another differ by nothing. Two things follow.
//! - The first write must not be taken so: a guest that booted less than a second before its destination's VM was
//!   made would go back to that VM's time. So something far off is written first.
//! - All get the offset of the first. Readings of a TSC and of the wall clock are a moment apart, by a thread that
//!   is interrupted in between a long one; so all are written as the one that is furthest ahead. A guest that set its
//!   TSCs apart by less than a second finds them together, none of them behind where it was.
//!
//! **Watchdogs** of a guest measure by these clocks how long a vCPU has been stuck. Wherever a guest goes on after a
//! pause, its owner's, a migration's that failed, or at the destination, each vCPU is told that it stood still
//! (KVM_KVMCLOCK_CTRL).

use std::time::{SystemTime, UNIX_EPOCH};

use kvm_bindings::{KVM_CLOCK_REALTIME, kvm_clock_data};
use kvm_ioctls::{Cap, VcpuFd, VmFd};
use migrated_guest::{GuestError, SectionId};
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

/// No write that is so far off synchronises a TSC.
const FAR_OFF_SECONDS: u64 = 3600;

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

    /// What it is now, if it was read with the wall clock as it was then.
    fn now(&self) -> u64 {
        self.value.wrapping_add(ticks(passed_since(self.at), self.khz))
    }

    /// How many ticks it is ahead of another, which was read at another time.
    fn ahead_of(&self, other: &Self) -> i64 {
        let between = i128::from(self.at) - i128::from(other.at);
        let ticks = between * i128::from(self.khz) / 1_000_000;
        self.value.wrapping_sub(other.value).wrapping_sub(ticks as u64) as i64
    }
}

/// The section of a vCPU's TSC.
pub(super) fn tsc_id(vcpu: usize) -> SectionId {
    SectionId { kind: "cpu-tsc".into(), instance: vcpu as u32, version: 1 }
}

/// Why a vCPU's TSC can't go on.
#[derive(Debug)]
pub(super) struct TscFault {
    pub(super) vcpu: usize,
    pub(super) reason: String,
}

/// Lets the TSCs of all vCPUs go on, those of a host whose KVM runs them at `khz`.
pub(super) fn restore_tscs(tscs: &[Tsc], vcpus: &[&VcpuFd], khz: u32) -> Result<(), TscFault> {
    let second = u64::from(khz) * 1000;
    let ahead: Vec<i64> = tscs.iter().map(|tsc| tsc.ahead_of(&tscs[0])).collect();
    let are_one = ahead.iter().all(|ahead| ahead.unsigned_abs() < second);
    let furthest = ahead.iter().copied().max().unwrap_or(0);
    for (vcpu, (tsc, fd)) in tscs.iter().zip(vcpus).enumerate() {
        let fault = |reason| TscFault { vcpu, reason };
        if !same_frequency(tsc.khz, khz) {
            let reason = format!("the TSC ran at {} kHz, here it runs at {khz} kHz", tsc.khz);
            return Err(fault(reason));
        }
        let now = || if are_one { tscs[0].now().wrapping_add_signed(furthest) } else { tsc.now() };
        if vcpu == 0 {
            set(fd, TSC, now().wrapping_add(FAR_OFF_SECONDS * second)).map_err(fault)?;
        }
        set(fd, TSC, now()).map_err(fault)?;
        if tsc.deadline != 0 {
            set(fd, TSC_DEADLINE, tsc.deadline).map_err(fault)?;
        }
    }
    Ok(())
}

fn set(vcpu: &VcpuFd, index: u32, value: u64) -> Result<(), String> {
    match msrs::write(vcpu, index, value) {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!("KVM won't set MSR {index:#x} to {value:#x}")),
        Err(error) => Err(format!("KVM_SET_MSRS failed: {error}")),
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
pub(crate) fn forgive_pause(vcpu: &VcpuFd) -> Result<(), String> {
    match vcpu.kvmclock_ctrl() {
        // The guest has no kvmclock.
        Err(error) if error.errno() == libc::EINVAL => Ok(()),
        other => other.map_err(|error| format!("KVM_KVMCLOCK_CTRL failed: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use migrated_testkit::require;

    use super::*;
    use crate::{HostKvm, host};

    /// An hour.
    const FAR_NS: u64 = FAR_OFF_SECONDS * 1_000_000_000;

    /// A VM with vCPUs that never run.
    struct Still {
        vm: std::sync::Arc<VmFd>,
        vcpus: Vec<VcpuFd>,
    }

    impl Still {
        fn new(vcpus: u64) -> Self {
            let vm = HostKvm::open().unwrap().create_vm().unwrap();
            host::create_chips(&vm).unwrap();
            let vcpus = (0..vcpus).map(|id| vm.create_vcpu(id).unwrap()).collect();
            Self { vm, vcpus }
        }

        fn khz(&self) -> u32 {
            self.vcpus[0].get_tsc_khz().unwrap()
        }

        fn save(&self) -> Vec<Tsc> {
            self.vcpus.iter().map(|vcpu| Tsc::save(vcpu, self.khz()).unwrap()).collect()
        }

        fn restore(&self, tscs: &[Tsc]) {
            let vcpus: Vec<_> = self.vcpus.iter().collect();
            restore_tscs(tscs, &vcpus, self.khz()).unwrap();
        }

        fn tsc(&self, vcpu: usize) -> u64 {
            msrs::read(&self.vcpus[vcpu], TSC).unwrap().unwrap()
        }

        /// Whether what is written to a TSC stays there: a KVM without hardware behind it shows the host's own.
        fn keeps_tsc(&self) -> bool {
            let far = self.tsc(0) / 2;
            msrs::write(&self.vcpus[0], TSC, far).unwrap() && self.tsc(0) < far + ticks(FAR_NS, self.khz())
        }

        /// Checks that no vCPU's TSC is before another's that was read earlier, and gives the last.
        #[track_caller]
        fn assert_in_step(&self) -> u64 {
            let read: Vec<u64> = (0..self.vcpus.len()).chain([0]).map(|vcpu| self.tsc(vcpu)).collect();
            assert!(read.is_sorted(), "{read:?}");
            read[read.len() - 1]
        }
    }

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

    #[test]
    fn tscs_that_were_read_at_different_times_are_compared_at_one() {
        let tsc = |value, at| Tsc { khz: 2_000_000, value, at, deadline: 0 };
        let (first, second) = (tsc(1_000, 50), tsc(1_300, 150));
        assert_eq!((second.ahead_of(&first), first.ahead_of(&second)), (100, -100));
        // What no source sends must do no harm either.
        tsc(u64::MAX, 0).ahead_of(&tsc(0, u64::MAX));
    }

    #[test]
    fn vcpus_stay_in_step_and_none_goes_back() {
        require!(Kvm);
        let source = Still::new(3);
        // A VM that is as young as the guest, and was rehearsed: KVM takes what is near its TSC for its TSC.
        let destination = Still::new(3);
        destination.restore(&destination.save());
        destination.assert_in_step();
        let mut tscs = source.save();
        let before = source.assert_in_step();
        // Between the reading of a TSC and of the wall clock this thread was interrupted, once on each vCPU.
        for late in 0..3 {
            tscs[late].at += 300_000_000;
            destination.restore(&tscs);
            assert!(destination.assert_in_step() > before, "{late}");
            tscs[late].at -= 300_000_000;
        }
    }

    #[test]
    fn a_host_that_is_behind_stops_no_tsc_and_one_that_is_ahead_adds_what_it_is() {
        require!(Kvm);
        let (source, destination) = (Still::new(2), Still::new(2));
        let mut tscs = source.save();
        let before = source.assert_in_step();
        tscs.iter_mut().for_each(|tsc| tsc.at += FAR_NS);
        destination.restore(&tscs);
        assert!(destination.assert_in_step() >= tscs[1].value);
        tscs.iter_mut().for_each(|tsc| tsc.at -= 2 * FAR_NS);
        destination.restore(&tscs);
        let ahead = ticks(FAR_NS, source.khz());
        assert!(destination.assert_in_step() > before + ahead || !Still::new(1).keeps_tsc());
    }

    #[test]
    fn tscs_that_the_guest_set_apart_stay_so_or_go_forward() {
        require!(Kvm);
        let (source, destination) = (Still::new(2), Still::new(2));
        if !Still::new(1).keeps_tsc() {
            return;
        }
        let mut tscs = source.save();
        let second = u64::from(source.khz()) * 1000;
        let value = tscs[1].value;
        for (apart, stay) in [(second / 2, 0), (1000 * second, 999 * second)] {
            tscs[1].value = value + apart;
            destination.restore(&tscs);
            let [first, other] = [destination.tsc(0), destination.tsc(1)];
            assert!(first >= tscs[0].value && other >= tscs[1].value, "{first} {other} {tscs:?}");
            assert!(other >= first + stay, "{first} {other}");
        }
    }

    #[test]
    fn kvmclock_never_goes_back() {
        require!(Kvm);
        let (source, destination) = (Still::new(1), Still::new(1));
        let clock = |still: &Still| still.vm.get_clock().unwrap().clock;
        let mut saved = Clock::save(&source.vm).unwrap();
        let before = from_raw::<kvm_clock_data>(&saved.data).unwrap();
        saved.restore(&destination.vm).unwrap();
        let then = clock(&destination);
        assert!(then >= before.clock);
        // As if it had been saved an hour before or after now, by whichever clock counts.
        let at = |ns: fn(u64, u64) -> u64| {
            let data = kvm_clock_data { realtime: ns(before.realtime, FAR_NS), ..before };
            Clock { data: raw(&data), at: ns(saved.at, FAR_NS) }
        };
        at(u64::saturating_sub).restore(&destination.vm).unwrap();
        assert!(clock(&destination) >= before.clock + FAR_NS);
        saved = at(u64::saturating_add);
        saved.restore(&destination.vm).unwrap();
        assert!(clock(&destination) >= before.clock && clock(&destination) < before.clock + FAR_NS);
    }
}
