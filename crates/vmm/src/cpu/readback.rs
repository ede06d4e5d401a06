//! What became of a CPUID table: KVM takes one without a word and may then show the guest another.
//!
//! Which difference matters depends on what the register means. A guest must not miss a bit that it was given,
//! as it may use it at any moment; unless the bit tells of a hazard or of the guest's own settings. A bit too
//! many is no harm here, but the guest may come to use it: so it counts as the guest's from then on, and a
//! move to a host without it is refused. Numbers are equal, or large enough.

use std::fmt;

use migrated_cpuid::{
    CpuTable, CpuidBit, CpuidEntry, CpuidSet, Feature, FeatureSet, Kind, Place, Register, Registers,
    XsaveArea, run_time_bits,
};

/// Where a guest's CPU is not what it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuDifference {
    /// A bit is missing.
    Dropped(Place),
    /// An XSAVE component lies elsewhere in the area.
    XsaveArea {
        /// The component, by its bit in XCR0 or XSS.
        component: u32,
        /// Where it was said to lie.
        given: XsaveArea,
        /// Where it lies.
        here: XsaveArea,
    },
    /// Addresses are shorter.
    AddressBits {
        /// `physical`, `linear` or `guest-physical`.
        which: &'static str,
        /// What was given.
        given: u32,
        /// What there is.
        here: u32,
    },
    /// A register has another value, or a smaller one where that matters.
    Register {
        /// CPUID leaf.
        leaf: u32,
        /// Subleaf.
        subleaf: u32,
        /// Register.
        register: Register,
        /// What was given.
        given: u32,
        /// What there is.
        here: u32,
    },
    /// A feature MSR has another value.
    FeatureMsr {
        /// The MSR.
        msr: u32,
        /// What was given.
        given: u64,
        /// What there is.
        here: u64,
    },
}

impl fmt::Display for CpuDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Dropped(place) => f.write_str(&describe(place)),
            Self::XsaveArea { component, given, here } => {
                write!(f, "XSAVE component {component} at {here} and not at {given}")
            }
            Self::AddressBits { which, given, here } => {
                write!(f, "{here} bits of {which} address and not {given}")
            }
            Self::Register { leaf, subleaf, register, given, here } => {
                write!(f, "CPUID leaf {leaf:#x} subleaf {subleaf} {register} of {here:#x} and not {given:#x}")
            }
            Self::FeatureMsr { msr, given, here } => {
                write!(f, "MSR {msr:#x} of {here:#x} and not {given:#x}")?;
                let bits = bits(given ^ here).filter_map(|bit| Feature::at(Place::Msr { msr, bit }));
                let names: Vec<_> = bits.map(Feature::name).collect();
                if names.is_empty() { Ok(()) } else { write!(f, " (they differ in {})", names.join(", ")) }
            }
        }
    }
}

/// A bit as people know it: `avx2 (CPUID leaf 0x7 subleaf 0 ebx bit 5)`, or by its place alone.
pub(super) fn describe(place: Place) -> String {
    match Feature::at(place) {
        Some(feature) => format!("{feature} ({place})"),
        None => place.to_string(),
    }
}

/// As a list for people.
pub(super) fn list(differences: &[CpuDifference]) -> String {
    differences.iter().map(CpuDifference::to_string).collect::<Vec<_>>().join(", ")
}

/// How a guest's CPU differs from what it was given, in what a guest would notice. Features beyond what was
/// given are no difference, nor are hazards that this host can't tell of.
#[must_use]
pub fn cpu_differences(given: &CpuTable, effective: &CpuTable) -> Vec<CpuDifference> {
    let mut found = ReadBack::compare(&given.cpuid, &effective.cpuid).refused;
    for (&msr, &value) in &given.feature_msrs {
        let here = effective.feature_msrs.get(&msr).copied().unwrap_or(0);
        if here != value {
            found.push(CpuDifference::FeatureMsr { msr, given: value, here });
        }
    }
    found
}

/// What KVM made of a table.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ReadBack {
    /// What a guest can't do with.
    pub refused: Vec<CpuDifference>,
    /// Bits that are missing and may be.
    pub tolerated: Vec<Place>,
    /// Features that are there and were not given.
    pub unmasked: FeatureSet,
    /// Other bits like these.
    pub unmasked_places: Vec<Place>,
}

/// What a register says, as far as it matters here.
enum Meaning {
    /// Bits that are features, or that switch XSAVE components on.
    Bits,
    /// A number, of which more does no harm.
    AtLeast,
    /// Lengths of addresses, a byte each.
    AddressBits,
    /// Follows from other registers.
    Derived,
    /// Where an XSAVE component lies.
    XsaveArea,
    /// Anything else.
    Value,
}

