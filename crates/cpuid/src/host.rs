use serde::{Deserialize, Serialize};

use crate::{CpuTable, CpuidSet, Feature, FeatureSet, Kind, Place, Register};

/// Who a host is, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HostIdentity {
    /// Its name.
    pub name: String,
    /// The CPU's name, as the CPU tells it.
    pub model_name: Option<String>,
    /// Release of its kernel.
    pub kernel: Option<String>,
    /// Revision of the CPU's microcode.
    #[serde(default, with = "crate::dump::hex_option")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub microcode: Option<u64>,
}

/// A feature that a host had once and has no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LostFeature {
    /// The feature.
    pub feature: Feature,
    /// Microcode of when it was there.
    #[serde(default, with = "crate::dump::hex_option")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub microcode_then: Option<u64>,
    /// Microcode of when it was first missed.
    #[serde(default, with = "crate::dump::hex_option")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub microcode_now: Option<u64>,
    /// When it was missed, in ms since the Unix epoch.
    pub noticed_unix_ms: u64,
}

/// What a host's CPU and KVM can give a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostCpu {
    /// Who it is.
    pub identity: HostIdentity,
    /// CPUID's answers on the host itself, where they are known: with them the reason for a missing
    /// feature can be told.
    pub hardware: Option<CpuidSet>,
    /// What KVM gives a guest that asks for everything. An incoming guest may have all of it.
    pub kvm: CpuTable,
    /// Frequency of the TSC in kHz.
    pub tsc_khz: u32,
    /// Whether KVM can give a guest another TSC frequency (KVM_CAP_TSC_CONTROL).
    pub tsc_scaling: bool,
    /// Size of a vCPU's XSAVE area in bytes (KVM_CAP_XSAVE2).
    pub xsave_size: u32,
    /// The MSRs that KVM saves and restores, in ascending order; `None` where that is not known.
    pub msr_indices: Option<Vec<u32>>,
    /// Features that this host's owner keeps from new guests; incoming ones may have them.
    pub hidden: FeatureSet,
    /// What it had once and has no more.
    pub lost: Vec<LostFeature>,
}

/// Leaf 1 EAX, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Signature {
    /// Family, with the extended family added.
    pub family: u32,
    /// Model, with the extended model.
    pub model: u32,
    /// Stepping.
    pub stepping: u32,
}

impl From<u32> for Signature {
    fn from(eax: u32) -> Self {
        let base = eax >> 8 & 0xf;
        let extended = if base == 0xf { eax >> 20 & 0xff } else { 0 };
        let model = (eax >> 4 & 0xf) | if base == 0xf || base == 6 { eax >> 12 & 0xf0 } else { 0 };
        Self { family: base + extended, model, stepping: eax & 0xf }
    }
}

impl HostCpu {
    /// The vendor's name in leaf 0, e.g. `GenuineIntel`.
    #[must_use]
    pub fn vendor(&self) -> String {
        self.kvm.cpuid.vendor()
    }

    /// Which CPU it is.
    #[must_use]
    pub fn signature(&self) -> Signature {
        self.kvm.cpuid.register(1, 0, Register::Eax).into()
    }

    /// The features that new guests may get: what KVM gives, without what its owner hides, what can't be
    /// migrated, and what lacks something that it needs.
    #[must_use]
    pub fn offered(&self) -> FeatureSet {
        let mut table = self.kvm.clone();
        table.clear(table.features() - self.kvm_features_to_offer());
        table.prune();
        table.features()
    }

    fn kvm_features_to_offer(&self) -> FeatureSet {
        let safe = |feature: &Feature| feature.withheld().is_none() && feature.kind() != Kind::Synthetic;
        self.kvm.features().iter().filter(safe).collect::<FeatureSet>() - self.hidden
    }

    /// The features that an incoming guest may have.
    #[must_use]
    pub fn accepted(&self) -> FeatureSet {
        let hints = Feature::all().filter(|feature| matches!(feature.kind(), Kind::Hint | Kind::Or));
        self.kvm.features() | hints.collect()
    }

    /// Whether the CPU itself has a feature of CPUID; `None` where that is not known.
    #[must_use]
    pub fn hardware_has(&self, feature: Feature) -> Option<bool> {
        match feature.place() {
            Place::Cpuid(at) => {
                let register = self.hardware.as_ref()?.register(at.leaf, at.subleaf, at.register);
                Some(register & 1 << at.bit != 0)
            }
            Place::Msr { .. } => None,
        }
    }
}
