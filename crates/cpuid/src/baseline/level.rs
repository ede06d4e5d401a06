//! What a named baseline is made of. The rows are in `x86_64`, `intel` and `amd`.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use super::{amd, intel, x86_64};
use crate::{Feature, FeatureSet};

/// Whose CPUs a baseline is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Vendor {
    /// Intel's.
    Intel,
    /// AMD's.
    Amd,
}

impl Vendor {
    /// Whose CPU says `id` in leaf 0.
    #[must_use]
    pub fn of(id: &str) -> Option<Self> {
        match id {
            "GenuineIntel" => Some(Self::Intel),
            "AuthenticAMD" => Some(Self::Amd),
            _ => None,
        }
    }

    /// What its CPUs say in leaf 0.
    #[must_use]
    pub const fn id(self) -> &'static str {
        match self {
            Self::Intel => "GenuineIntel",
            Self::Amd => "AuthenticAMD",
        }
    }
}

/// One step of a ladder, as it is written down: what it adds to the step before, and drops.
pub(crate) struct LevelRow {
    pub name: &'static str,
    /// For people.
    pub title: &'static str,
    /// The level it builds on; none for a ladder's first.
    pub on: Option<&'static str>,
    /// Core instruction set: every CPU of the level has it, with any microcode.
    pub core: &'static [&'static str],
    /// Core features of the level before that this one lacks.
    pub drops: &'static [&'static str],
    /// Speculation controls and immunities, which come by microcode and kernel: the part `+spec`.
    pub spec: &'static [&'static str],
    /// Other parts by their names, such as `amx`, `pku`, `la57`.
    pub parts: &'static [(&'static str, &'static [&'static str])],
    /// Leaf 1 EAX of the CPU that stands for the level; 0 where none does.
    pub signature: u32,
}

/// The name of the part with speculation controls and immunities.
pub const SPEC: &str = "spec";

/// What KVM itself offers on every CPU since Linux 5.8, and migrates: clocks, and hints for guests with several
/// vCPUs. Every level has it.
const PARAVIRTUAL: [&str; 11] = [
    "kvmclock",
    "kvmclock2",
    "kvmclock_stable",
    "kvm_steal_time",
    "kvm_pv_eoi",
    "kvm_pv_unhalt",
    "kvm_pv_tlb_flush",
    "kvm_pv_ipi",
    "kvm_poll_control",
    "kvm_pv_sched_yield",
    "kvm_nop_io_delay",
];

/// A step of a ladder with all that it builds on.
#[derive(Debug)]
pub struct Level {
    /// Its name, e.g. `intel-haswell`.
    pub name: &'static str,
    /// For people, e.g. `Intel Xeon v3 (Haswell)`.
    pub title: &'static str,
    /// Whose CPUs it is for; `None` for the levels of the x86-64 psABI.
    pub vendor: Option<Vendor>,
    /// The level it builds on.
    pub on: Option<&'static str>,
    /// Core instruction set: every CPU of the level has it, with any microcode.
    pub core: FeatureSet,
    /// What of it the level before does not have.
    pub adds: FeatureSet,
    /// What the level before has, and this one has not.
    pub drops: FeatureSet,
    /// What may be had besides by `NAME+PART`.
    pub parts: BTreeMap<&'static str, FeatureSet>,
    pub(super) signature: u32,
}

static LEVELS: LazyLock<Vec<Level>> = LazyLock::new(|| {
    let ladders =
        [(None, x86_64::LEVELS), (Some(Vendor::Intel), intel::LEVELS), (Some(Vendor::Amd), amd::LEVELS)];
    let mut levels: Vec<Level> = Vec::new();
    for (vendor, rows) in ladders {
        for row in rows {
            let on = row.on.map(|on| levels.iter().find(|level| level.name == on).expect("a level before"));
            levels.push(Level::of(row, vendor, on));
        }
    }
    levels
});

impl Level {
    fn of(row: &LevelRow, vendor: Option<Vendor>, on: Option<&Self>) -> Self {
        let base = on.map_or_else(|| FeatureSet::of(&PARAVIRTUAL), |level| level.core);
        let drops = FeatureSet::of(row.drops);
        let mut parts = on.map(|level| level.parts.clone()).unwrap_or_default();
        let own = row.parts.iter().copied().chain([(SPEC, row.spec)]);
        for (part, names) in own.filter(|(_, names)| !names.is_empty()) {
            let features = parts.entry(part).or_default();
            *features = *features | FeatureSet::of(names);
        }
        let core = (base - drops) | FeatureSet::of(row.core);
        // What has become core is no extra any more.
        parts.values_mut().for_each(|part| *part = *part - core);
        parts.retain(|_, part| !part.is_empty());
        Self {
            name: row.name,
            title: row.title,
            vendor,
            on: row.on,
            core,
            adds: if on.is_some() { core - base } else { core },
            drops,
            parts,
            signature: row.signature,
        }
    }

    /// All levels, ladder by ladder, each from its lowest.
    #[must_use]
    pub fn all() -> &'static [Self] {
        &LEVELS
    }

    /// The level of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        LEVELS.iter().find(|level| level.name == name)
    }

    /// The ladder of a vendor's CPUs, from its lowest level.
    pub fn ladder(vendor: Option<Vendor>) -> impl DoubleEndedIterator<Item = &'static Self> {
        LEVELS.iter().filter(move |level| level.vendor == vendor)
    }

    /// The highest level of a ladder whose core is within `features`.
    #[must_use]
    pub fn best(vendor: Option<Vendor>, features: FeatureSet) -> Option<&'static Self> {
        Self::ladder(vendor).rev().find(|level| level.core.is_subset(&features))
    }

    /// The level above, and what of its core is not within `features`.
    #[must_use]
    pub fn next(&self, features: FeatureSet) -> Option<(&'static Self, FeatureSet)> {
        let next = Self::ladder(self.vendor).skip_while(|level| level.name != self.name).nth(1)?;
        Some((next, next.core - features))
    }

    /// Its name with parts, as people write it: speculation controls first, the others in alphabetical order.
    pub(crate) fn name_with<'a>(&self, parts: impl Iterator<Item = &'a str>) -> String {
        let (spec, mut others): (Vec<_>, Vec<_>) = parts.partition(|part| *part == SPEC);
        others.sort_unstable();
        spec.into_iter().chain(others).fold(self.name.to_owned(), |name, part| name + "+" + part)
    }

    /// All features of all parts and the core.
    #[must_use]
    pub fn everything(&self) -> FeatureSet {
        self.parts.values().fold(self.core, |all, part| all | *part)
    }
}

/// Hazards, which a guest of any named baseline is told: it may come to a host that has them.
pub(crate) fn hazards() -> FeatureSet {
    Feature::all().filter(|feature| feature.kind() == crate::Kind::Or).collect()
}
