use kvm_bindings::{KVM_MAX_MSR_ENTRIES, Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use migrated_guest::GuestError;

use crate::error::KvmContext;

/// IA32_TIME_STAMP_COUNTER.
pub(super) const TSC: u32 = 0x10;
/// IA32_TSC_DEADLINE.
pub(super) const TSC_DEADLINE: u32 = 0x6e0;
/// IA32_TSC_ADJUST.
const TSC_ADJUST: u32 = 0x3b;
/// Have a section of their own, because they mean times.
const TIMES: [u32; 2] = [TSC, TSC_DEADLINE];
/// MSR_KVM_WALL_CLOCK and MSR_KVM_WALL_CLOCK_NEW. Writing one is no state but an order: KVM writes the wall clock of
/// the guest's boot to guest RAM there and then. A restore would so change RAM behind the last harvest, or wait for
/// the page in post-copy; and a guest gives the order each time before it reads what KVM wrote.
const ORDERS: [u32; 2] = [0x11, 0x4b56_4d00];

/// The MSRs of `listed` that are state and that KVM can read on this vCPU, in the order in which they are to be written:
/// TSC_ADJUST first, as it moves with the TSC.
pub(super) fn readable(vcpu: &VcpuFd, listed: &[u32]) -> Result<Vec<u32>, kvm_ioctls::Error> {
    let mut readable = Vec::new();
    for index in listed {
        if !TIMES.contains(index) && !ORDERS.contains(index) && read(vcpu, *index)?.is_some() {
            readable.push(*index);
        }
    }
    readable.sort_by_key(|index| *index != TSC_ADJUST);
    Ok(readable)
}

/// One MSR, `None` where KVM has no such.
pub(crate) fn read(vcpu: &VcpuFd, index: u32) -> Result<Option<u64>, kvm_ioctls::Error> {
    let mut msrs = list(&[(index, 0)]);
    let read = vcpu.get_msrs(&mut msrs)?;
    Ok(msrs.as_slice().first().filter(|_| read == 1).map(|entry| entry.data))
}

/// Writes one MSR; `false` where KVM won't have it.
pub(crate) fn write(vcpu: &VcpuFd, index: u32, value: u64) -> Result<bool, kvm_ioctls::Error> {
    Ok(vcpu.set_msrs(&list(&[(index, value)]))? == 1)
}

/// Reads the MSRs `indices` as (index, value).
pub(super) fn save(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<(u32, u64)>, GuestError> {
    let mut values = Vec::with_capacity(indices.len());
    for piece in indices.chunks(KVM_MAX_MSR_ENTRIES) {
        let mut msrs = list(&piece.iter().map(|index| (*index, 0)).collect::<Vec<_>>());
        let read = vcpu.get_msrs(&mut msrs).guest("KVM_GET_MSRS")?;
        values.extend(msrs.as_slice()[..read].iter().map(|entry| (entry.index, entry.data)));
        if let Some(index) = piece.get(read) {
            return Err(GuestError::Kernel {
                operation: format!("KVM_GET_MSRS of MSR {index:#x}"),
                source: std::io::ErrorKind::Unsupported.into(),
            });
        }
    }
    Ok(values)
}

/// Writes MSRs in the given order.
///
/// KVM stops at one that it won't write. That is no harm when the MSR already has the value, as
/// read-only ones of equal hosts do, or when this host does not have it and the guest never used it,
/// which its value of zero says. Everything else would be state lost in silence.
pub(super) fn restore(vcpu: &VcpuFd, values: Vec<(u32, u64)>) -> Result<(), String> {
    let mut rest = &values[..];
    while !rest.is_empty() {
        let piece = &rest[..rest.len().min(KVM_MAX_MSR_ENTRIES)];
        let written = vcpu.set_msrs(&list(piece)).map_err(|error| format!("KVM_SET_MSRS failed: {error}"))?;
        let mut done = written;
        if let Some((index, value)) = piece.get(written) {
            match read(vcpu, *index).map_err(|error| format!("KVM_GET_MSRS failed: {error}"))? {
                Some(here) if here == *value => {}
                None if *value == 0 => {}
                Some(here) => {
                    return Err(format!("MSR {index:#x} is {here:#x} here and can't be set to {value:#x}"));
                }
                None => {
                    return Err(format!("this host has no MSR {index:#x}, the guest uses it ({value:#x})"));
                }
            }
            done += 1;
        }
        rest = &rest[done..];
    }
    Ok(())
}

fn list(values: &[(u32, u64)]) -> Msrs {
    let entries: Vec<_> = values
        .iter()
        .map(|(index, data)| kvm_msr_entry { index: *index, data: *data, reserved: 0 })
        .collect();
    Msrs::from_entries(&entries).expect("no more than KVM_MAX_MSR_ENTRIES")
}
