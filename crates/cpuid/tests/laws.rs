//! Laws that hold for all CPUs: tables are those of real ones with features, hazards, numbers and
//! XSAVE layouts changed at random.

mod common;

use std::sync::LazyLock;

use migrated_cpuid::{
    Baseline, BaselineSpec, CpuTable, Feature, FeatureSet, HostCpu, Kind, Level, PoolBaseline, PoolError,
    Register, admit,
};
use proptest::prelude::*;

static HOSTS: LazyLock<Vec<HostCpu>> =
    LazyLock::new(|| common::names().iter().map(|name| common::host(name)).collect());

/// What is changed of a real host.
#[derive(Clone, Debug)]
struct Change {
    host: prop::sample::Index,
    cleared: Vec<prop::sample::Index>,
    hazards: Vec<prop::sample::Index>,
    physical_address_bits: u32,
    moved_component: Option<u32>,
}

fn change() -> impl Strategy<Value = Change> {
    (
        any::<prop::sample::Index>(),
        prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        36..53u32,
        prop::option::weighted(0.2, prop::sample::select(vec![2u32, 5, 9, 17])),
    )
        .prop_map(|(host, cleared, hazards, physical_address_bits, moved_component)| Change {
            host,
            cleared,
            hazards,
            physical_address_bits,
            moved_component,
        })
}

fn changed(vendor: &str, change: &Change) -> HostCpu {
    let hosts: Vec<_> = HOSTS.iter().filter(|host| host.vendor() == vendor).collect();
    let mut host = (*change.host.get(&hosts)).clone();
    let features: Vec<_> = host.kvm.features().iter().collect();
    let cleared: FeatureSet = change.cleared.iter().map(|index| *index.get(&features)).collect();
    host.kvm.clear(cleared);
    let intel = vendor == "GenuineIntel";
    let hazards = Feature::all().filter(|feature| feature.kind() == Kind::Or);
    let hazards: Vec<_> = hazards.filter(|hazard| is_of(*hazard, intel)).collect();
    change.hazards.iter().for_each(|index| toggle(&mut host.kvm, *index.get(&hazards)));
    if let Some(registers) = host.kvm.cpuid.get_mut(0x8000_0008, 0) {
        registers.eax = registers.eax & !0xff | change.physical_address_bits;
    }
    let moved = change.moved_component.and_then(|component| host.kvm.cpuid.get_mut(0xd, component));
    if let Some(registers) = moved {
        registers.ebx += 0x40;
    }
    host
}

/// Whether CPUs of that vendor tell of this hazard at all.
fn is_of(hazard: Feature, intel: bool) -> bool {
    use migrated_cpuid::{CpuidBit, Place};
    let common = ["fdp_excptn_only", "zero_fcs_fds"].contains(&hazard.name());
    common || intel != matches!(hazard.place(), Place::Cpuid(CpuidBit { leaf: 0x8000_0000.., .. }))
}

fn toggle(table: &mut CpuTable, feature: Feature) {
    use migrated_cpuid::{CpuidBit, Place};
    match feature.place() {
        Place::Cpuid(CpuidBit { leaf, subleaf, register, bit }) => {
            if let Some(registers) = table.cpuid.get_mut(leaf, subleaf) {
                *registers.get_mut(register) ^= 1 << bit;
            }
        }
        Place::Msr { msr, bit } => *table.feature_msrs.entry(msr).or_default() ^= 1 << bit,
    }
}

fn hosts(n: impl Into<prop::collection::SizeRange>) -> impl Strategy<Value = Vec<HostCpu>> {
    let vendor = prop::sample::select(vec!["GenuineIntel", "AuthenticAMD"]);
    (vendor, prop::collection::vec(change(), n))
        .prop_map(|(vendor, changes)| changes.iter().map(|change| changed(vendor, change)).collect())
}

fn feature_set() -> impl Strategy<Value = FeatureSet> {
    prop::collection::vec(any::<prop::sample::Index>(), 0..200).prop_map(|picks| {
        let all: Vec<_> = Feature::all().collect();
        picks.iter().map(|index| *index.get(&all)).collect()
    })
}

