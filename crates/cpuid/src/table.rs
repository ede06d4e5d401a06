use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::feature::{WordPlace, words};
use crate::{CpuidSet, Feature, FeatureSet, Place, Register};

/// Everything by which a CPU tells software what it can do: CPUID, and the MSRs that do the same
/// (such as IA32_ARCH_CAPABILITIES).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuTable {
    /// CPUID's answers.
    pub cpuid: CpuidSet,
    /// Feature MSRs and their values. One that is not there is not set, and counts as zero.
    #[serde(default)]
    pub feature_msrs: BTreeMap<u32, u64>,
}

impl CpuTable {
    /// The bits at a place of the feature table; 0 where there is no such leaf or MSR.
    pub(crate) fn word(&self, at: WordPlace) -> u64 {
        match at {
            WordPlace::Cpuid(leaf, subleaf, register) => self.cpuid.register(leaf, subleaf, register).into(),
            WordPlace::Msr(msr) => self.feature_msrs.get(&msr).copied().unwrap_or(0),
        }
    }

    /// Sets those bits, where there is such a leaf or MSR.
    pub(crate) fn set_word(&mut self, at: WordPlace, bits: u64) {
        match at {
            WordPlace::Cpuid(leaf, subleaf, register) => {
                if let Some(registers) = self.cpuid.get_mut(leaf, subleaf) {
                    *registers.get_mut(register) = bits as u32;
                }
            }
            WordPlace::Msr(msr) => {
                if let Some(value) = self.feature_msrs.get_mut(&msr) {
                    *value = bits;
                }
            }
        }
    }

    /// Whether the feature's bit is set.
    #[must_use]
    pub fn has(&self, feature: Feature) -> bool {
        let (at, bit) = WordPlace::of(feature.place());
        self.word(at) & 1 << bit != 0
    }

    /// All features whose bits are set.
    #[must_use]
    pub fn features(&self) -> FeatureSet {
        let mut set = FeatureSet::EMPTY;
        let mut features = Feature::all();
        for word in words() {
            let bits = self.word(word.at);
            for (row, feature) in word.rows.iter().zip(&mut features) {
                if bits & 1 << row.bit != 0 {
                    set.insert(feature);
                }
            }
        }
        set
    }

    /// Clears the bits of those features.
    pub fn clear(&mut self, features: FeatureSet) {
        for feature in features.iter() {
            let (at, bit) = WordPlace::of(feature.place());
            self.set_word(at, self.word(at) & !(1 << bit));
        }
    }

    /// Sets the bits of those features, where their leaf or MSR is there.
    pub(crate) fn set(&mut self, features: FeatureSet) {
        for feature in features.iter() {
            let (at, bit) = WordPlace::of(feature.place());
            self.set_word(at, self.word(at) | 1 << bit);
        }
    }

    /// Length of guest-physical addresses in bits (MAXPHYADDR): 36 where the CPU does not tell.
    #[must_use]
    pub fn physical_address_bits(&self) -> u32 {
        match self.cpuid.register(0x8000_0008, 0, Register::Eax) & 0xff {
            0 => 36,
            bits => bits,
        }
    }

    /// Length of linear addresses in bits: 48 where the CPU does not tell.
    #[must_use]
    pub fn linear_address_bits(&self) -> u32 {
        match self.cpuid.register(0x8000_0008, 0, Register::Eax) >> 8 & 0xff {
            0 => 48,
            bits => bits,
        }
    }

    /// What CLFLUSH flushes, in bytes.
    #[must_use]
    pub fn clflush_bytes(&self) -> u32 {
        (self.cpuid.register(1, 0, Register::Ebx) >> 8 & 0xff) * 8
    }
}

impl WordPlace {
    /// The word that a place is in, and the bit.
    pub(crate) const fn of(place: Place) -> (Self, u8) {
        match place {
            Place::Cpuid(at) => (Self::Cpuid(at.leaf, at.subleaf, at.register), at.bit),
            Place::Msr { msr, bit } => (Self::Msr(msr), bit),
        }
    }
}
