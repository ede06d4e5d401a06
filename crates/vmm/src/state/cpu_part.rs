use kvm_bindings::{
    KVM_SREGS2_FLAGS_PDPTRS_VALID, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_sregs,
    kvm_sregs2, kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::VcpuFd;
use migrated_guest::{GuestError, SectionId};
use migrated_kernel::{get_sregs2, get_xsave, set_sregs2, set_xsave, xsave_size};
use serde::{Deserialize, Serialize};

use super::section::{decode, encode, from_raw, raw};
use super::{Hardware, msrs};
use crate::error::KvmContext;

/// A part of a vCPU's state: a section each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CpuPart {
    /// General registers.
    Regs,
    /// Segments, control registers, APIC base.
    Sregs,
    /// Which extended state the guest switched on.
    Xcrs,
    /// FPU and vector registers.
    Xsave,
    /// The local APIC.
    Lapic,
    /// Model-specific registers, but for the TSC and its timer.
    Msrs,
    /// Exceptions and interrupts on their way.
    Events,
    /// Debug registers.
    Debugregs,
    /// Running, halted, or waiting for a start-up IPI.
    MpState,
}

impl CpuPart {
    /// Reading `MpState` and `Events` first matters: KVM then acts on a start-up IPI that came, and puts
    /// an exception's payload into the registers that the others read.
    pub(super) const SAVE_ORDER: [Self; 9] = [
        Self::MpState,
        Self::Events,
        Self::Regs,
        Self::Sregs,
        Self::Xcrs,
        Self::Xsave,
        Self::Lapic,
        Self::Msrs,
        Self::Debugregs,
    ];

    /// Each part finds what it depends on: `Xsave` the components that `Xcrs` allows, `Lapic` the APIC
    /// mode of `Sregs`, `Msrs` the CPU that CPUID promised. `Regs` comes before `Events`, because
    /// setting registers drops a pending exception. The TSC follows when all vCPUs have these.
    pub(super) const RESTORE_ORDER: [Self; 9] = [
        Self::Regs,
        Self::Sregs,
        Self::Xcrs,
        Self::Xsave,
        Self::Lapic,
        Self::Msrs,
        Self::Events,
        Self::Debugregs,
        Self::MpState,
    ];

    pub(super) fn id(self, vcpu: usize) -> SectionId {
        let kind = match self {
            Self::Regs => "cpu-regs",
            Self::Sregs => "cpu-sregs",
            Self::Xcrs => "cpu-xcrs",
            Self::Xsave => "cpu-xsave",
            Self::Lapic => "cpu-lapic",
            Self::Msrs => "cpu-msrs",
            Self::Events => "cpu-events",
            Self::Debugregs => "cpu-debugregs",
            Self::MpState => "cpu-mp-state",
        };
        SectionId { kind: kind.into(), instance: vcpu as u32, version: 1 }
    }

    pub(super) fn save(self, hardware: &Hardware, vcpu: &VcpuFd) -> Result<Vec<u8>, GuestError> {
        Ok(match self {
            Self::Regs => raw(&vcpu.get_regs().guest("KVM_GET_REGS")?),
            Self::Sregs => encode(&Sregs::save(hardware, vcpu)?),
            Self::Xcrs => raw(&vcpu.get_xcrs().guest("KVM_GET_XCRS")?),
            Self::Xsave => get_xsave(&hardware.vm, vcpu)?,
            Self::Lapic => raw(&vcpu.get_lapic().guest("KVM_GET_LAPIC")?),
            Self::Msrs => encode(&msrs::save(vcpu, &hardware.features.msrs)?),
            Self::Events => raw(&vcpu.get_vcpu_events().guest("KVM_GET_VCPU_EVENTS")?),
            Self::Debugregs => raw(&vcpu.get_debug_regs().guest("KVM_GET_DEBUGREGS")?),
            Self::MpState => raw(&vcpu.get_mp_state().guest("KVM_GET_MP_STATE")?),
        })
    }

