//! Admission: all reasons are found, and only reasons.

use migrated_cpuid::{
    CpuidEntry, CpuidSet, FeatureBit, GuestCpu, HostCpu, Mismatch, Register, Registers, XsaveArea, admit,
};
use proptest::prelude::*;

/// Registers that hold features, with bits that every test may clear: none has another rule.
const WORDS: [(u32, u32, Register); 12] = [
    (0x1, 0, Register::Ecx),
    (0x1, 0, Register::Edx),
    (0x7, 0, Register::Ebx),
    (0x7, 0, Register::Ecx),
    (0x7, 0, Register::Edx),
    (0x7, 1, Register::Eax),
    (0xd, 1, Register::Eax),
    (0x4000_0001, 0, Register::Eax),
    (0x8000_0001, 0, Register::Ecx),
    (0x8000_0007, 0, Register::Edx),
    (0x8000_0008, 0, Register::Ebx),
    (0x8000_0021, 0, Register::Eax),
];

fn line(leaf: u32, subleaf: impl Into<Option<u32>>, registers: [u32; 4]) -> CpuidEntry {
    let [eax, ebx, ecx, edx] = registers;
    CpuidEntry { leaf, subleaf: subleaf.into(), registers: Registers { eax, ebx, ecx, edx } }
}

/// A made-up AVX-512 host with all bits of a few words set.
fn host() -> HostCpu {
    let vendor = |text: &[u8; 4]| u32::from_le_bytes(*text);
    let lines = vec![
        line(0x0, None, [0x20, vendor(b"Genu"), vendor(b"ntel"), vendor(b"ineI")]),
        line(0x1, None, [0x806f8, 8 << 8, u32::MAX, u32::MAX]),
        line(0x7, 0, [2, u32::MAX, u32::MAX, u32::MAX]),
        line(0x7, 1, [u32::MAX, 0, 0, u32::MAX]),
        line(0xd, 0, [0xe7, 0xa80, 0xa80, 0]),
        line(0xd, 1, [0x1f, 0, 0, 0]),
        line(0xd, 2, [0x100, 0x240, 0, 0]),
        line(0xd, 5, [0x40, 0x440, 0, 0]),
        line(0xd, 6, [0x200, 0x480, 0, 0]),
        line(0xd, 7, [0x400, 0x680, 0, 0]),
        line(0x4000_0001, None, [0x0100_7efb, 0, 0, 0]),
        line(0x8000_0001, None, [0, 0, u32::MAX, u32::MAX]),
        line(0x8000_0007, None, [0, 0, 0, 0x100]),
        line(0x8000_0008, None, [0x3934, u32::MAX, 0, 0]),
        line(0x8000_0021, None, [u32::MAX, 0, 0, 0]),
    ];
    HostCpu {
        offer: CpuidSet::try_from(lines).unwrap(),
        tsc_khz: 2_600_000,
        tsc_scaling: false,
        xsave_size: 4096,
        msr_indices: vec![0x10, 0x174, 0xc000_0080],
    }
}

fn guest_of(host: &HostCpu) -> GuestCpu {
    GuestCpu { cpuid: host.offer.clone(), tsc_khz: host.tsc_khz, msr_indices: host.msr_indices.clone() }
}

fn set_register(set: &mut CpuidSet, leaf: u32, subleaf: u32, register: Register, value: u32) {
    *set.get_mut(leaf, subleaf).unwrap().get_mut(register) = value;
}

/// Bits that a guest may have though the host has not: OR, HINT and SYN of the combination rules.
fn is_ignored(feature: &FeatureBit) -> bool {
    let FeatureBit { leaf, subleaf, register, bit } = *feature;
    [
        (0x1, 0, Register::Ecx, 27),
        (0x1, 0, Register::Ecx, 31),
        (0x1, 0, Register::Edx, 28),
        (0x7, 0, Register::Ebx, 6),
        (0x7, 0, Register::Ebx, 9),
        (0x7, 0, Register::Ebx, 13),
        (0x7, 0, Register::Ecx, 4),
        (0x7, 0, Register::Edx, 10),
        (0x8000_0001, 0, Register::Ecx, 1),
        (0x8000_0008, 0, Register::Ebx, 20),
        (0x8000_0021, 0, Register::Eax, 1),
        (0x8000_0021, 0, Register::Eax, 5),
    ]
    .contains(&(leaf, subleaf, register, bit))
}

fn feature() -> impl Strategy<Value = FeatureBit> {
    (prop::sample::select(WORDS.to_vec()), 0..32u8).prop_map(|((leaf, subleaf, register), bit)| FeatureBit {
        leaf,
        subleaf,
        register,
        bit,
    })
}

fn clear(set: &mut CpuidSet, feature: &FeatureBit) {
    let FeatureBit { leaf, subleaf, register, bit } = *feature;
    let value = set.register(leaf, subleaf, register) & !(1 << bit);
    set_register(set, leaf, subleaf, register, value);
}

fn has(set: &CpuidSet, feature: &FeatureBit) -> bool {
    set.register(feature.leaf, feature.subleaf, feature.register) & 1 << feature.bit != 0
}

