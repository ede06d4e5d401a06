//! What several CPUs have in common.
//!
//! The common table is a meet in a lattice that is a product of small ones, one for each field: bits under AND (or,
//! for hazards, under OR), numbers under MIN, and values that must be equal, of which different ones meet in
//! "absent". So the order in which hosts are combined does not matter, nor how often one is. Pruning
//! afterwards keeps that: what lacks something that it needs in part of the hosts lacks it in all of them.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use crate::feature::named;
use crate::feature::{Word, WordPlace, words};
use crate::xstate::Layout;
use crate::{CpuTable, CpuidEntry, CpuidSet, Kind, Register, Registers};

/// CPUs of different vendors have no common baseline: guests tell vendors apart and act on it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("there is no baseline of {a} and {b} CPUs: a guest can't move between vendors; split the pool")]
pub struct VendorsDiffer {
    /// One vendor, as leaf 0 names it.
    pub a: String,
    /// The other.
    pub b: String,
}

impl CpuTable {
    /// What both have, with what can't be had without the rest taken out.
    ///
    /// # Errors
    /// [`VendorsDiffer`].
    pub fn intersect(&self, other: &Self) -> Result<Self, VendorsDiffer> {
        let (a, b) = (self.cpuid.vendor(), other.cpuid.vendor());
        if a != b {
            return Err(VendorsDiffer { a, b });
        }
        let mut common = self.common_leaves(other);
        common.feature_msrs = self.common_msrs(other);
        for word in words() {
            common.set_word(word.at, combine(word, self.word(word.at), other.word(word.at)));
        }
        common.set_layout(&Layout::of(&self.cpuid).common(&Layout::of(&other.cpuid)));
        common.prune();
        // Under enhanced IBRS, RRSBA tells of what RSBA tells of without. (Intel: "Retpoline: a branch target
        // injection mitigation", and Xen's `gen-cpuid.py`.)
        if common.relies_on_rsb() && (self.has(named("rrsba")) || other.has(named("rrsba"))) {
            common.set([named("rsba")].into_iter().collect());
        }
        Ok(common)
    }

    /// Whether a guest of this table reads ARCH_CAPABILITIES and finds no enhanced IBRS: it takes returns as safe
    /// unless RSBA is told of.
    pub(crate) fn relies_on_rsb(&self) -> bool {
        self.has(named("arch_capabilities")) && !self.has(named("ibrs_all"))
    }

    /// Leaves that both have, their numbers combined, and those of one that may hold a hazard. Words of
    /// features are done elsewhere.
    fn common_leaves(&self, other: &Self) -> Self {
        let mut cpuid = CpuidSet::default();
        for entry in self.cpuid.entries() {
            let CpuidEntry { leaf, subleaf, registers: ours } = entry;
            let Some(theirs) = other.cpuid.line(leaf, subleaf) else { continue };
            let registers = combine_numbers(leaf, subleaf.unwrap_or(0), ours, *theirs);
            cpuid.insert(CpuidEntry { leaf, subleaf, registers }).expect("lines of one table, in part");
        }
        for (one, another) in [(self, other), (other, self)] {
            let alone =
                |entry: &CpuidEntry| another.cpuid.get(entry.leaf, entry.subleaf.unwrap_or(0)).is_none();
            for entry in one.cpuid.entries().filter(alone).filter(|entry| one.has_hazard_in(entry)) {
                let empty = CpuidEntry { registers: Registers::default(), ..entry };
                // A leaf that the other has with other subleaves, or none, is none that tells of hazards.
                let _ = cpuid.insert(empty);
            }
        }
        Self { cpuid, feature_msrs: BTreeMap::new() }
    }

    fn has_hazard_in(&self, entry: &CpuidEntry) -> bool {
        let here = |word: &&Word| match word.at {
            WordPlace::Cpuid(leaf, subleaf, _) => (leaf, subleaf) == (entry.leaf, entry.subleaf.unwrap_or(0)),
            WordPlace::Msr(_) => false,
        };
        words().filter(here).any(|word| self.word(word.at) & hazards_of(word) != 0)
    }

    /// An MSR that one of them lacks is zero there, and may still hold a hazard of the other.
    fn common_msrs(&self, other: &Self) -> BTreeMap<u32, u64> {
        let both: BTreeSet<_> = self.feature_msrs.keys().chain(other.feature_msrs.keys()).collect();
        both.into_iter()
            .map(|msr| (*msr, self.word(WordPlace::Msr(*msr)) & other.word(WordPlace::Msr(*msr))))
            .collect()
    }
}

/// The bits of a word under each one's rule. Bits without a row are AND.
fn combine(word: &Word, a: u64, b: u64) -> u64 {
    a & b | (a | b) & hazards_of(word)
}

fn hazards_of(word: &Word) -> u64 {
    word.rows.iter().filter(|row| row.kind == Kind::Or).fold(0, |bits, row| bits | 1 << row.bit)
}

fn combine_numbers(leaf: u32, subleaf: u32, a: Registers, b: Registers) -> Registers {
    let equal = |register: Register| {
        let (a, b) = (a.get(register), b.get(register));
        if a == b { a } else { 0 }
    };
    let mut common = Registers {
        eax: equal(Register::Eax),
        ebx: equal(Register::Ebx),
        ecx: equal(Register::Ecx),
        edx: equal(Register::Edx),
    };
    match (leaf, subleaf) {
        // Last leaf, last subleaf, and the signature of the older CPU.
        (0 | 1 | 0x8000_0000, _) | (7, 0) => common.eax = a.eax.min(b.eax),
        (0x8000_0008, _) => common.eax = bytewise_min(a.eax, b.eax),
        _ => {}
    }
    if leaf == 1 {
        // The rest of EBX is each vCPU's own.
        let clflush = |registers: Registers| registers.ebx & 0xff00;
        common.ebx = if clflush(a) == clflush(b) { clflush(a) } else { 0 };
    }
    common
}

/// The lengths of addresses, a byte each.
fn bytewise_min(a: u32, b: u32) -> u32 {
    let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
    u32::from_le_bytes(std::array::from_fn(|n| a[n].min(b[n])))
}