    /// # Errors
    /// In words.
    pub(super) fn restore(self, hardware: &Hardware, vcpu: &VcpuFd, data: &[u8]) -> Result<(), String> {
        match self {
            Self::Regs => vcpu.set_regs(&from_raw::<kvm_regs>(data)?),
            Self::Sregs => return decode::<Sregs>(data)?.restore(hardware, vcpu),
            Self::Xcrs => vcpu.set_xcrs(&from_raw::<kvm_xcrs>(data)?),
            Self::Xsave => return restore_xsave(hardware, vcpu, data),
            Self::Lapic => vcpu.set_lapic(&from_raw::<kvm_lapic_state>(data)?),
            Self::Msrs => return msrs::restore(vcpu, decode(data)?),
            Self::Events => vcpu.set_vcpu_events(&from_raw::<kvm_vcpu_events>(data)?),
            Self::Debugregs => vcpu.set_debug_regs(&from_raw::<kvm_debugregs>(data)?),
            Self::MpState => vcpu.set_mp_state(from_raw::<kvm_mp_state>(data)?),
        }
        .map_err(|error| format!("KVM refused it: {error}"))
    }
}

fn restore_xsave(hardware: &Hardware, vcpu: &VcpuFd, data: &[u8]) -> Result<(), String> {
    let size = xsave_size(&hardware.vm);
    if data.len() > size {
        return Err(format!("it has {} bytes of vector state, this host holds {size}", data.len()));
    }
    set_xsave(&hardware.vm, vcpu, data).map_err(|error| error.to_string())
}

/// The special registers; with the PDPTRs where the CPU holds some that differ from memory.
#[derive(Debug, Serialize, Deserialize)]
struct Sregs {
    /// `kvm_sregs`, in KVM's bytes. An interrupt that is being injected is in the events.
    sregs: Vec<u8>,
    pdptrs: Option<[u64; 4]>,
}

impl Sregs {
    fn save(hardware: &Hardware, vcpu: &VcpuFd) -> Result<Self, GuestError> {
        if !hardware.features.sregs2 {
            let sregs = vcpu.get_sregs().guest("KVM_GET_SREGS")?;
            let sregs = kvm_sregs { interrupt_bitmap: [0; 4], ..sregs };
            return Ok(Self { sregs: raw(&sregs), pdptrs: None });
        }
        let from = get_sregs2(vcpu)?;
        let sregs = kvm_sregs {
            cs: from.cs,
            ds: from.ds,
            es: from.es,
            fs: from.fs,
            gs: from.gs,
            ss: from.ss,
            tr: from.tr,
            ldt: from.ldt,
            gdt: from.gdt,
            idt: from.idt,
            cr0: from.cr0,
            cr2: from.cr2,
            cr3: from.cr3,
            cr4: from.cr4,
            cr8: from.cr8,
            efer: from.efer,
            apic_base: from.apic_base,
            interrupt_bitmap: [0; 4],
        };
        let valid = from.flags & u64::from(KVM_SREGS2_FLAGS_PDPTRS_VALID) != 0;
        Ok(Self { sregs: raw(&sregs), pdptrs: valid.then_some(from.pdptrs) })
    }

    fn restore(self, hardware: &Hardware, vcpu: &VcpuFd) -> Result<(), String> {
        let from = from_raw::<kvm_sregs>(&self.sregs)?;
        let Some(pdptrs) = self.pdptrs else {
            return vcpu.set_sregs(&from).map_err(|error| format!("KVM refused it: {error}"));
        };
        if !hardware.features.sregs2 {
            return Err("the guest uses PAE paging and this host's KVM has no KVM_CAP_SREGS2".into());
        }
        let sregs = kvm_sregs2 {
            cs: from.cs,
            ds: from.ds,
            es: from.es,
            fs: from.fs,
            gs: from.gs,
            ss: from.ss,
            tr: from.tr,
            ldt: from.ldt,
            gdt: from.gdt,
            idt: from.idt,
            cr0: from.cr0,
            cr2: from.cr2,
            cr3: from.cr3,
            cr4: from.cr4,
            cr8: from.cr8,
            efer: from.efer,
            apic_base: from.apic_base,
            flags: KVM_SREGS2_FLAGS_PDPTRS_VALID.into(),
            pdptrs,
        };
        set_sregs2(vcpu, &sregs).map_err(|error| error.to_string())
    }
}
