use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Register::{Eax, Ebx, Ecx};
use crate::feature::FEATURE_WORDS;
use crate::{CpuidSet, FeatureBit, HostCpu};

/// How far apart two TSC frequencies may be without scaling, in parts per million. Guests' own clocks
/// correct as much (Linux' NTP slews up to 500 ppm), and it is the tolerance that KubeVirt uses.
pub const TSC_TOLERANCE_PPM: u64 = 250;

/// XCR0's bits that have no subleaf of 0xD: x87 and SSE lie where FXSAVE put them.
const LEGACY_COMPONENTS: u64 = 0b11;

/// The CPU that a guest was given, which it keeps for its life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestCpu {
    /// The CPUID table of its vCPUs.
    pub cpuid: CpuidSet,
    /// Frequency of its TSC in kHz.
    pub tsc_khz: u32,
    /// The MSRs whose values must be restored for it to run on, in ascending order.
    pub msr_indices: Vec<u32>,
}

/// Where an XSAVE component lies in the standard format, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct XsaveArea {
    /// Where it begins.
    pub offset: u32,
    /// How long it is.
    pub size: u32,
}

impl fmt::Display for XsaveArea {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}+{:#x}", self.offset, self.size)
    }
}

/// One reason why a guest can't run on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Mismatch {
    /// The CPUs are of different vendors.
    Vendor {
        /// The vendor that the guest sees.
        guest: String,
        /// The host's.
        host: String,
    },
    /// The guest has a feature that the host lacks.
    Feature {
        /// The feature.
        feature: FeatureBit,
    },
    /// The guest may enable an XSAVE component that the host lacks.
    XsaveComponent {
        /// The component: its bit in XCR0.
        component: u8,
    },
    /// Both have an XSAVE component, at different places.
    XsaveLayout {
        /// The component: its bit in XCR0.
        component: u8,
        /// Where the guest's is.
        guest: XsaveArea,
        /// Where the host's is.
        host: XsaveArea,
    },
    /// The guest's XSAVE area is larger than the host's.
    XsaveSize {
        /// The guest's, in bytes.
        guest: u32,
        /// The host's, in bytes.
        host: u32,
    },
    /// The guest uses longer physical addresses (MAXPHYADDR).
    PhysicalAddressBits {
        /// The guest's, in bits.
        guest: u32,
        /// The host's, in bits.
        host: u32,
    },
    /// CLFLUSH flushes another number of bytes.
    ClflushSize {
        /// What the guest was told, in bytes.
        guest: u32,
        /// The host's, in bytes.
        host: u32,
    },
    /// The TSCs run at different frequencies and the host can't scale.
    TscFrequency {
        /// The guest's, in kHz.
        guest: u32,
        /// The host's, in kHz.
        host: u32,
    },
    /// The guest has a value in an MSR that the host's KVM does not restore.
    Msr {
        /// The MSR.
        index: u32,
    },
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vendor { guest, host } => {
                write!(
                    f,
                    "CPU vendor: the guest sees {guest}, the host is {host}; pick a host of that vendor"
                )
            }
            Self::Feature { feature } => write!(f, "{feature}: guest 1, host 0"),
            Self::XsaveComponent { component } => {
                write!(f, "XSAVE component (XCR0 bit) {component}: guest 1, host 0")
            }
            Self::XsaveLayout { component, guest, host } => {
                write!(
                    f,
                    "XSAVE component {component} (CPUID leaf 0xd) is at {guest} in the guest, {host} here"
                )
            }
            Self::XsaveSize { guest, host } => {
                write!(f, "XSAVE area (CPUID leaf 0xd subleaf 0 ecx): guest {guest} bytes, host {host}")
            }
            Self::PhysicalAddressBits { guest, host } => {
                write!(f, "MAXPHYADDR (CPUID leaf 0x80000008 eax): guest {guest} bits, host {host}")
            }
            Self::ClflushSize { guest, host } => {
                write!(f, "CLFLUSH size (CPUID leaf 0x1 ebx): guest {guest} bytes, host {host}")
            }
            Self::TscFrequency { guest, host } => write!(
                f,
                "TSC frequency: guest {guest} kHz, host {host} kHz, more than {TSC_TOLERANCE_PPM} ppm apart, \
                 and the host has no TSC scaling"
            ),
            Self::Msr { index } => {
                write!(f, "MSR {index:#x}: the guest uses it, the host's KVM can't restore it")
            }
        }
    }
}

