//! Whether a guest can run on a host as it ran before.
//!
//! The guest's own table is compared with what the host's KVM gives, field by field under each field's [`Kind`]; never
//! a baseline's name with another. All reasons are collected.

mod cause;
mod hazard;
mod mismatch;
mod msr;
mod report;

use serde::{Deserialize, Serialize};

pub use mismatch::{Cause, Mismatch, Value, Warning};
pub use report::CpuReport;

use crate::feature::{CpuidBit, words};
use crate::xstate::{LEGACY, Layout, TILE_LEAF, TMUL_LEAF, components, components_of};
use crate::{CpuTable, Feature, FeatureSet, HostCpu, Kind, Place, Register};

/// How far apart two TSC frequencies may be without scaling, in parts per million. Guests' own clocks
/// correct as much (Linux' NTP slews up to 500 ppm), and it is the tolerance that KubeVirt uses.
pub const TSC_TOLERANCE_PPM: u64 = 250;

/// Signature of KVM's own leaves, `KVMKVMKVM`.
const KVM_SIGNATURE: u32 = 0x4000_0000;

/// The CPU that a guest was given, which it keeps until it is switched off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestCpu {
    /// The baseline that it was made from.
    pub baseline: String,
    /// What its vCPUs have, read back from KVM.
    pub table: CpuTable,
    /// Features that it sees although its baseline has them not: this host's KVM can't hide them.
    #[serde(default, skip_serializing_if = "FeatureSet::is_empty")]
    pub unmasked: FeatureSet,
    /// Frequency of its TSC in kHz.
    pub tsc_khz: u32,
    /// MSRs that hold state of it and that must be restored wherever it goes, in ascending order.
    #[serde(default)]
    pub saved_msrs: Vec<u32>,
}

/// What comes of comparing a guest with a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admission {
    /// Why it can't run there; it can when there is nothing.
    pub mismatches: Vec<Mismatch>,
    /// What its owner may want to know.
    pub warnings: Vec<Warning>,
}

impl Admission {
    /// Whether the guest can run there.
    #[must_use]
    pub fn is_admitted(&self) -> bool {
        self.mismatches.is_empty()
    }
}

/// Whether a guest can run on a host as it ran before.
#[must_use]
pub fn admit(guest: &GuestCpu, host: &HostCpu) -> Admission {
    let mut found = compare(&guest.table, host);
    if !host.tsc_scaling && !tsc_is_close(guest.tsc_khz, host.tsc_khz) {
        let mismatch = Mismatch::field("tsc_khz", guest.tsc_khz, host.tsc_khz, Kind::Eq, Cause::ValueDiffers);
        found.mismatches.push(mismatch);
    }
    // Of a guest that can't come for its vendor nothing else is said.
    if guest.table.cpuid.vendor() == host.vendor() {
        msr::unknown(guest, host, &mut found.mismatches);
    }
    found
}

/// As [`admit`], for a table that no guest has yet.
pub(crate) fn compare(guest: &CpuTable, host: &HostCpu) -> Admission {
    let vendors = (guest.cpuid.vendor(), host.vendor());
    let mut mismatches = Vec::new();
    if vendors.0 != vendors.1 {
        // Everything else would follow from this.
        let (guest, host) = vendors;
        mismatches.push(Mismatch::field("vendor", guest, host, Kind::Eq, Cause::VendorDiffers));
        return Admission { mismatches, warnings: Vec::new() };
    }
    features(guest, host, &mut mismatches);
    hazard::untold(guest, host, &mut mismatches);
    layout(guest, host, &mut mismatches);
    numbers(guest, host, &mut mismatches);
    Admission { mismatches, warnings: hazard::warnings(guest, host) }
}

/// Feature bits that the guest has and the host has not.
fn features(guest: &CpuTable, host: &HostCpu, found: &mut Vec<Mismatch>) {
    let vendor = host.vendor();
    for word in words() {
        let free = word.rows.iter().filter(|row| row.kind != Kind::And);
        let free = free.fold(word.ignored, |bits, row| bits | 1 << row.bit);
        let missing = guest.word(word.at) & !host.kvm.word(word.at) & !free;
        for bit in components(missing) {
            let place = word.place(bit);
            found.push(match Feature::at(place) {
                Some(feature) => Mismatch::feature(feature, true, cause::of(feature, host), &vendor),
                None => unnamed(place, host),
            });
        }
    }
}