fn meaning(leaf: u32, subleaf: u32, register: Register) -> Meaning {
    use Register::{Eax, Ecx, Edx};
    match (leaf, subleaf, register) {
        (0 | 0x4000_0000 | 0x8000_0000, _, Eax) | (7, 0, Eax) => Meaning::AtLeast,
        (0xd, 0, Eax | Edx) | (0xd, 1, Ecx | Edx) => Meaning::Bits,
        (0xd, 0, _) => Meaning::Derived,
        (0xd, 2.., _) => Meaning::XsaveArea,
        (0x8000_0008, _, Eax) => Meaning::AddressBits,
        _ if holds_features(leaf, subleaf, register) => Meaning::Bits,
        _ => Meaning::Value,
    }
}

fn holds_features(leaf: u32, subleaf: u32, register: Register) -> bool {
    Feature::all().any(|feature| {
        matches!(feature.place(), Place::Cpuid(at) if (at.leaf, at.subleaf, at.register) == (leaf, subleaf, register))
    })
}

impl ReadBack {
    pub fn compare(given: &CpuidSet, here: &CpuidSet) -> Self {
        let mut found = Self::default();
        for CpuidEntry { leaf, subleaf, registers } in given.entries() {
            let subleaf = subleaf.unwrap_or(0);
            let theirs = here.get(leaf, subleaf).copied().unwrap_or_default();
            found.line(leaf, subleaf, registers, theirs);
        }
        for CpuidEntry { leaf, subleaf, registers } in here.entries() {
            let subleaf = subleaf.unwrap_or(0);
            if given.get(leaf, subleaf).is_none() {
                found.new_line(leaf, subleaf, registers);
            }
        }
        found
    }

    fn line(&mut self, leaf: u32, subleaf: u32, given: Registers, here: Registers) {
        for register in Register::ALL {
            let ignored = run_time_bits(leaf, subleaf, register);
            let (given, here) = (given.get(register) & !ignored, here.get(register) & !ignored);
            let differs = CpuDifference::Register { leaf, subleaf, register, given, here };
            match meaning(leaf, subleaf, register) {
                _ if given == here => {}
                Meaning::Bits => self.bits(leaf, subleaf, register, given, here),
                Meaning::AtLeast if here < given => self.refused.push(differs),
                Meaning::AddressBits => self.address_bits(given, here),
                Meaning::Value => self.refused.push(differs),
                Meaning::AtLeast | Meaning::Derived | Meaning::XsaveArea => {}
            }
        }
        let area = |of: Registers| XsaveArea { offset: of.ebx, size: of.eax };
        // ECX tells whether it is switched on in XSS, and how it is aligned in the compacted format.
        if leaf == 0xd && subleaf >= 2 && (area(given), given.ecx) != (area(here), here.ecx) {
            let (given, here) = (area(given), area(here));
            self.refused.push(CpuDifference::XsaveArea { component: subleaf, given, here });
        }
    }

    fn bits(&mut self, leaf: u32, subleaf: u32, register: Register, given: u32, here: u32) {
        for bit in bits((given ^ here).into()) {
            let place = Place::Cpuid(CpuidBit { leaf, subleaf, register, bit });
            let feature = Feature::at(place);
            let kind = feature.map(Feature::kind);
            match (given & 1 << bit != 0, feature) {
                (true, _) if matches!(kind, Some(Kind::Or | Kind::Synthetic)) => self.tolerated.push(place),
                (true, _) => self.refused.push(CpuDifference::Dropped(place)),
                (false, _) if kind == Some(Kind::Synthetic) => {}
                (false, Some(feature)) => self.unmasked.insert(feature),
                (false, None) => self.unmasked_places.push(place),
            }
        }
    }

    /// A line that KVM made by itself: what it says is more than was given.
    fn new_line(&mut self, leaf: u32, subleaf: u32, here: Registers) {
        for register in Register::ALL {
            if matches!(meaning(leaf, subleaf, register), Meaning::Bits) {
                let here = here.get(register) & !run_time_bits(leaf, subleaf, register);
                self.bits(leaf, subleaf, register, 0, here);
            }
        }
    }

    fn address_bits(&mut self, given: u32, here: u32) {
        for (which, shift) in [("physical", 0), ("linear", 8), ("guest-physical", 16)] {
            let (given, here) = (given >> shift & 0xff, here >> shift & 0xff);
            if here < given {
                self.refused.push(CpuDifference::AddressBits { which, given, here });
            }
        }
    }
}

