//! CPUs of real machines, see `tests/dumps/README.md`.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::path::{Path, PathBuf};

use migrated_cpuid::{CpuDump, HostCpu};

/// A generation each, newest of what there is, in the order of the ladders.
pub const FLEET: [&str; 10] = [
    "intel-haswell",
    "intel-skylake",
    "intel-cascadelake",
    "intel-icelake",
    "intel-sapphirerapids",
    "intel-graniterapids",
    "amd-zen2",
    "amd-zen3",
    "amd-zen4",
    "amd-zen5",
];

fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

/// The dump of that name.
pub fn host(name: &str) -> HostCpu {
    let path = here().join("dumps").join(format!("{name}.json"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let dump = CpuDump::parse(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
    HostCpu::try_from(dump).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Names of all dumps, in alphabetical order.
pub fn names() -> Vec<String> {
    let files = std::fs::read_dir(here().join("dumps")).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter_map(|name| Some(name.strip_suffix(".json")?.to_owned())).collect();
    names.sort();
    names
}

/// Compares with the committed file, or writes it when `MIGRATED_GOLDEN=write`.
pub fn golden(file: &str, text: &str) {
    let path = here().join("golden").join(file);
    if std::env::var_os("MIGRATED_GOLDEN").is_some_and(|value| value == "write") {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        return;
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        committed,
        text,
        "{} differs; if the change is meant: MIGRATED_GOLDEN=write cargo test -p migrated-cpuid",
        path.display()
    );
}
