//! XSAVE components: which features need which, and where each lies in the area.
//!
//! A guest's XSAVE areas are in its memory and its saved state, in the layout that its CPU told it. So a
//! component is either at the same place on both ends or a guest that may use it can't move; combining two
//! hosts that differ drops the component, with all that needs it.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{CpuTable, CpuidEntry, CpuidSet, Feature, FeatureSet, Register, Registers};

/// x87 and SSE, which lie where FXSAVE put them and have no subleaf of 0xD.
pub(crate) const LEGACY: u64 = 0b11;
/// The legacy area and the XSAVE header, in bytes: what comes before the first component.
const HEAD: u32 = 576;
/// ECX of a component's subleaf: it is switched on in XSS, not XCR0, and saved in the compacted format only.
const SUPERVISOR: u32 = 1;

/// AMX' components, and the leaves that tell the size of its tiles and of its multiplier.
const TILES: u64 = 0b11 << 17;
pub(crate) const TILE_LEAF: u32 = 0x1d;
pub(crate) const TMUL_LEAF: u32 = 0x1e;

/// Where an XSAVE component lies in the standard format, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct XsaveArea {
    /// Where it begins; 0 for a component of XSS.
    pub offset: u32,
    /// How long it is.
    pub size: u32,
}

impl fmt::Display for XsaveArea {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}+{:#x}", self.offset, self.size)
    }
}

/// The features that switch a component on, any one of them; and so those that go with it.
#[rustfmt::skip] // A table.
const OWNERS: [(u64, &[&str]); 7] = [
    (1 << 2, &["avx"]),
    (0b11 << 3, &["mpx"]),
    (0b111 << 5, &["avx512f"]),
    (1 << 8, &["intel_pt"]),
    (1 << 9, &["pku"]),
    (0b11 << 11, &["cet_ss", "cet_ibt"]),
    (0b11 << 17, &["amx_tile"]),
];

/// The components that a guest with those features may switch on, in XCR0 and XSS together.
pub(crate) fn components_of(features: FeatureSet) -> u64 {
    let has = |name: &&str| Feature::named(name).is_some_and(|feature| features.contains(feature));
    let owned = OWNERS.iter().filter(|(_, owners)| owners.iter().any(has));
    let xsave = Feature::named("xsave").is_some_and(|feature| features.contains(feature));
    if xsave { owned.fold(LEGACY, |all, (bits, _)| all | bits) } else { 0 }
}

/// The features that need a component which is not in `components`.
pub(crate) fn without(components: u64) -> FeatureSet {
    let lacking = OWNERS.iter().filter(|(bits, _)| components & bits != *bits);
    lacking.flat_map(|(_, owners)| owners.iter().filter_map(|name| Feature::named(name))).collect()
}

/// The components of a table and where each lies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Layout {
    areas: BTreeMap<u8, (XsaveArea, u32)>,
    legacy: u64,
}

impl Layout {
    /// As leaf 0xD tells.
    pub fn of(cpuid: &CpuidSet) -> Self {
        let all = cpuid.xcr0() | cpuid.xss();
        let areas = components(all & !LEGACY).map(|component| {
            let registers = cpuid.get(0xd, component.into()).copied().unwrap_or_default();
            let area = XsaveArea { offset: registers.ebx, size: registers.eax };
            (component, (area, registers.ecx))
        });
        Self { areas: areas.collect(), legacy: all & LEGACY }
    }

    /// The layout of a vendor's CPUs. AMD leaves MPX's place out, Intel keeps it: so everything behind it
    /// differs. (Read on Zen 3 and 4, and Skylake-SP to Granite Rapids; see `tests/dumps`.)
    pub fn usual(vendor: &str, features: FeatureSet) -> Self {
        let intel = [0x440, 0x480, 0x680, 0xa80];
        let amd = [0x340, 0x380, 0x580, 0x980];
        let [opmask, hi256, hi16, pkru] = if vendor == "GenuineIntel" { intel } else { amd };
        let all = [
            (2, 0x100, 0x240, 0),
            (3, 0x40, 0x3c0, 0),
            (4, 0x40, 0x400, 0),
            (5, 0x40, opmask, 0),
            (6, 0x200, hi256, 0),
            (7, 0x400, hi16, 0),
            (9, 0x8, pkru, 0),
            (11, 0x10, 0, SUPERVISOR),
            (12, 0x18, 0, SUPERVISOR),
            (17, 0x40, 0xac0, 0b10),
            (18, 0x2000, 0xb00, 0b110),
        ];
        let wanted = components_of(features);
        let areas = all.into_iter().filter(|(component, ..)| wanted & 1 << component != 0);
        let areas =
            areas.map(|(component, size, offset, flags)| (component, (XsaveArea { offset, size }, flags)));
        Self { areas: areas.collect(), legacy: wanted & LEGACY }
    }

