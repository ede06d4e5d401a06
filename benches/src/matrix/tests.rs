use std::path::Path;

use migrated_api::TransportKind;

use super::*;
use crate::qemu::Method;

fn parse(text: &str) -> Result<Matrix, MatrixError> {
    Matrix::parse(Path::new("m.toml"), text)
}

fn settings(scenario: &str) -> Result<Vec<Setting>, MatrixError> {
    parse(&format!("[[scenario]]\nname = \"s\"\n{scenario}"))?.settings()
}

fn error(text: &str) -> String {
    let settings = settings(text);
    settings.unwrap_err().to_string()
}

#[test]
fn lists_multiply_out() {
    let all = settings(
        r#"
link = ["100mbit", "unshaped"]
memory_mib = 256
hot_mib = [64, 128]
rate = [0.5, "max"]
mode = ["precopy", "auto"]
transport = ["tcp", "tcp+tls"]
channels = [1, 2]
qemu = ["postcopy", "multifd"]
"#,
    )
    .unwrap();
    assert_eq!(all.len(), 8);
    let told: Vec<_> = all.iter().map(|s| (s.link, s.guest.hot_mib, s.guest.rate)).collect();
    for link in [Link(Some(100_000_000)), Link(None)] {
        for hot in [64, 128] {
            for rate in [Rate::OfLink(0.5), Rate::Max] {
                assert!(told.contains(&(link, hot, rate)), "{link} {hot} {rate}: {told:?}");
            }
        }
    }
    let variants = &all[0].variants;
    assert_eq!(variants.len(), 2 * 2 * 2 + 1 + 2, "only multifd has channels: {variants:?}");
    let one = Variant::Migrated { mode: Way::Auto, transport: TransportKind::TcpTls, channels: Some(2) };
    assert!(variants.contains(&one) && all.iter().all(|setting| setting.variants == *variants));
    let one = Variant::Qemu { method: Method::Postcopy, channels: None };
    assert_eq!(variants.iter().filter(|variant| **variant == one).count(), 1);
}

#[test]
fn what_is_left_out_has_one_value() {
    let all = settings("link = \"1gbit\"\nmemory_mib = 64\nmode = \"auto\"").unwrap();
    let [Setting { guest, variants, limits, .. }] = &all[..] else { panic!("{all:?}") };
    assert_eq!((guest.vcpus, guest.hot_mib, guest.rate), (1, 8, Rate::Idle));
    assert_eq!(variants.len(), 1);
    let request = limits.request(Way::Auto, TransportKind::Tcp, None);
    assert_eq!((&request["mode"], &request["on_timeout"]), (&"auto".into(), &"cancel".into()));
    assert_eq!(request["max_slowdown_percent"], 0);
    assert_eq!(limits.request(Way::PrecopyThrottle, TransportKind::Tcp, None)["max_slowdown_percent"], 99);
    let workload = guest.guest(1e9).workload;
    assert_eq!(workload, "hot=8M fill=0M rate=0 pattern=random content=random");
}

#[test]
fn rules_leave_out_what_has_all_their_keys() {
    let base = "link = [\"100mbit\", \"1gbit\"]\nmemory_mib = 64\nmode = [\"precopy\", \"auto\"]\nqemu = \"precopy\"\n";
    let slow = "[[scenario.exclude]]\nlink = \"100mbit\"\nmode = [\"precopy\"]\n";
    let all = settings(&format!("{base}{slow}")).unwrap();
    let counts: Vec<_> = all.iter().map(|setting| setting.variants.len()).collect();
    assert_eq!(counts, [2, 3]);
    assert!(all[0].variants.iter().all(|variant| !variant.to_string().starts_with("pre-copy")));
    let all = settings(&format!("{base}[[scenario.exclude]]\nlink = \"100mbit\"\n")).unwrap();
    assert_eq!((all.len(), all[0].link), (1, Link(Some(1_000_000_000))), "a setting without variants goes");

    let idle = format!("{base}[[scenario.exclude]]\nmode = \"auto\"\nqemu = \"precopy\"\n");
    assert!(error(&idle).contains("exclude rule 1 of scenario \"s\" matches nothing"), "{}", error(&idle));
    let all_out = format!("{base}[[scenario.exclude]]\nmemory_mib = 64\n");
    assert!(error(&all_out).contains("leave nothing"), "{}", error(&all_out));
}

#[test]
fn what_is_wrong_is_named() {
    let with = |line: &str| error(&format!("link = \"1gbit\"\nmemory_mib = 64\nmode = \"auto\"\n{line}\n"));
    for (line, named) in [
        ("hot_mb = 4", "unknown field `hot_mb`"),
        ("transport = [\"tcp\", \"udp\"]", "unknown variant `udp`"),
        ("rate = \"fast\"", "invalid value: string \"fast\", expected a share of the link's rate"),
        ("rate = 0.0", "invalid value: floating point `0.0`"),
        ("vcpus = []", "invalid length 0, expected at least one value"),
        ("vcpus = -1", "invalid value: integer `-1`"),
        ("timeout_s = 0.0", "`timeout_s` is 0; it must be above 0"),
        ("max_slowdown_percent = 100", "`max_slowdown_percent` is 100; it must be from 1 to 99"),
        ("[[scenario.exclude]]\nlinks = \"1gbit\"", "unknown field `links`"),
        ("[[scenario]]\nname = \"s\"\nlink = \"1gbit\"\nmemory_mib = 64", "two scenarios are called \"s\""),
        ("[rounds]\nleast = 4\nmost = 3", "`rounds.most` is 3"),
        ("[rounds]\nrepeat = 4", "unknown field `repeat`"),
    ] {
        assert!(with(line).contains(named), "{line}: {}", with(line));
    }
    assert!(error("link = \"1gibt\"\nmemory_mib = 64\nmode = \"auto\"").contains("\"1gibt\" is no link"));
    assert!(error("link = \"1gbit\"\nmemory_mib = 64").contains("neither `mode` nor `qemu`"));
    let matrix =
        parse("[[scenario]]\nname = \"s\"\nlink = \"1gbit\"\nmemory_mib = 64\nmode = \"auto\"").unwrap();
    let unknown = matrix.clone().only(&["t".into()]).unwrap_err().to_string();
    assert_eq!(unknown, "there is no scenario \"t\" in the matrix; there are s");
    assert_eq!(matrix.only(&["s".into()]).unwrap().scenario.len(), 1);
}

/// The matrices that lie in `benches/matrix`.
#[test]
fn our_matrices_can_be_read() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("matrix");
    let mut files = 0;
    for file in std::fs::read_dir(dir).unwrap() {
        let path = file.unwrap().path();
        let settings = Matrix::read(&path).and_then(|matrix| matrix.settings());
        assert!(!settings.unwrap_or_else(|error| panic!("{error}")).is_empty(), "{}", path.display());
        files += 1;
    }
    assert_eq!(files, 3);
}

#[test]
fn runs_are_read_as_they_were_written() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("runs.jsonl");
    let mut run = testing::run(Variant::Qemu { method: Method::AutoConverge, channels: None }, 2.5);
    run.record = Some(Default::default());
    let line = serde_json::to_string(&run).unwrap();
    std::fs::write(&file, format!("{{\"host\":{{}}}}\n{line}\n{{\"load_after\":1.0}}\n")).unwrap();
    let runs = read(&file).unwrap();
    assert_eq!(serde_json::to_string(&runs[0]).unwrap(), line);
    assert_eq!(runs.len(), 1);
    std::fs::write(&file, "{\"variant\":\"auto\"}\n").unwrap();
    assert!(read(&file).unwrap_err().to_string().contains("line 1 of"));
}