/// Whether a guest can run on a host as it ran before.
///
/// # Errors
/// All reasons why not.
pub fn admit(guest: &GuestCpu, host: &HostCpu) -> Result<(), Vec<Mismatch>> {
    let mut found = Vec::new();
    let (cpuid, offer) = (&guest.cpuid, &host.offer);
    if cpuid.vendor() != offer.vendor() {
        found.push(Mismatch::Vendor { guest: cpuid.vendor(), host: offer.vendor() });
    }
    found.extend(missing_features(cpuid, offer).map(|feature| Mismatch::Feature { feature }));
    found.extend(xsave_mismatches(cpuid, offer));
    let xsave_size = cpuid.register(0xd, 0, Ecx);
    if xsave_size > host.xsave_size {
        found.push(Mismatch::XsaveSize { guest: xsave_size, host: host.xsave_size });
    }
    let address_bits = |set: &CpuidSet| set.register(0x8000_0008, 0, Eax) & 0xff;
    if address_bits(cpuid) > address_bits(offer) {
        let (guest, host) = (address_bits(cpuid), address_bits(offer));
        found.push(Mismatch::PhysicalAddressBits { guest, host });
    }
    let clflush = |set: &CpuidSet| (set.register(1, 0, Ebx) >> 8 & 0xff) * 8;
    if clflush(cpuid) != clflush(offer) {
        found.push(Mismatch::ClflushSize { guest: clflush(cpuid), host: clflush(offer) });
    }
    if !host.tsc_scaling && !tsc_is_close(guest.tsc_khz, host.tsc_khz) {
        found.push(Mismatch::TscFrequency { guest: guest.tsc_khz, host: host.tsc_khz });
    }
    let unknown = guest.msr_indices.iter().filter(|index| !host.msr_indices.contains(index));
    found.extend(unknown.map(|index| Mismatch::Msr { index: *index }));
    if found.is_empty() { Ok(()) } else { Err(found) }
}

fn missing_features(guest: &CpuidSet, host: &CpuidSet) -> impl Iterator<Item = FeatureBit> {
    FEATURE_WORDS.iter().flat_map(move |word| {
        let of = |set: &CpuidSet| set.register(word.leaf, word.subleaf, word.register);
        let missing = of(guest) & !of(host) & !word.ignored;
        (0..32).filter(move |bit| missing & 1 << bit != 0).map(|bit| FeatureBit {
            leaf: word.leaf,
            subleaf: word.subleaf,
            register: word.register,
            bit,
        })
    })
}

fn xsave_mismatches(guest: &CpuidSet, host: &CpuidSet) -> impl Iterator<Item = Mismatch> {
    let area = |set: &CpuidSet, component: u8| XsaveArea {
        offset: set.register(0xd, component.into(), Ebx),
        size: set.register(0xd, component.into(), Eax),
    };
    (0..64u8).filter(|component| guest.xcr0() & 1 << component != 0).filter_map(move |component| {
        if host.xcr0() & 1 << component == 0 {
            return Some(Mismatch::XsaveComponent { component });
        }
        let (guest, host) = (area(guest, component), area(host, component));
        let same = LEGACY_COMPONENTS & 1 << component != 0 || guest == host;
        (!same).then_some(Mismatch::XsaveLayout { component, guest, host })
    })
}

fn tsc_is_close(guest_khz: u32, host_khz: u32) -> bool {
    u64::from(guest_khz.abs_diff(host_khz)) * 1_000_000 <= u64::from(host_khz) * TSC_TOLERANCE_PPM
}
