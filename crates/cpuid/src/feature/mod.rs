//! Features by name: where each one's bit is, what becomes of it when hosts are combined, and whether
//! hiding it from a guest also takes it away.
//!
//! The rows are in `table`, one file for each part of the CPUID space. Everything else of this crate works on
//! [`Feature`]s and [`FeatureSet`]s and knows no bit by number.

mod dependency;
mod place;
mod set;
mod table;

use std::collections::HashMap;
use std::fmt;
use std::sync::LazyLock;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use place::{CpuidBit, Place};
pub use set::FeatureSet;
pub(crate) use table::{Word, WordPlace, words};

/// What becomes of a field when several hosts are combined, and how it is compared at admission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Kind {
    /// A guest may see it only where all hosts have it.
    And,
    /// A hazard, or something that software must do: a guest must see it when any host has it.
    Or,
    /// Tells only how fast something is: a guest keeps it wherever it goes.
    Hint,
    /// Must be equal on both ends.
    Eq,
    /// The lowest value of all hosts.
    Min,
    /// Made by the VMM for each guest, never compared.
    Synthetic,
}

/// What a feature is for: baselines are put together by this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Instructions and modes of the CPU.
    Isa,
    /// Speculation controls, and bits that say that a CPU is not vulnerable.
    Mitigation,
    /// Offered by KVM, not by a CPU.
    Paravirtual,
}

/// What stops a guest from using a feature that is hidden from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Masking {
    /// Nothing: software that does not ask CPUID finds it working.
    Hidden,
    /// XCR0 or XSS can't get its bit, so its instructions fault.
    Xcr0,
    /// CR4, CR3 or EFER can't get its bit.
    ControlRegister,
    /// The CPU leaves the guest at the instruction, on either vendor's.
    Intercept,
    /// A VMX control makes the instruction fault; AMD-V has none for it.
    VmxControl,
    /// KVM refuses its MSR.
    Msr,
}

impl Masking {
    /// Whether hiding the feature also disables it, on CPUs of `vendor` (as leaf 0 names it).
    #[must_use]
    pub fn disables(self, vendor: &str) -> bool {
        match self {
            Self::Hidden => false,
            Self::VmxControl => vendor == "GenuineIntel",
            Self::Xcr0 | Self::ControlRegister | Self::Intercept | Self::Msr => true,
        }
    }
}

/// A row of the feature table.
#[derive(Debug)]
pub(crate) struct Row {
    /// The bit in its word.
    pub bit: u8,
    pub name: &'static str,
    /// Other names: Linux', QEMU's or a vendor's.
    pub aliases: &'static [&'static str],
    pub kind: Kind,
    pub class: Class,
    pub masking: Masking,
    /// Why new guests never get it, where they don't; incoming ones that have it are still compared.
    pub withheld: Option<&'static str>,
}

/// The feature of that name, which this crate's own code knows to be in the table.
pub(crate) fn named(name: &str) -> Feature {
    Feature::named(name).unwrap_or_else(|| panic!("no feature {name}"))
}

/// One feature that this crate knows by name. Equal features are the same bit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Feature(u16);

struct Entry {
    row: &'static Row,
    place: Place,
}

struct Index {
    entries: Vec<Entry>,
    by_name: HashMap<&'static str, Feature>,
    by_place: HashMap<Place, Feature>,
}

static INDEX: LazyLock<Index> = LazyLock::new(|| {
    let mut index = Index { entries: Vec::new(), by_name: HashMap::new(), by_place: HashMap::new() };
    for word in words() {
        for row in word.rows {
            let feature = Feature(u16::try_from(index.entries.len()).expect("a few hundred features"));
            let place = word.place(row.bit);
            for name in [row.name].iter().chain(row.aliases) {
                index.by_name.insert(name, feature);
            }
            index.by_place.insert(place, feature);
            index.entries.push(Entry { row, place });
        }
    }
    assert!(index.entries.len() <= FeatureSet::CAPACITY, "a set must have room for every feature");
    index
});

impl Feature {
    /// The feature of that name, or alias, in lower case.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        INDEX.by_name.get(name).copied()
    }

    /// The feature at that bit.
    #[must_use]
    pub fn at(place: Place) -> Option<Self> {
        INDEX.by_place.get(&place).copied()
    }

    /// All features, in the order of their places.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..INDEX.entries.len()).map(Self::numbered)
    }

    /// All names and aliases.
    pub fn names() -> impl Iterator<Item = &'static str> {
        INDEX.by_name.keys().copied()
    }

    pub(crate) const fn numbered(number: usize) -> Self {
        Self(number as u16)
    }

    pub(crate) const fn number(self) -> usize {
        self.0 as usize
    }

    fn entry(self) -> &'static Entry {
        &INDEX.entries[self.number()]
    }

    /// Its name, as Linux or KVM's users know it.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.entry().row.name
    }

    /// Where its bit is.
    #[must_use]
    pub fn place(self) -> Place {
        self.entry().place
    }

    /// How it is combined and compared.
    #[must_use]
    pub fn kind(self) -> Kind {
        self.entry().row.kind
    }

    /// What it is for.
    #[must_use]
    pub fn class(self) -> Class {
        self.entry().row.class
    }

    /// What hiding it does.
    #[must_use]
    pub fn masking(self) -> Masking {
        self.entry().row.masking
    }

    /// Why new guests never get it, where they don't.
    #[must_use]
    pub fn withheld(self) -> Option<&'static str> {
        self.entry().row.withheld
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Feature {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Feature {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::named(&name).ok_or_else(|| serde::de::Error::custom(format!("unknown CPU feature {name:?}")))
    }
}
