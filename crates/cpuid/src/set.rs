use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// One of the four registers that CPUID answers in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Register {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

impl Register {
    /// All four.
    pub const ALL: [Self; 4] = [Self::Eax, Self::Ebx, Self::Ecx, Self::Edx];
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Eax => "eax",
            Self::Ebx => "ebx",
            Self::Ecx => "ecx",
            Self::Edx => "edx",
        })
    }
}

/// CPUID's answer for one leaf and subleaf.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Registers {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

impl Registers {
    /// The value of one register.
    #[must_use]
    pub const fn get(&self, register: Register) -> u32 {
        match register {
            Register::Eax => self.eax,
            Register::Ebx => self.ebx,
            Register::Ecx => self.ecx,
            Register::Edx => self.edx,
        }
    }

    /// One register, to change it.
    pub const fn get_mut(&mut self, register: Register) -> &mut u32 {
        match register {
            Register::Eax => &mut self.eax,
            Register::Ebx => &mut self.ebx,
            Register::Ecx => &mut self.ecx,
            Register::Edx => &mut self.edx,
        }
    }
}

/// One line of a CPUID table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuidEntry {
    /// The leaf, EAX on input.
    pub leaf: u32,
    /// The subleaf, ECX on input; `None` where the leaf does not look at it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subleaf: Option<u32>,
    /// The answer.
    pub registers: Registers,
}

/// A CPUID table in order of leaf and subleaf. A leaf either has subleaves or has not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<CpuidEntry>", into = "Vec<CpuidEntry>")]
pub struct CpuidSet {
    leaves: BTreeMap<u32, Leaf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Leaf {
    Plain(Registers),
    Indexed(BTreeMap<u32, Registers>),
}

/// Why lines are no table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CpuidSetError {
    /// The leaf and subleaf are there already.
    #[error("CPUID leaf {leaf:#x} subleaf {subleaf:?} is listed twice")]
    Duplicate {
        /// The leaf.
        leaf: u32,
        /// The subleaf.
        subleaf: Option<u32>,
    },
    /// The leaf is listed both with and without a subleaf.
    #[error("CPUID leaf {leaf:#x} is listed both with and without a subleaf")]
    Mixed {
        /// The leaf.
        leaf: u32,
    },
}

impl CpuidSet {
    /// Adds a line.
    ///
    /// # Errors
    /// [`CpuidSetError`] when it contradicts one that is there; the table is then unchanged.
    pub fn insert(&mut self, entry: CpuidEntry) -> Result<(), CpuidSetError> {
        let CpuidEntry { leaf, subleaf, registers } = entry;
        let new = match subleaf {
            None => Leaf::Plain(registers),
            Some(_) => Leaf::Indexed(BTreeMap::new()),
        };
        if subleaf.is_none() && matches!(self.leaves.get(&leaf), Some(Leaf::Plain(_))) {
            return Err(CpuidSetError::Duplicate { leaf, subleaf });
        }
        match (self.leaves.entry(leaf).or_insert(new), subleaf) {
            (Leaf::Plain(_), None) => Ok(()),
            (Leaf::Indexed(answers), Some(index)) if !answers.contains_key(&index) => {
                answers.insert(index, registers);
                Ok(())
            }
            (Leaf::Indexed(_), Some(_)) => Err(CpuidSetError::Duplicate { leaf, subleaf }),
            _ => Err(CpuidSetError::Mixed { leaf }),
        }
    }

    /// The answer for a leaf and subleaf, as the CPU gives it: a leaf without subleaves answers the
    /// same for each. `None` when the table has no such line.
    #[must_use]
    pub fn get(&self, leaf: u32, subleaf: u32) -> Option<&Registers> {
        match self.leaves.get(&leaf)? {
            Leaf::Plain(registers) => Some(registers),
            Leaf::Indexed(answers) => answers.get(&subleaf),
        }
    }

    /// The line that the table has for exactly this leaf and subleaf.
    pub(crate) fn line(&self, leaf: u32, subleaf: Option<u32>) -> Option<&Registers> {
        match (self.leaves.get(&leaf)?, subleaf) {
            (Leaf::Plain(registers), None) => Some(registers),
            (Leaf::Indexed(answers), Some(subleaf)) => answers.get(&subleaf),
            _ => None,
        }
    }

    /// As [`get`](Self::get), to change the answer.
    pub fn get_mut(&mut self, leaf: u32, subleaf: u32) -> Option<&mut Registers> {
        match self.leaves.get_mut(&leaf)? {
            Leaf::Plain(registers) => Some(registers),
            Leaf::Indexed(answers) => answers.get_mut(&subleaf),
        }
    }

    /// One register's value; 0 when the table has no such line, as CPUs answer.
    #[must_use]
    pub fn register(&self, leaf: u32, subleaf: u32, register: Register) -> u32 {
        self.get(leaf, subleaf).map_or(0, |registers| registers.get(register))
    }

    /// All lines in order.
    pub fn entries(&self) -> impl Iterator<Item = CpuidEntry> + '_ {
        self.leaves.iter().flat_map(|(&leaf, answers)| {
            let (plain, indexed) = match answers {
                Leaf::Plain(registers) => (Some((None, *registers)), None),
                Leaf::Indexed(answers) => (None, Some(answers.iter().map(|(index, r)| (Some(*index), *r)))),
            };
            let lines = plain.into_iter().chain(indexed.into_iter().flatten());
            lines.map(move |(subleaf, registers)| CpuidEntry { leaf, subleaf, registers })
        })
    }

    /// The vendor's name in leaf 0, e.g. `GenuineIntel`; empty when the table has no leaf 0.
    #[must_use]
    pub fn vendor(&self) -> String {
        let Some(Registers { ebx, ecx, edx, .. }) = self.get(0, 0) else { return String::new() };
        let bytes = [ebx, edx, ecx].into_iter().flat_map(|register| register.to_le_bytes());
        bytes.map(|byte| char::from(if byte.is_ascii_graphic() { byte } else { b'?' })).collect()
    }

    /// Takes a leaf out, with all its subleaves.
    pub fn remove(&mut self, leaf: u32) {
        self.leaves.remove(&leaf);
    }

    /// The XSAVE components that IA32_XSS may enable (leaf 0xD).
    #[must_use]
    pub fn xss(&self) -> u64 {
        let high = self.register(0xd, 1, Register::Edx);
        u64::from(high) << 32 | u64::from(self.register(0xd, 1, Register::Ecx))
    }

    /// The XSAVE components that XCR0 may enable (leaf 0xD).
    #[must_use]
    pub fn xcr0(&self) -> u64 {
        let high = self.register(0xd, 0, Register::Edx);
        u64::from(high) << 32 | u64::from(self.register(0xd, 0, Register::Eax))
    }
}

impl TryFrom<Vec<CpuidEntry>> for CpuidSet {
    type Error = CpuidSetError;

    fn try_from(entries: Vec<CpuidEntry>) -> Result<Self, CpuidSetError> {
        let mut set = Self::default();
        entries.into_iter().try_for_each(|entry| set.insert(entry))?;
        Ok(set)
    }
}

impl From<CpuidSet> for Vec<CpuidEntry> {
    fn from(set: CpuidSet) -> Self {
        set.entries().collect()
    }
}