/// A set as `intersect` leaves it: a table meets itself in itself, once pruned and without ids.
fn normal(table: &CpuTable) -> CpuTable {
    table.intersect(table).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn intersection_is_commutative_associative_and_idempotent(
        mut hosts in hosts(3), clflush in prop::collection::vec(prop::sample::select(vec![8u32, 4]), 3),
    ) {
        for (host, quadwords) in hosts.iter_mut().zip(clflush) {
            let leaf = host.kvm.cpuid.get_mut(1, 0).expect("leaf 1");
            leaf.ebx = leaf.ebx & !0xff00 | quadwords << 8;
        }
        let [a, b, c] = [&hosts[0].kvm, &hosts[1].kvm, &hosts[2].kvm];
        let meet = |a: &CpuTable, b: &CpuTable| a.intersect(b).unwrap();
        prop_assert_eq!(meet(a, b), meet(b, a));
        prop_assert_eq!(meet(&meet(a, b), c), meet(a, &meet(b, c)));
        prop_assert_eq!(meet(&normal(a), &normal(a)), normal(a));
        prop_assert_eq!(meet(&meet(a, b), b), meet(a, b));
    }

    #[test]
    fn intersection_has_what_all_have_and_every_hazard(hosts in hosts(2)) {
        let [a, b] = [&hosts[0].kvm, &hosts[1].kvm];
        let common = a.intersect(b).unwrap();
        for feature in Feature::all() {
            let (in_a, in_b, in_both) = (a.has(feature), b.has(feature), common.has(feature));
            if feature.kind() == Kind::Or {
                let told = feature.needs().is_subset(&common.features());
                prop_assert!(!(in_a || in_b) || in_both || !told, "{feature} is not told of");
            } else {
                prop_assert!(!in_both || in_a && in_b, "{feature} came from nowhere");
            }
        }
        prop_assert!(common.physical_address_bits() <= a.physical_address_bits().min(b.physical_address_bits()));
        prop_assert_eq!(common.cpuid.xcr0() & !(a.cpuid.xcr0() & b.cpuid.xcr0()), 0);
        prop_assert_eq!(common.features().unmet().count(), 0);
    }

    #[test]
    fn closure_is_a_fixpoint_within_the_set(set in feature_set()) {
        let closed = set.closed();
        prop_assert_eq!(closed.closed(), closed);
        prop_assert!(closed.is_subset(&set));
        prop_assert_eq!(closed.unmet().count(), 0);
    }

    #[test]
    fn closure_keeps_order(a in feature_set(), b in feature_set()) {
        prop_assert!((a & b).closed().is_subset(&a.closed()));
    }

    #[test]
    fn a_guest_of_a_pool_s_baseline_is_admitted_by_each_of_the_pool(hosts in hosts(1..5)) {
        let pool = match PoolBaseline::of(&hosts) {
            Ok(pool) => pool,
            // Too much was cleared: then it says what is lacking, and that is so.
            Err(PoolError::BelowLowest { lacking, .. }) => {
                prop_assert!(!lacking.is_empty());
                return Ok(());
            }
            Err(other) => return Err(TestCaseError::fail(other.to_string())),
        };
        let mut tables = Vec::new();
        for spec in [BaselineSpec::Custom(pool.custom.clone()), custom_of_name(&pool)] {
            tables.clear();
            for home in &hosts {
                let baseline = spec.resolve(home).map_err(|e| TestCaseError::fail(format!("{e:?}")))?;
                let mut guest = home.grant(&baseline)
                    .map_err(|report| TestCaseError::fail(format!("{spec:?} on {}: {:?}", home.identity.name, report.mismatches)))?;
                for host in &hosts {
                    guest.tsc_khz = host.tsc_khz;
                    let admission = admit(&guest, host);
                    prop_assert!(admission.is_admitted(), "{spec:?} on {}: {:?}", host.identity.name, admission.mismatches);
                }
                tables.push(guest.table);
            }
            prop_assert!(tables.windows(2).all(|pair| pair[0] == pair[1]), "the table depends on the host");
        }
    }

    #[test]
    fn a_guest_has_nothing_that_its_host_does_not_offer(hosts in hosts(1), removed in feature_set()) {
        let host = &hosts[0];
        let mut names: Vec<_> = Level::all().iter().map(|level| level.name.to_owned()).collect();
        names.push("host".into());
        for base in names {
            let remove = removed.iter().map(|feature| feature.name().to_owned()).collect();
            let custom = migrated_cpuid::CustomBaseline { base, remove, ..Default::default() };
            let baseline = BaselineSpec::Custom(custom).resolve(host).unwrap();
            prop_assert!((baseline.features & removed).is_empty());
            let Ok(guest) = host.grant(&baseline) else { continue };
            let allowed = |feature: &Feature| {
                matches!(feature.kind(), Kind::Or | Kind::Hint | Kind::Synthetic) || host.offered().contains(*feature)
            };
            let added: Vec<_> = guest.table.features().iter().filter(|feature| !allowed(feature)).collect();
            prop_assert!(added.is_empty(), "{added:?}");
            prop_assert_eq!(guest.table.features().unmet().count(), 0);
            prop_assert_eq!(guest.table.cpuid.xcr0() & !host.kvm.cpuid.xcr0(), 0);
        }
    }

    #[test]
    fn a_host_s_own_guest_is_admitted_at_home_and_refused_where_a_feature_is_gone(
        hosts in hosts(1), gone in any::<prop::sample::Index>(),
    ) {
        let host = &hosts[0];
        let guest = host.grant(&Baseline::of_host(host)).map_err(|r| TestCaseError::fail(format!("{r:?}")))?;
        prop_assert!(admit(&guest, host).is_admitted());
        let features: Vec<_> = guest.table.features().iter().filter(|feature| feature.kind() == Kind::And).collect();
        if features.is_empty() {
            return Ok(());
        }
        let gone = *gone.get(&features);
        let mut poorer = host.clone();
        poorer.kvm.clear([gone].into_iter().collect());
        let admission = admit(&guest, &poorer);
        prop_assert_eq!(admission.mismatches.iter().map(|m| m.field.as_str()).collect::<Vec<_>>(), [gone.name()]);
    }
}