/// A bit that has no row, so that nobody knows what it is.
fn unnamed(place: Place, host: &HostCpu) -> Mismatch {
    let in_hardware = match place {
        Place::Cpuid(CpuidBit { leaf, subleaf, register, bit }) => host
            .hardware
            .as_ref()
            .is_some_and(|table| table.register(leaf, subleaf, register) & 1 << bit != 0),
        Place::Msr { .. } => false,
    };
    let cause = if in_hardware { Cause::MaskedByKvm } else { Cause::HostLacks };
    Mismatch { place: Some(place), ..Mismatch::field("unnamed feature", true, false, Kind::And, cause) }
}

/// XSAVE components, each at its place. Of a missing feature the feature was told already, not its components.
fn layout(guest: &CpuTable, host: &HostCpu, found: &mut Vec<Mismatch>) {
    let (ours, theirs) = (Layout::of(&guest.cpuid), Layout::of(&host.kvm.cpuid));
    let told = components_of(guest.features()) & !components_of(host.kvm.features());
    for component in components(ours.mask() & !told) {
        let field = format!("xsave_area[{component}]");
        match (ours.area(component), theirs.area(component)) {
            _ if theirs.mask() & 1 << component == 0 => {
                let owner = ours.area(component).map_or("1".into(), |area| area.to_string());
                found.push(Mismatch::field(field, owner, "none".to_owned(), Kind::And, Cause::HostLacks));
            }
            (guest, host) if guest == host || LEGACY & 1 << component != 0 => {}
            (guest, host) => {
                let text =
                    |area: Option<crate::XsaveArea>| area.map_or("none".into(), |area| area.to_string());
                found.push(Mismatch::field(field, text(guest), text(host), Kind::Eq, Cause::LayoutDiffers));
            }
        }
    }
    let size = guest.cpuid.register(0xd, 0, Register::Ecx);
    if size > host.xsave_size {
        let mismatch = Mismatch::field("xsave_size", size, host.xsave_size, Kind::Min, Cause::HostLacks);
        found.push(mismatch);
    }
}

/// Numbers that must be equal, or no more than the host's.
fn numbers(guest: &CpuTable, host: &HostCpu, found: &mut Vec<Mismatch>) {
    let kvm = &host.kvm;
    let mut at_most = |field: &str, guest: u32, host: u32| {
        if guest > host {
            found.push(Mismatch::field(field, guest, host, Kind::Min, Cause::HostLacks));
        }
    };
    at_most("physical_address_bits", guest.physical_address_bits(), kvm.physical_address_bits());
    at_most("linear_address_bits", guest.linear_address_bits(), kvm.linear_address_bits());
    // The performance monitoring unit: its version must be equal (below), its counters must be there.
    let counters = |table: &CpuTable| table.cpuid.register(0xa, 0, Register::Eax) >> 8 & 0xff;
    at_most("pmu_counters", counters(guest), counters(kvm));
    let mut equal = |field: &str, guest: u32, host: u32| {
        if guest != 0 && guest != host {
            found.push(Mismatch::field(field, guest, host, Kind::Eq, Cause::ValueDiffers));
        }
    };
    equal("clflush_bytes", guest.clflush_bytes(), kvm.clflush_bytes());
    let pmu = |table: &CpuTable| table.cpuid.register(0xa, 0, Register::Eax) & 0xff;
    equal("pmu_version", pmu(guest), pmu(kvm));
    let guest_physical = |table: &CpuTable| table.cpuid.register(0x8000_0008, 0, Register::Eax) >> 16 & 0xff;
    equal("guest_physical_address_bits", guest_physical(guest), guest_physical(kvm));
    for register in [Register::Ebx, Register::Ecx, Register::Edx] {
        let signature = |table: &CpuTable| table.cpuid.register(KVM_SIGNATURE, 0, register);
        equal("hypervisor_signature", signature(guest), signature(kvm));
    }
    for (leaf, subleaf, field) in [(TILE_LEAF, 1, "amx_tiles"), (TMUL_LEAF, 0, "amx_multiplier")] {
        for register in Register::ALL {
            let size = |table: &CpuTable| table.cpuid.register(leaf, subleaf, register);
            equal(field, size(guest), size(kvm));
        }
    }
}

fn tsc_is_close(guest_khz: u32, host_khz: u32) -> bool {
    u64::from(guest_khz.abs_diff(host_khz)) * 1_000_000 <= u64::from(host_khz) * TSC_TOLERANCE_PPM
}
