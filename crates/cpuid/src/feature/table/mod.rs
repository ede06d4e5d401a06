//! The feature table: a word for each register or MSR whose bits are features, a row for each bit.

mod basic;
mod extended;
mod msr;
mod paravirtual;

use super::{Class, CpuidBit, Kind, Masking, Place, Row};
use crate::Register;

pub(crate) use msr::ARCH_CAPABILITIES;

/// A register or MSR full of feature bits. Bits without a row are compared as [`Kind::And`], and no new guest
/// gets them: nobody knows whether they can be migrated.
pub(crate) struct Word {
    pub at: WordPlace,
    /// Bits that only repeat those of another word, and bits that count something.
    pub ignored: u64,
    pub rows: &'static [Row],
}

/// Where a word is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum WordPlace {
    Cpuid(u32, u32, Register),
    Msr(u32),
}

impl Word {
    const fn ignoring(mut self, bits: u64) -> Self {
        self.ignored = bits;
        self
    }

    /// The place of one of its bits.
    pub fn place(&self, bit: u8) -> Place {
        match self.at {
            WordPlace::Cpuid(leaf, subleaf, register) => {
                Place::Cpuid(CpuidBit { leaf, subleaf, register, bit })
            }
            WordPlace::Msr(msr) => Place::Msr { msr, bit },
        }
    }
}

/// All words, in order.
pub(crate) fn words() -> impl Iterator<Item = &'static Word> {
    [basic::WORDS, paravirtual::WORDS, extended::WORDS, msr::WORDS].into_iter().flatten()
}

const fn cpuid(leaf: u32, subleaf: u32, register: Register, rows: &'static [Row]) -> Word {
    Word { at: WordPlace::Cpuid(leaf, subleaf, register), ignored: 0, rows }
}

const fn row(bit: u8, name: &'static str, kind: Kind, class: Class) -> Row {
    Row { bit, name, aliases: &[], kind, class, masking: Masking::Hidden, withheld: None }
}

/// An instruction or mode.
const fn isa(bit: u8, name: &'static str) -> Row {
    row(bit, name, Kind::And, Class::Isa)
}

/// A speculation control, or the promise that a CPU is not vulnerable.
const fn mitigation(bit: u8, name: &'static str) -> Row {
    row(bit, name, Kind::And, Class::Mitigation)
}

/// A hazard, or something that software must do.
const fn hazard(bit: u8, name: &'static str) -> Row {
    row(bit, name, Kind::Or, Class::Mitigation)
}

/// How fast something is.
const fn hint(bit: u8, name: &'static str) -> Row {
    row(bit, name, Kind::Hint, Class::Isa)
}

/// Follows from what the VMM or the guest does.
const fn synthetic(bit: u8, name: &'static str) -> Row {
    row(bit, name, Kind::Synthetic, Class::Isa)
}

/// KVM's own.
const fn paravirtual(bit: u8, name: &'static str) -> Row {
    row(bit, name, Kind::And, Class::Paravirtual)
}

impl Row {
    const fn or(mut self, aliases: &'static [&'static str]) -> Self {
        self.aliases = aliases;
        self
    }

    const fn by(mut self, masking: Masking) -> Self {
        self.masking = masking;
        self
    }

    /// New guests never get it, because …
    const fn withheld(mut self, why: &'static str) -> Self {
        self.withheld = Some(why);
        self
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::{Feature, FeatureSet};
    use super::*;

    #[test]
    fn words_and_rows_are_in_order_and_each_place_has_one_row() {
        let places: Vec<_> = words().map(|word| word.at).collect();
        assert!(places.is_sorted_by(|a, b| a < b), "{places:?}");
        for word in words() {
            let bits: Vec<_> = word.rows.iter().map(|row| row.bit).collect();
            assert!(bits.is_sorted_by(|a, b| a < b), "{:?}: {bits:?}", word.at);
            let width = if matches!(word.at, WordPlace::Msr(_)) { 64 } else { 32 };
            assert!(bits.iter().all(|bit| *bit < width && word.ignored & 1 << bit == 0), "{:?}", word.at);
        }
    }

    #[test]
    fn each_name_is_there_once_and_finds_its_row() {
        let mut names = BTreeSet::new();
        for (word, row) in words().flat_map(|word| word.rows.iter().map(move |row| (word, row))) {
            for name in [row.name].iter().chain(row.aliases) {
                assert!(names.insert(*name), "{name} is there twice");
                let known =
                    name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || b"_-.".contains(&c));
                assert!(known, "{name}");
                let feature = Feature::named(name).expect("a feature by its name");
                assert_eq!((feature.name(), feature.place()), (row.name, word.place(row.bit)));
                assert_eq!(Feature::at(feature.place()), Some(feature));
            }
            // Only aliases are spelt as QEMU spells them.
            assert!(!row.name.contains(['-', '.']), "{}", row.name);
        }
    }

    #[test]
    fn a_set_has_room_for_all() {
        assert!(Feature::all().count() <= FeatureSet::CAPACITY);
        assert!(Feature::all().collect::<FeatureSet>().iter().eq(Feature::all()));
    }

    #[test]
    fn hazards_are_those_that_hosts_disagree_on_for_the_worse() {
        let hazards: FeatureSet = Feature::all().filter(|feature| feature.kind() == Kind::Or).collect();
        let expected = [
            "fdp_excptn_only",
            "zero_fcs_fds",
            "md_clear",
            "efer_lmsle_mbz",
            "wrmsr_xx_base_ns",
            "verw_clear",
            "rsba",
            "fb_clear",
            "rrsba",
            "rfds_clear",
        ];
        assert_eq!(hazards, FeatureSet::of(&expected));
        assert!(hazards.iter().all(|feature| feature.withheld().is_none()));
    }
}