/// The pool's baseline by its name alone, for addresses that all hosts have.
fn custom_of_name(pool: &PoolBaseline) -> BaselineSpec {
    BaselineSpec::Custom(migrated_cpuid::CustomBaseline {
        base: pool.name.clone(),
        physical_address_bits: pool.custom.physical_address_bits,
        ..Default::default()
    })
}

#[test]
fn vendors_do_not_mix() {
    let (intel, amd) = (common::host("intel-haswell"), common::host("amd-zen2"));
    let error = intel.kvm.intersect(&amd.kvm).unwrap_err();
    assert_eq!((error.a.as_str(), error.b.as_str()), ("GenuineIntel", "AuthenticAMD"));
    assert!(matches!(PoolBaseline::of(&[intel, amd]), Err(PoolError::Vendors(_))));
    assert!(matches!(PoolBaseline::of(&[]), Err(PoolError::Empty)));
}

#[test]
fn a_register_that_no_rule_names_is_common_only_when_equal() {
    let host = common::host("intel-skylake");
    let mut other = host.kvm.clone();
    let entry = host.kvm.cpuid.entries().find(|entry| entry.leaf == 4).expect("cache leaves");
    other.cpuid.get_mut(4, entry.subleaf.unwrap()).unwrap().ecx += 1;
    let common = host.kvm.intersect(&other).unwrap();
    assert_eq!(common.cpuid.register(4, entry.subleaf.unwrap(), Register::Ecx), 0);
    assert_eq!(common.cpuid.register(4, entry.subleaf.unwrap(), Register::Ebx), entry.registers.ebx);
}