proptest! {
    #[test]
    fn taking_features_from_the_host_gives_exactly_those(taken in prop::collection::btree_set(feature(), 0..6)) {
        let mut host = host();
        let guest = guest_of(&host);
        prop_assert_eq!(admit(&guest, &host), Ok(()));
        taken.iter().for_each(|feature| clear(&mut host.offer, feature));
        let mut expected: Vec<_> =
            taken.into_iter().filter(|f| has(&guest.cpuid, f) && !is_ignored(f)).collect();
        let mut found: Vec<_> = admit(&guest, &host).err().unwrap_or_default().into_iter().map(|m| match m {
            Mismatch::Feature { feature } => feature,
            other => panic!("{other}"),
        }).collect();
        expected.sort_unstable();
        found.sort_unstable();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn masking_a_guest_never_keeps_it_out(
        taken in prop::collection::vec(feature(), 0..6), masked in prop::collection::vec(feature(), 0..6),
    ) {
        let mut host = host();
        let mut guest = guest_of(&host);
        taken.iter().for_each(|feature| clear(&mut host.offer, feature));
        let before = admit(&guest, &host).err().unwrap_or_default();
        masked.iter().for_each(|feature| clear(&mut guest.cpuid, feature));
        let after = admit(&guest, &host).err().unwrap_or_default();
        prop_assert!(after.iter().all(|mismatch| before.contains(mismatch)), "masking added a reason");
        taken.iter().for_each(|feature| clear(&mut guest.cpuid, feature));
        prop_assert_eq!(admit(&guest, &host), Ok(()), "a guest without what the host lacks may come");
    }

    #[test]
    fn a_table_survives_its_encoding_and_kvm(
        lines in prop::collection::btree_map((0..6u32, prop::option::of(0..3u32)), any::<[u32; 4]>(), 0..12),
    ) {
        let mut set = CpuidSet::default();
        for ((leaf, subleaf), registers) in lines {
            let entry = line(leaf, subleaf, registers);
            let mixed = set.entries().any(|e| e.leaf == leaf && e.subleaf.is_some() != subleaf.is_some());
            prop_assert_eq!(set.insert(entry).is_err(), mixed, "a leaf has subleaves or has not");
            prop_assert!(mixed || set.insert(entry).is_err(), "a line is there once");
        }
        let json = serde_json::to_string(&set).unwrap();
        prop_assert_eq!(&serde_json::from_str::<CpuidSet>(&json).unwrap(), &set);
        let entries = Vec::<kvm_bindings::kvm_cpuid_entry2>::from(&set);
        let table = kvm_bindings::CpuId::from_entries(&entries).unwrap();
        prop_assert_eq!(CpuidSet::try_from(&table).unwrap(), set);
    }
}

#[test]
fn names_everything_else_that_differs_at_once() {
    let here = host();
    let mut guest = guest_of(&here);
    let mut host = here.clone();
    let amd = [(Register::Ebx, b"Auth"), (Register::Edx, b"enti"), (Register::Ecx, b"cAMD")];
    for (register, text) in amd {
        set_register(&mut host.offer, 0, 0, register, u32::from_le_bytes(*text));
    }
    // A Zen 4's AVX-512 state lies elsewhere; this one has no Hi16_ZMM at all.
    set_register(&mut host.offer, 0xd, 5, Register::Ebx, 0x340);
    set_register(&mut host.offer, 0xd, 0, Register::Eax, 0x67);
    set_register(&mut host.offer, 0x8000_0008, 0, Register::Eax, 0x302e);
    set_register(&mut host.offer, 1, 0, Register::Ebx, 4 << 8);
    (host.tsc_khz, host.xsave_size) = (2_601_000, 0x940);
    guest.msr_indices.push(0xc000_0104);
    let area = |offset| XsaveArea { offset, size: 0x40 };
    let expected = vec![
        Mismatch::Vendor { guest: "GenuineIntel".into(), host: "AuthenticAMD".into() },
        Mismatch::XsaveLayout { component: 5, guest: area(0x440), host: area(0x340) },
        Mismatch::XsaveComponent { component: 7 },
        Mismatch::XsaveSize { guest: 0xa80, host: 0x940 },
        Mismatch::PhysicalAddressBits { guest: 52, host: 46 },
        Mismatch::ClflushSize { guest: 64, host: 32 },
        Mismatch::TscFrequency { guest: 2_600_000, host: 2_601_000 },
        Mismatch::Msr { index: 0xc000_0104 },
    ];
    let found = admit(&guest, &host).unwrap_err();
    assert_eq!(found, expected);
    let json = serde_json::to_string(&found).unwrap();
    assert_eq!(serde_json::from_str::<Vec<Mismatch>>(&json).unwrap(), expected);
}

#[test]
fn a_tsc_may_be_250_ppm_off_or_scaled() {
    let mut host = host();
    let mut guest = guest_of(&host);
    for khz in [2_600_000 - 650, 2_600_000 + 650] {
        guest.tsc_khz = khz;
        assert_eq!(admit(&guest, &host), Ok(()));
    }
    guest.tsc_khz = 2_600_651;
    assert_eq!(admit(&guest, &host).unwrap_err().len(), 1);
    host.tsc_scaling = true;
    assert_eq!(admit(&guest, &host), Ok(()));
}

#[test]
fn a_real_host_admits_what_it_offers() {
    migrated_testkit::require!(Kvm);
    let host = HostCpu::read(&kvm_ioctls::Kvm::new().unwrap()).unwrap();
    assert!(host.tsc_khz > 0 && host.offer.vendor().len() == 12, "{host:?}");
    assert!(host.offer.register(1, 0, Register::Edx) & 1 != 0, "an FPU");
    assert_eq!(admit(&guest_of(&host), &host), Ok(()));
    let json = serde_json::to_string(&host).unwrap();
    assert_eq!(serde_json::from_str::<HostCpu>(&json).unwrap(), host);
}
