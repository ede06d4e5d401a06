use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Register;

/// A bit of CPUID's answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CpuidBit {
    /// The leaf.
    pub leaf: u32,
    /// The subleaf; 0 where the leaf has none.
    pub subleaf: u32,
    /// The register.
    pub register: Register,
    /// The bit, 0 to 31.
    pub bit: u8,
}

/// Where a feature's bit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Place {
    /// In CPUID.
    Cpuid(CpuidBit),
    /// In a feature MSR.
    Msr {
        /// The MSR.
        msr: u32,
        /// The bit, 0 to 63.
        bit: u8,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpuid(CpuidBit { leaf, subleaf, register, bit }) => {
                write!(f, "CPUID leaf {leaf:#x} subleaf {subleaf} {register} bit {bit}")
            }
            Self::Msr { msr, bit } => write!(f, "MSR {msr:#x} bit {bit}"),
        }
    }
}
