//! Admission: each rule refuses what it must, says why, and nothing else.

mod common;

use migrated_cpuid::{
    Baseline, Cause, CpuReport, CpuidEntry, Feature, FeatureSet, GuestCpu, HostCpu, Kind, LostFeature,
    Mismatch, Place, Register, Registers, Value, admit,
};

fn guest_of(host: &HostCpu) -> GuestCpu {
    host.grant(&Baseline::of_host(host)).expect("a host gives what it offers")
}

fn feature(name: &str) -> Feature {
    Feature::named(name).unwrap_or_else(|| panic!("{name}"))
}

fn without(host: &HostCpu, names: &[&str]) -> HostCpu {
    let mut host = host.clone();
    host.kvm.clear(names.iter().map(|name| feature(name)).collect());
    host
}

fn mismatches(guest: &GuestCpu, host: &HostCpu) -> Vec<Mismatch> {
    admit(guest, host).mismatches
}

fn only(guest: &GuestCpu, host: &HostCpu) -> Mismatch {
    let mut found = mismatches(guest, host);
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

#[test]
fn a_missing_feature_is_named_with_its_place_and_cause() {
    let host = common::host("intel-icelake");
    let found = only(&guest_of(&host), &without(&host, &["avx512_vnni"]));
    assert_eq!(found.field, "avx512_vnni");
    assert_eq!((found.guest.clone(), found.host.clone()), (Value::Number(1), Value::Number(0)));
    assert_eq!(
        (found.kind, found.cause, found.disabled_by_masking),
        (Kind::And, Cause::HostLacks, Some(false))
    );
    let text = found.to_string();
    assert!(text.contains("avx512_vnni (CPUID leaf 0x7 subleaf 0 ecx bit 11): guest 1, host 0"), "{text}");
    let json = serde_json::to_value(&found).unwrap();
    assert_eq!(
        (json["leaf"].as_u64(), json["register"].as_str(), json["bit"].as_u64()),
        (Some(7), Some("ecx"), Some(11))
    );
    assert_eq!(json["cause"], "host_lacks");
    assert_eq!(serde_json::from_value::<Mismatch>(json).unwrap(), found);
}

#[test]
fn an_msr_s_bit_is_named_by_its_msr() {
    let host = common::host("intel-cascadelake");
    let found = only(&guest_of(&host), &without(&host, &["rdcl_no"]));
    assert_eq!(found.place, Some(Place::Msr { msr: 0x10a, bit: 0 }));
    let json = serde_json::to_value(&found).unwrap();
    assert_eq!((json["msr"].as_u64(), json["bit"].as_u64()), (Some(0x10a), Some(0)));
    assert_eq!(serde_json::from_value::<Mismatch>(json).unwrap(), found);
}

#[test]
fn a_field_without_a_place_survives_json() {
    let host = common::host("intel-cascadelake");
    let mut other = host.clone();
    other.kvm.cpuid.get_mut(0x8000_0008, 0).unwrap().eax -= 1;
    let found = only(&guest_of(&host), &other);
    let json = serde_json::to_string(&found).unwrap();
    assert_eq!(serde_json::from_str::<Mismatch>(&json).unwrap(), found, "{json}");
}

#[test]
fn causes_are_told_apart() {
    let raw = common::host("intel-graniterapids-6788p");
    let guest = guest_of(&raw);
    // The CPU has it: KVM must be hiding it.
    assert_eq!(only(&guest, &without(&raw, &["gfni"])).cause, Cause::MaskedByKvm);
    let gone = |name: &str| {
        let mut host = without(&raw, &[name]);
        let Place::Cpuid(at) = feature(name).place() else { panic!("{name} is in CPUID") };
        let hardware = host.hardware.as_mut().unwrap().get_mut(at.leaf, at.subleaf).unwrap();
        *hardware.get_mut(at.register) &= !(1 << at.bit);
        host
    };
    assert_eq!(only(&guest, &gone("gfni")).cause, Cause::HostLacks);
    // Everything that its generation has, less AES: a switch in the firmware.
    assert_eq!(mismatches(&guest, &gone("aes"))[0].cause, Cause::DisabledInFirmware);
    let lost = |then| LostFeature {
        feature: feature("gfni"),
        microcode_then: Some(then),
        microcode_now: Some(2),
        noticed_unix_ms: 0,
    };
    let updated = HostCpu { lost: vec![lost(1)], ..gone("gfni") };
    assert_eq!(only(&guest, &updated).cause, Cause::RemovedByMicrocode);
    let same_microcode = HostCpu { lost: vec![lost(2)], ..gone("gfni") };
    assert_eq!(only(&guest, &same_microcode).cause, Cause::HostLacks);
    assert_eq!(only(&guest, &without(&raw, &["kvm_steal_time"])).cause, Cause::MaskedByKvm);
}

#[test]
fn tsx_is_missed_because_of_microcode() {
    let old = common::host("intel-skylake-2017");
    let mut guest = guest_of(&old);
    *guest.table.cpuid.get_mut(7, 0).unwrap().get_mut(Register::Ebx) |= 1 << 11;
    let new = common::host("intel-cascadelake");
    let rtm = mismatches(&guest, &new).into_iter().find(|mismatch| mismatch.field == "rtm").expect("rtm");
    assert_eq!(rtm.cause, Cause::RemovedByMicrocode);
}

#[test]
fn what_the_owner_hides_is_not_for_new_guests_and_still_accepted() {
    let host = common::host("intel-icelake");
    let guest = guest_of(&host);
    let hiding = HostCpu { hidden: [feature("clwb")].into_iter().collect(), ..host };
    assert!(admit(&guest, &hiding).is_admitted());
    assert!(!guest_of(&hiding).table.has(feature("clwb")));
    let report = hiding.grant(&Baseline::level("intel-icelake").unwrap()).unwrap_err();
    let found: Vec<_> = report.mismatches.iter().map(|m| (m.field.as_str(), m.cause)).collect();
    assert_eq!(found, [("clwb", Cause::MaskedByPolicy)]);
    assert!(report.fix.iter().any(|fix| fix.contains("hide_cpu_features")), "{:?}", report.fix);
}

#[test]
fn a_hazard_that_the_guest_was_not_told_of_refuses_it() {
    let host = common::host("intel-cascadelake");
    let guest = guest_of(&without(&host, &["rrsba"]));
    let found = only(&guest, &host);
    assert_eq!((found.field.as_str(), found.cause), ("rrsba", Cause::HazardOnDestination));
    assert_eq!((found.guest, found.host), (Value::Number(0), Value::Number(1)));
    // The other way round there is nothing to fear.
    assert!(admit(&guest_of(&host), &without(&host, &["rrsba"])).is_admitted());
}

#[test]
fn restricted_rsba_is_rsba_for_a_guest_without_enhanced_ibrs() {
    let host = common::host("intel-cascadelake");
    assert!(host.kvm.has(feature("rrsba")));
    let guest = guest_of(&without(&host, &["ibrs_all", "rrsba", "rsba"]));
    assert!(guest.table.has(feature("arch_capabilities")));
    let found = only(&guest, &host);
    assert_eq!((found.field.as_str(), found.cause), ("rsba", Cause::HazardOnDestination));
    let both = without(&host, &["ibrs_all"]).kvm.intersect(&host.kvm).unwrap();
    assert!(both.has(feature("rsba")) && !both.has(feature("rrsba")));
}

#[test]
fn a_buffer_that_needs_no_clearing_is_no_hazard() {
    let host = common::host("intel-sapphirerapids");
    let untold = guest_of(&without(&host, &["md_clear"]));
    assert!(host.kvm.has(feature("md_clear")) && host.kvm.has(feature("mds_no")));
    assert!(admit(&untold, &host).is_admitted());
    let vulnerable = without(&host, &["mds_no"]);
    let fields: Vec<_> = mismatches(&untold, &vulnerable).into_iter().map(|m| m.field).collect();
    assert_eq!(fields, ["mds_no", "md_clear"]);
}

#[test]
fn a_guest_that_clears_buffers_where_that_does_nothing_is_warned_of() {
    let host = common::host("intel-skylake");
    let guest = guest_of(&host);
    assert!(guest.table.has(feature("md_clear")));
    let admission = admit(&guest, &without(&host, &["md_clear"]));
    assert!(admission.is_admitted());
    assert_eq!(admission.warnings.iter().map(|w| w.field.as_str()).collect::<Vec<_>>(), ["md_clear"]);
}

#[test]
fn hints_travel_everywhere() {
    let host = common::host("intel-icelake");
    assert!(admit(&guest_of(&host), &without(&host, &["erms", "fsrm"])).is_admitted());
}

#[test]
fn xsave_areas_must_be_at_the_same_place() {
    let host = common::host("intel-skylake");
    let mut moved = host.clone();
    moved.kvm.cpuid.get_mut(0xd, 5).unwrap().ebx = 0x340;
    let found = only(&guest_of(&host), &moved);
    assert_eq!(
        (found.field.as_str(), found.cause, found.kind),
        ("xsave_area[5]", Cause::LayoutDiffers, Kind::Eq)
    );
    assert_eq!((found.guest.to_string(), found.host.to_string()), ("0x440+0x40".into(), "0x340+0x40".into()));
    let small = HostCpu { xsave_size: 1000, ..host.clone() };
    assert_eq!(only(&guest_of(&host), &small).field, "xsave_size");
}

#[test]
fn numbers_are_compared_as_their_rules_say() {
    let host = common::host("amd-zen3");
    let guest = guest_of(&host);
    let with = |leaf: u32, change: &dyn Fn(&mut Registers)| {
        let mut host = host.clone();
        change(host.kvm.cpuid.get_mut(leaf, 0).unwrap());
        host
    };
    let shorter = with(0x8000_0008, &|r| r.eax = r.eax & !0xff | 43);
    assert_eq!(only(&guest, &shorter).field, "physical_address_bits");
    let longer = admit(&guest, &with(0x8000_0008, &|r| r.eax = r.eax & !0xff | 52));
    assert_eq!((longer.is_admitted(), longer.warnings[0].field.as_str()), (true, "physical_address_bits"));
    assert_eq!(only(&guest, &with(1, &|r| r.ebx = r.ebx & !0xff00 | 4 << 8)).field, "clflush_bytes");
    let found = mismatches(&guest, &with(0x4000_0000, &|r| r.ebx = 0));
    assert_eq!(found.iter().map(|m| m.field.as_str()).collect::<Vec<_>>(), ["hypervisor_signature"]);
}

#[test]
fn a_performance_counter_unit_is_hidden_and_compared_when_a_guest_has_one() {
    let host = common::host("intel-icelake");
    let mut guest = guest_of(&host);
    assert_eq!(guest.table.cpuid.get(0xa, 0), None, "no new guest has one");
    let registers = Registers { eax: 8 << 8 | 2, ..Default::default() };
    guest.table.cpuid.insert(CpuidEntry { leaf: 0xa, subleaf: None, registers }).unwrap();
    let with = |eax: u32| {
        let mut host = host.clone();
        host.kvm.cpuid.remove(0xa);
        let registers = Registers { eax, ..Default::default() };
        host.kvm.cpuid.insert(CpuidEntry { leaf: 0xa, subleaf: None, registers }).unwrap();
        host
    };
    assert!(admit(&guest, &with(8 << 8 | 2)).is_admitted());
    assert_eq!(only(&guest, &with(4 << 8 | 2)).field, "pmu_counters");
    assert_eq!(only(&guest, &with(8 << 8 | 5)).field, "pmu_version");
}

#[test]
fn tsc_frequencies_are_equal_or_scaled() {
    let host = HostCpu { tsc_scaling: false, ..common::host("intel-haswell") };
    let guest = guest_of(&host);
    let at = |tsc_khz| HostCpu { tsc_khz, ..host.clone() };
    // 250 ppm of 2.5 GHz is 625 kHz.
    let khz = host.tsc_khz;
    let edge = u32::try_from(u64::from(khz) * 250 / 1_000_000).unwrap();
    assert!(admit(&guest, &at(khz - edge + 1)).is_admitted());
    let found = only(&guest, &at(khz - edge - 1));
    assert_eq!((found.field.as_str(), found.cause), ("tsc_khz", Cause::ValueDiffers));
    assert!(admit(&guest, &HostCpu { tsc_scaling: true, ..at(khz / 2) }).is_admitted());
}

#[test]
fn an_msr_that_would_be_lost_refuses_the_guest() {
    let listed = vec![0x3b, 0x174, 0x6e0, 0x4b56_4d00, 0x4b56_4d01];
    let host = HostCpu { msr_indices: Some(listed.clone()), ..common::host("intel-icelake") };
    let guest = guest_of(&host);
    assert_eq!(guest.saved_msrs, [0x3b, 0x6e0, 0x4b56_4d00, 0x4b56_4d01]);
    assert!(admit(&guest, &host).is_admitted());
    let poorer = HostCpu { msr_indices: Some(listed[..4].to_vec()), ..host.clone() };
    assert_eq!(only(&guest, &poorer).field, "msr[0x4b564d01]");
    // Not known is not "none".
    assert!(admit(&guest, &HostCpu { msr_indices: None, ..host }).is_admitted());
}

#[test]
fn a_bit_without_a_name_is_compared_all_the_same() {
    let host = common::host("intel-icelake");
    let mut guest = guest_of(&host);
    let named = |bit: u8| {
        let at = migrated_cpuid::CpuidBit { leaf: 7, subleaf: 0, register: Register::Edx, bit };
        Feature::at(Place::Cpuid(at)).is_some()
    };
    let bit = (0..32).find(|bit| !named(*bit)).expect("a bit without a name");
    *guest.table.cpuid.get_mut(7, 0).unwrap().get_mut(Register::Edx) |= 1 << bit;
    let found = only(&guest, &host);
    assert_eq!(found.field, "unnamed feature");
    assert!(found.to_string().contains(&format!("edx bit {bit}")), "{found}");
}

#[test]
fn a_refusal_says_both_baselines_and_what_to_do() {
    let guest = guest_of(&common::host("intel-icelake"));
    let report = CpuReport::of(&guest, &common::host("intel-skylake"));
    assert!(!report.admitted);
    assert!(report.guest_baseline.as_deref().is_some_and(|name| name.starts_with("intel-icelake")));
    assert!(report.host_baseline.as_deref().is_some_and(|name| name.starts_with("intel-skylake")));
    let common = report.common_baseline.expect("both are Intel's");
    assert!(report.fix[0].contains(&common), "{:?}", report.fix);
    // And that does it.
    let baseline = Baseline::level(&common).unwrap();
    let (icelake, skylake) = (common::host("intel-icelake"), common::host("intel-skylake"));
    let mut guest = icelake.grant(&baseline).unwrap();
    guest.tsc_khz = skylake.tsc_khz;
    assert!(admit(&guest, &skylake).is_admitted());
}

#[test]
fn withheld_features_are_in_no_new_guest() {
    for name in common::names() {
        let host = common::host(&name);
        let withheld: FeatureSet = Feature::all().filter(|feature| feature.withheld().is_some()).collect();
        assert!((guest_of(&host).table.features() & withheld).is_empty(), "{name}");
    }
}