fn bits(mask: u64) -> impl Iterator<Item = u8> {
    (0..64).filter(move |bit| mask & 1 << bit != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(lines: &[(u32, Option<u32>, [u32; 4])]) -> CpuidSet {
        let line = |&(leaf, subleaf, [eax, ebx, ecx, edx]): &(u32, Option<u32>, [u32; 4])| CpuidEntry {
            leaf,
            subleaf,
            registers: Registers { eax, ebx, ecx, edx },
        };
        CpuidSet::try_from(lines.iter().map(line).collect::<Vec<_>>()).unwrap()
    }

    fn feature(name: &str) -> Feature {
        Feature::named(name).unwrap()
    }

    fn bit_of(name: &str) -> u32 {
        let Place::Cpuid(at) = feature(name).place() else { panic!("{name} is no bit of CPUID") };
        1 << at.bit
    }

    #[test]
    fn a_missing_feature_is_named_and_a_missing_hazard_tolerated() {
        let ebx = bit_of("avx2") | bit_of("bmi2") | bit_of("fdp_excptn_only");
        let given = table(&[(7, Some(0), [1, ebx, 0, 0]), (0x8000_00fe, None, [0, 0, 8, 0])]);
        let here = table(&[(7, Some(0), [1, bit_of("bmi2"), 0, 0])]);
        let found = ReadBack::compare(&given, &here);
        assert_eq!(found.tolerated, [feature("fdp_excptn_only").place()]);
        let text = list(&found.refused);
        assert!(text.contains("avx2 (CPUID leaf 0x7 subleaf 0 ebx bit 5)"), "{text}");
        assert!(text.contains("leaf 0x800000fe subleaf 0 ecx of 0x0 and not 0x8"), "{text}");
        assert_eq!(found.refused.len(), 2);
    }

    #[test]
    fn what_shines_through_is_listed_and_no_difference() {
        let at = |bit| Place::Cpuid(CpuidBit { leaf: 7, subleaf: 1, register: Register::Eax, bit });
        let unnamed = (0..32).find(|bit| Feature::at(at(*bit)).is_none()).unwrap();
        let given = table(&[(1, None, [0, 0, bit_of("sse3"), 0]), (7, Some(0), [0; 4])]);
        let here = table(&[
            // OSXSAVE is the guest's own doing, HTT the number of vCPUs.
            (1, None, [0, 0, bit_of("sse3") | bit_of("movbe") | 1 << 27, 1 << 28]),
            (7, Some(0), [1, 0, 0, 0]),
            (7, Some(1), [bit_of("avx_vnni") | 1 << unnamed, 0, 0, 0]),
            (0xd, Some(0), [7, 0x240, 0x340, 0]),
            (0xd, Some(2), [0x100, 0x240, 0, 0]),
        ]);
        let found = ReadBack::compare(&given, &here);
        assert_eq!((&found.refused[..], &found.tolerated[..]), (&[][..], &[][..]));
        assert_eq!(found.unmasked, [feature("movbe"), feature("avx_vnni")].into_iter().collect());
        // With three XSAVE components.
        assert_eq!((found.unmasked_places.len(), found.unmasked_places[0]), (4, at(unnamed)));
    }

    #[test]
    fn layouts_lengths_and_values_are_compared() {
        let given = table(&[
            (0, None, [0xd, 0x756e_6547, 0, 0]),
            (0xd, Some(0), [7, 0, 0x340, 0]),
            (0xd, Some(2), [0x100, 0x240, 0, 0]),
            (0x8000_0008, None, [0x3028, 0, 0, 0]),
        ]);
        assert_eq!(ReadBack::compare(&given, &given), ReadBack::default());
        let here = table(&[
            (0, None, [0x10, 0x6874_7541, 0, 0]),
            (0xd, Some(0), [7, 0, 0x440, 0]),
            (0xd, Some(2), [0x100, 0x340, 0, 0]),
            (0x8000_0008, None, [0x3927, 0, 0, 0]),
        ]);
        let found = list(&ReadBack::compare(&given, &here).refused);
        for part in
            ["ebx of 0x68747541", "component 2 at 0x340+0x100", "39 bits of physical address and not 40"]
        {
            assert!(found.contains(part), "{part} in {found}");
        }
        assert_eq!(found.matches(", ").count(), 2, "{found}");
    }

    #[test]
    fn msrs_differ_by_name() {
        let given = CpuTable { feature_msrs: [(0x10a, 1)].into(), ..CpuTable::default() };
        let found = list(&cpu_differences(&given, &CpuTable::default()));
        assert!(found.contains("MSR 0x10a of 0x0 and not 0x1") && found.contains("rdcl_no"), "{found}");
        assert_eq!(cpu_differences(&CpuTable::default(), &given), []);
    }
}
