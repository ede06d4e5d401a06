//! A host's CPU as a file: what `migrated cpu dump` writes, and `cpu baseline` and `cpu check` read.
//!
//! It holds facts, not conclusions: what a host offers is worked out by who reads it, so that all hosts of a
//! comparison are judged by the same rules.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    CpuTable, CpuidEntry, CpuidSet, CpuidSetError, FeatureSet, HostCpu, HostIdentity, LostFeature, Registers,
};

/// Version of the file's form that is written, and read.
pub const DUMP_FORMAT: u32 = 1;

/// A dump. A line of CPUID is `leaf[.subleaf] eax ebx ecx edx`, all hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CpuDump {
    /// [`DUMP_FORMAT`].
    pub format: u32,
    /// What wrote it.
    pub tool: String,
    /// Where the facts are from, when not from the host itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Whose CPU it is.
    pub host: HostIdentity,
    /// CPUID's answers on the host itself.
    pub hardware: Option<Vec<String>>,
    /// What KVM gives a guest that asks for everything.
    pub kvm: Vec<String>,
    /// Feature MSRs of such a guest.
    #[serde(with = "hex_map")]
    #[cfg_attr(feature = "openapi", schema(value_type = BTreeMap<String, String>))]
    pub feature_msrs: BTreeMap<u32, u64>,
    /// Frequency of the TSC in kHz.
    pub tsc_khz: u32,
    /// Whether KVM can give a guest another TSC frequency.
    pub tsc_scaling: bool,
    /// Size of a vCPU's XSAVE area in bytes.
    pub xsave_size: u32,
    /// The MSRs that KVM saves and restores.
    pub msr_indices: Option<Vec<u32>>,
    /// Features that the host's owner keeps from new guests.
    #[serde(default, skip_serializing_if = "FeatureSet::is_empty")]
    pub hidden: FeatureSet,
    /// What the host had once and has no more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<LostFeature>,
}