    /// The components that both have at the same place.
    pub fn common(&self, other: &Self) -> Self {
        let same = |(component, area): (&u8, &(XsaveArea, u32))| other.areas.get(component) == Some(area);
        let areas = self.areas.iter().filter(|entry| same(*entry)).map(|(c, a)| (*c, *a)).collect();
        Self { areas, legacy: self.legacy & other.legacy }
    }

    /// Without the components that are not in `keep`.
    pub fn only(&self, keep: u64) -> Self {
        let areas = self.areas.iter().filter(|(component, _)| keep & 1 << **component != 0);
        Self { areas: areas.map(|(c, a)| (*c, *a)).collect(), legacy: self.legacy & keep }
    }

    /// All components as a mask.
    pub fn mask(&self) -> u64 {
        self.areas.keys().fold(self.legacy, |all, component| all | 1 << component)
    }

    /// Where one lies.
    pub fn area(&self, component: u8) -> Option<XsaveArea> {
        self.areas.get(&component).map(|(area, _)| *area)
    }

    /// Size of an area that holds all components in the standard format, in bytes.
    fn size(&self) -> u32 {
        self.areas.values().map(|(area, _)| area.offset.saturating_add(area.size)).fold(HEAD, u32::max)
    }

    /// Leaf 0xD with the features of its subleaf 1 as they are in `eax`; nothing without XSAVE.
    fn entries(&self, eax: u32) -> Vec<CpuidEntry> {
        if self.legacy == 0 {
            return Vec::new();
        }
        let line = |subleaf: u32, registers| CpuidEntry { leaf: 0xd, subleaf: Some(subleaf), registers };
        let on = |supervisor: bool| {
            let of = self.areas.iter().filter(|(_, (_, flags))| (flags & SUPERVISOR != 0) == supervisor);
            of.fold(0u64, |all, (component, _)| all | 1 << component)
        };
        let (xcr0, xss) = (on(false) | self.legacy, on(true));
        let size = self.size();
        let mut lines = vec![
            // EBX is the size for what is switched on, which KVM tells at run time: at reset that is x87 alone.
            line(0, Registers { eax: xcr0 as u32, ebx: HEAD, ecx: size, edx: (xcr0 >> 32) as u32 }),
            line(1, Registers { eax, ebx: 0, ecx: xss as u32, edx: (xss >> 32) as u32 }),
        ];
        lines.extend(self.areas.iter().map(|(component, (area, flags))| {
            line((*component).into(), Registers { eax: area.size, ebx: area.offset, ecx: *flags, edx: 0 })
        }));
        lines
    }
}

/// The numbers of the bits in a mask.
pub(crate) fn components(mask: u64) -> impl Iterator<Item = u8> {
    (0..64).filter(move |component| mask & 1 << component != 0)
}

impl CpuTable {
    /// Makes leaf 0xD anew with that layout.
    pub(crate) fn set_layout(&mut self, layout: &Layout) {
        let eax = self.cpuid.register(0xd, 1, Register::Eax);
        self.cpuid.remove(0xd);
        for entry in layout.entries(eax) {
            self.cpuid.insert(entry).expect("leaf 0xd was removed, and its lines differ");
        }
    }

    /// Takes out features that lack what they need (another feature, or their XSAVE component), and
    /// components that no feature needs, until nothing more lacks anything.
    pub fn prune(&mut self) {
        let mut layout = Layout::of(&self.cpuid);
        loop {
            let features = self.features();
            let kept = (features - without(layout.mask())).closed();
            self.clear(features - kept);
            let needed = layout.only(components_of(kept));
            if kept == features && needed == layout {
                break;
            }
            layout = needed;
        }
        self.set_layout(&layout);
        if layout.mask() & TILES == 0 {
            self.cpuid.remove(TILE_LEAF);
            self.cpuid.remove(TMUL_LEAF);
        }
    }
}
