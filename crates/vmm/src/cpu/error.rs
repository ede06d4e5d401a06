use std::io;

use migrated_cpuid::{CpuReport, CpuidSetError, Feature, HostCpuError, Place};
use migrated_kernel::KvmError;
use thiserror::Error;

use super::readback::{CpuDifference, list};

/// Why a guest can't have its CPU here.
#[derive(Debug, Error)]
pub enum CpuError {
    /// KVM refused a call.
    #[error("{operation} failed: {source}; compare the CPU of both hosts")]
    Kvm {
        /// What was tried, in KVM's words.
        operation: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The host's own CPU can't be read.
    #[error(transparent)]
    Host(HostCpuError),
    /// The host can't give what it offers.
    #[error("this host can't give a guest its own CPU: {}", reasons(.0))]
    NotGranted(Box<CpuReport>),
    /// The guest has AMX and the process may not give it.
    #[error("the guest has AMX: {0}; take amx out of its CPU baseline or choose another host")]
    Amx(#[source] KvmError),
    /// KVM took the table and made another of it.
    #[error(
        "this host's KVM does not give the guest its CPU; there would be missing or different: {}; choose a \
         lower CPU baseline or another host",
        list(.0)
    )]
    Differs(Vec<CpuDifference>),
    /// What KVM made of the table contradicts itself.
    #[error("KVM_GET_CPUID2: {0}; report this with the kernel's version")]
    Table(#[source] CpuidSetError),
    /// KVM does not let a feature MSR have its value.
    #[error(
        "MSR {msr:#x} must be {wanted:#x} for the guest{}, and {}; choose another CPU baseline or another host",
        named(*.msr, .wanted ^ .here.unwrap_or(0)),
        has(.here)
    )]
    FeatureMsr {
        /// The MSR.
        msr: u32,
        /// What the guest's CPU has.
        wanted: u64,
        /// What the vCPU has; `None` when it has no such MSR.
        here: Option<u64>,
    },
    /// One vCPU got another CPU than the first.
    #[error(
        "vCPU {vcpu} got another CPU than vCPU 0, though both were given the same; report this with the kernel's version"
    )]
    Uneven {
        /// Its index.
        vcpu: u32,
    },
    /// The TSC runs at another speed and can't be scaled.
    #[error(
        "the guest's TSC runs at {wanted} kHz, this host's at {host} kHz and it can't scale \
         (KVM_CAP_TSC_CONTROL); choose a host of that frequency"
    )]
    Tsc {
        /// The guest's, in kHz.
        wanted: u32,
        /// The host's, in kHz.
        host: u32,
    },
}

impl CpuError {
    pub(super) fn kvm(operation: &'static str) -> impl Fn(kvm_ioctls::Error) -> Self {
        move |error| Self::Kvm { operation, source: error.into() }
    }
}

fn reasons(report: &CpuReport) -> String {
    let fields: Vec<_> = report.mismatches.iter().map(|mismatch| mismatch.field.as_str()).collect();
    fields.join(", ")
}

fn has(here: &Option<u64>) -> String {
    here.map_or("this host's KVM has no such MSR".into(), |here| {
        format!("this host's KVM leaves it at {here:#x}")
    })
}

/// The features of an MSR that those bits are, in brackets.
fn named(msr: u32, bits: u64) -> String {
    let features =
        (0..64).filter(|bit| bits & 1 << bit != 0).filter_map(|bit| Feature::at(Place::Msr { msr, bit }));
    let names: Vec<_> = features.map(Feature::name).collect();
    if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feature_msr_is_told_with_its_features() {
        let text = CpuError::FeatureMsr { msr: 0x10a, wanted: 0b11, here: Some(0b10) }.to_string();
        assert!(text.contains("MSR 0x10a must be 0x3 for the guest (rdcl_no)"), "{text}");
        assert!(text.contains("leaves it at 0x2"), "{text}");
        let text = CpuError::FeatureMsr { msr: 0x7fff, wanted: 1, here: None }.to_string();
        assert!(
            text.contains("MSR 0x7fff must be 0x1 for the guest, and this host's KVM has no such MSR"),
            "{text}"
        );
    }
}