/// Why a text is no dump of a CPU.
#[derive(Debug, Error)]
pub enum DumpError {
    /// Cut off, or no dump at all.
    #[error("it is no CPU dump, or cut off: {0}; make it anew with `migrated cpu dump --json`")]
    Malformed(#[from] serde_json::Error),
    /// Of another version of the tool.
    #[error(
        "its format is {found} (written by {tool}), this build reads {DUMP_FORMAT}; make it anew with \
         this version's `migrated cpu dump --json`"
    )]
    Format {
        /// The version that it says.
        found: u32,
        /// What wrote it.
        tool: String,
    },
    /// A line of CPUID that is none.
    #[error("the line {line:?} is not `leaf[.subleaf] eax ebx ecx edx` in hexadecimal")]
    Line {
        /// The line.
        line: String,
    },
    /// Lines that contradict each other.
    #[error(transparent)]
    Table(#[from] CpuidSetError),
    /// Without what every CPU has.
    #[error("it lacks CPUID leaf {leaf:#x}, which every 64-bit CPU has: it is cut off; make it anew")]
    Incomplete {
        /// The leaf.
        leaf: u32,
    },
    /// Values that no CPU has.
    #[error("{field} is {value}, which no CPU has")]
    Value {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
}

impl CpuDump {
    /// Reads a dump's text.
    ///
    /// # Errors
    /// [`DumpError`].
    pub fn parse(text: &str) -> Result<Self, DumpError> {
        #[derive(Deserialize)]
        struct Head {
            format: u32,
            #[serde(default)]
            tool: String,
        }
        let head: Head = serde_json::from_str(text)?;
        if head.format != DUMP_FORMAT {
            return Err(DumpError::Format { found: head.format, tool: head.tool });
        }
        Ok(serde_json::from_str(text)?)
    }

    /// The dump of a host's CPU.
    #[must_use]
    pub fn of(host: &HostCpu) -> Self {
        Self {
            format: DUMP_FORMAT,
            tool: concat!("migrated ", env!("CARGO_PKG_VERSION")).into(),
            source: None,
            host: host.identity.clone(),
            hardware: host.hardware.as_ref().map(lines),
            kvm: lines(&host.kvm.cpuid),
            feature_msrs: host.kvm.feature_msrs.clone(),
            tsc_khz: host.tsc_khz,
            tsc_scaling: host.tsc_scaling,
            xsave_size: host.xsave_size,
            msr_indices: host.msr_indices.clone(),
            hidden: host.hidden,
            lost: host.lost.clone(),
        }
    }
}

impl TryFrom<CpuDump> for HostCpu {
    type Error = DumpError;

    fn try_from(dump: CpuDump) -> Result<Self, DumpError> {
        let cpuid = table(&dump.kvm)?;
        for leaf in [0, 1, 0x8000_0001] {
            if cpuid.get(leaf, 0).is_none() {
                return Err(DumpError::Incomplete { leaf });
            }
        }
        if dump.tsc_khz == 0 {
            return Err(DumpError::Value { field: "tsc_khz", value: 0 });
        }
        Ok(Self {
            identity: dump.host,
            hardware: dump.hardware.as_deref().map(table).transpose()?,
            kvm: CpuTable { cpuid, feature_msrs: dump.feature_msrs },
            tsc_khz: dump.tsc_khz,
            tsc_scaling: dump.tsc_scaling,
            xsave_size: dump.xsave_size,
            msr_indices: dump.msr_indices,
            hidden: dump.hidden,
            lost: dump.lost,
        })
    }
}

fn lines(set: &CpuidSet) -> Vec<String> {
    set.entries().map(line).collect()
}

fn line(entry: CpuidEntry) -> String {
    let CpuidEntry { leaf, subleaf, registers: Registers { eax, ebx, ecx, edx } } = entry;
    let subleaf = subleaf.map(|subleaf| format!(".{subleaf:x}")).unwrap_or_default();
    format!("{leaf:x}{subleaf} {eax:08x} {ebx:08x} {ecx:08x} {edx:08x}")
}

fn table(lines: &[String]) -> Result<CpuidSet, DumpError> {
    let mut set = CpuidSet::default();
    for line in lines {
        let entry = parse_line(line).ok_or_else(|| DumpError::Line { line: line.clone() })?;
        set.insert(entry)?;
    }
    Ok(set)
}

fn parse_line(line: &str) -> Option<CpuidEntry> {
    let hex = |text: &str| u32::from_str_radix(text, 16).ok();
    let words: Vec<_> = line.split_ascii_whitespace().collect();
    let [name, eax, ebx, ecx, edx] = words[..] else { return None };
    let (leaf, subleaf) = match name.split_once('.') {
        Some((leaf, subleaf)) => (leaf, Some(hex(subleaf)?)),
        None => (name, None),
    };
    let registers = Registers { eax: hex(eax)?, ebx: hex(ebx)?, ecx: hex(ecx)?, edx: hex(edx)? };
    Some(CpuidEntry { leaf: hex(leaf)?, subleaf, registers })
}

/// Numbers as people read MSRs.
fn parse_hex<E: serde::de::Error>(text: &str) -> Result<u64, E> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    u64::from_str_radix(digits, 16).map_err(|_| E::custom(format!("{text:?} is not a hexadecimal number")))
}

/// `"0x2b"`, or nothing.
pub(crate) mod hex_option {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(value: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => serializer.serialize_str(&format!("{value:#x}")),
            None => serializer.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.as_deref().map(super::parse_hex).transpose()
    }
}

/// `{"0x10a": "0xc0aa0eb"}`.
mod hex_map {
    use std::collections::BTreeMap;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(map: &BTreeMap<u32, u64>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(map.iter().map(|(msr, value)| (format!("{msr:#x}"), format!("{value:#x}"))))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<u32, u64>, D::Error> {
        let texts = BTreeMap::<String, String>::deserialize(deserializer)?;
        let parsed = texts.iter().map(|(msr, value)| {
            let msr = super::parse_hex::<D::Error>(msr)?;
            let msr =
                u32::try_from(msr).map_err(|_| D::Error::custom(format!("there is no MSR {msr:#x}")))?;
            Ok((msr, super::parse_hex(value)?))
        });
        parsed.collect()
    }
}
