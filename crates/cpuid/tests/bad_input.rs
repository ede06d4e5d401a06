//! What is wrong with a baseline or a dump is said, all of it, with what may have been meant.

mod common;

use migrated_cpuid::{
    Baseline, BaselineError, BaselineSpec, CpuDump, CpuReport, CustomBaseline, DumpError, HostCpu,
};

fn custom(base: &str, add: &[&str], remove: &[&str]) -> BaselineSpec {
    let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    BaselineSpec::Custom(CustomBaseline {
        base: base.into(),
        add: own(add),
        remove: own(remove),
        ..Default::default()
    })
}

fn errors(spec: &BaselineSpec) -> Vec<String> {
    let errors = spec.resolve(&common::host("intel-icelake")).unwrap_err();
    errors.iter().map(BaselineError::to_string).collect()
}

#[test]
fn an_unknown_name_is_told_what_may_be_meant() {
    let error = Baseline::level("intel-hasswell").unwrap_err().to_string();
    assert!(error.contains("did you mean intel-haswell?"), "{error}");
    let error = Baseline::level("pentium").unwrap_err().to_string();
    assert!(!error.contains("did you mean") && error.contains("--list"), "{error}");
    let error = Baseline::level("intel-haswell+amx").unwrap_err().to_string();
    assert!(error.contains("no part \"amx\"") && error.contains("spec"), "{error}");
    let error = Baseline::level("").unwrap_err().to_string();
    assert!(error.contains("--list"), "{error}");
}

#[test]
fn everything_that_is_wrong_with_a_file_is_said_at_once() {
    let found = errors(&custom("intel-haswel", &["avx513f", "rtm"], &["sse4_1x"]));
    assert_eq!(found.len(), 4, "{found:?}");
    assert!(found[0].contains("intel-haswell"), "{found:?}");
    assert!(found[1].contains("avx512f"), "{found:?}");
    assert!(found[2].contains("sse4_1"), "{found:?}");
    assert!(found[3].contains("rtm") && found[3].contains("which no guest gets"), "{found:?}");
}

#[test]
fn an_impossible_set_is_refused_and_says_what_is_lacking() {
    let found = errors(&custom("intel-westmere", &["avx2"], &[]));
    assert_eq!(found, ["avx2 needs avx, which the set lacks; add that too, or remove avx2"]);
    let found = errors(&custom("intel-haswell", &["avx"], &["avx"]));
    assert_eq!(found, ["avx is both in `add` and in `remove`; decide for one"]);
}

#[test]
fn what_needs_a_removed_feature_goes_too() {
    let baseline = custom("intel-icelake", &[], &["avx"]).resolve(&common::host("intel-icelake")).unwrap();
    let names = baseline.features.to_string();
    assert!(!names.contains("avx") && !names.contains("vaes") && names.contains("sse4_2"), "{names}");
    let table = baseline.table(&common::host("intel-icelake"));
    assert_eq!(table.cpuid.xcr0(), 0b11);
}

#[test]
fn addresses_are_of_a_possible_length() {
    for bits in [0, 35, 53] {
        let spec = BaselineSpec::Custom(CustomBaseline {
            base: "x86-64-v2".into(),
            physical_address_bits: Some(bits),
            ..Default::default()
        });
        assert!(errors(&spec)[0].contains("36 to 52"), "{bits}");
    }
}

#[test]
fn a_misspelt_key_is_named() {
    let error = serde_json::from_str::<BaselineSpec>(r#"{"base": "host", "adds": ["avx"]}"#).unwrap_err();
    assert!(error.to_string().contains("adds"), "{error}");
    let error = serde_json::from_str::<BaselineSpec>("7").unwrap_err();
    assert!(error.to_string().contains("CPU baseline"), "{error}");
}

fn dump_text() -> String {
    serde_json::to_string(&CpuDump::of(&common::host("amd-zen3"))).unwrap()
}

#[test]
fn a_dump_is_the_same_after_it_was_written_and_read() {
    for name in common::names() {
        let host = common::host(&name);
        let text = serde_json::to_string_pretty(&CpuDump::of(&host)).unwrap();
        assert_eq!(HostCpu::try_from(CpuDump::parse(&text).unwrap()).unwrap(), host, "{name}");
    }
}

#[test]
fn a_cut_off_dump_is_refused_wherever_it_is_cut() {
    let text = dump_text();
    for length in 0..text.len() {
        let error = CpuDump::parse(&text[..length]).expect_err("cut off").to_string();
        assert!(error.contains("migrated cpu dump --json"), "{error}");
    }
}

#[test]
fn a_dump_of_another_version_says_so() {
    let text = dump_text().replacen("\"format\":1", "\"format\":2", 1);
    let error = CpuDump::parse(&text).unwrap_err();
    assert!(matches!(error, DumpError::Format { found: 2, .. }), "{error}");
    assert!(error.to_string().contains("migrated 0."), "{error}");
}

#[test]
fn a_dump_without_what_every_cpu_has_is_refused() {
    let whole: CpuDump = serde_json::from_str(&dump_text()).unwrap();
    for leaf in ["0 ", "1 ", "80000001 "] {
        let mut dump = whole.clone();
        dump.kvm.retain(|line| !line.starts_with(leaf));
        assert!(matches!(HostCpu::try_from(dump), Err(DumpError::Incomplete { .. })), "{leaf}");
    }
    let with =
        |line: &str| CpuDump { kvm: [vec![line.to_owned()], whole.kvm.clone()].concat(), ..whole.clone() };
    for line in ["", "7", "7.0 1 2 3", "7.0 1 2 3 4 5", "x 1 2 3 4", "7.g 1 2 3 4", "7.0 1 2 3 100000000"] {
        assert!(matches!(HostCpu::try_from(with(line)), Err(DumpError::Line { .. })), "{line:?}");
    }
    for line in ["7.0 1 2 3 4", "7 1 2 3 4", "1.0 1 2 3 4"] {
        assert!(matches!(HostCpu::try_from(with(line)), Err(DumpError::Table(_))), "{line:?}");
    }
    let zero = CpuDump { tsc_khz: 0, ..whole };
    assert!(matches!(HostCpu::try_from(zero), Err(DumpError::Value { .. })));
}

#[test]
fn vendors_are_never_mixed() {
    let (intel, amd) = (common::host("intel-icelake"), common::host("amd-zen4"));
    let report = amd.grant(&Baseline::level("intel-merom").unwrap()).unwrap_err();
    assert_eq!(report.mismatches.len(), 1);
    assert_eq!(report.mismatches[0].field, "vendor");
    let guest = intel.grant(&Baseline::level("x86-64-v3").unwrap()).unwrap();
    let report = CpuReport::of(&guest, &amd);
    assert_eq!((report.admitted, report.mismatches[0].field.as_str()), (false, "vendor"));
    assert_eq!(report.common_baseline, None);
}
