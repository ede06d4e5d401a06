//! Who may use whom. ARCHITECTURE.md has the same table for people, with the reasons.
//!
//! Normal and build dependencies follow [`HOUSE`]. Tests may look down and sideways, never up: a
//! dev-dependency is `testkit`, any crate that isn't itself built on the crate that it tests, or that
//! crate once more with other features.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::tree::Tree;

/// One crate of the house.
struct Room {
    /// Its folder.
    name: &'static str,
    /// Folders of the crates it may use.
    uses: &'static [&'static str],
    /// Sorts of foreign crates it must not use.
    not: &'static [&'static [&'static str]],
}

const RUNTIME: &[&str] = &["tokio", "tokio-stream", "tokio-util", "async-std", "smol", "mio", "futures-util"];
const HTTP: &[&str] = &["axum", "http", "hyper", "hyper-util", "reqwest", "tower", "tower-http"];
const KVM: &[&str] = &["kvm-ioctls", "kvm-bindings"];
const SOCKETS: &[&str] = &["socket2", "rustls", "tokio-rustls", "quinn"];
const DESCRIPTORS: &[&str] = &["libc", "nix", "rustix", "vmm-sys-util"];
const GUESTS: &[&str] = &["vm-memory", "linux-loader", "vm-superio"];

const HOUSE: [Room; 18] = [
    Room { name: "pages", uses: &[], not: &[RUNTIME, HTTP, KVM, SOCKETS, DESCRIPTORS, GUESTS] },
    Room { name: "kernel", uses: &[], not: &[RUNTIME, HTTP, SOCKETS] },
    Room { name: "cpuid", uses: &[], not: &[RUNTIME, HTTP, SOCKETS, GUESTS] },
    Room { name: "wire", uses: &["pages"], not: &[RUNTIME, HTTP, KVM, SOCKETS, DESCRIPTORS, GUESTS] },
    Room {
        name: "engine",
        uses: &["wire", "pages"],
        not: &[RUNTIME, HTTP, KVM, SOCKETS, DESCRIPTORS, GUESTS],
    },
    Room { name: "guest", uses: &["pages", "kernel"], not: &[RUNTIME, HTTP, KVM, SOCKETS] },
    Room { name: "vmm", uses: &["guest", "kernel", "cpuid", "pages"], not: &[RUNTIME, HTTP, SOCKETS] },
    Room { name: "transport", uses: &["wire"], not: &[HTTP, KVM] },
    Room { name: "tcp", uses: &["transport", "wire"], not: &[HTTP, KVM] },
    Room { name: "session", uses: &["engine", "transport", "guest", "wire", "pages"], not: &[HTTP, KVM] },
    Room { name: "control", uses: &["engine", "wire", "cpuid", "pages"], not: &[HTTP, KVM] },
    Room { name: "api", uses: &["control", "engine", "cpuid"], not: &[KVM, SOCKETS, DESCRIPTORS, GUESTS] },
    Room {
        name: "migrated",
        uses: &[
            "api",
            "control",
            "session",
            "vmm",
            "cpuid",
            "netns",
            "transport",
            "tcp",
            "engine",
            "wire",
            "guest",
            "pages",
        ],
        not: &[],
    },
    Room { name: "netns", uses: &[], not: &[RUNTIME, HTTP, KVM, SOCKETS, GUESTS] },
    Room { name: "witness", uses: &[], not: &[RUNTIME, HTTP, KVM, SOCKETS, GUESTS] },
    // They use the program and its API as anybody does.
    Room { name: "bench", uses: &["api", "netns"], not: &[KVM, GUESTS] },
    Room { name: "chaos", uses: &["bench", "api", "netns"], not: &[KVM, GUESTS] },
    Room { name: "testkit", uses: &["engine", "pages", "wire", "guest", "transport"], not: &[HTTP, KVM] },
];

/// Crates that stand beside the house: they use nothing of it and nothing uses them.
const BESIDE: [&str; 1] = ["xtask"];

/// What `cargo metadata` says, as far as it matters here.
#[derive(Deserialize)]
pub struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    /// `None` is a normal dependency.
    kind: Option<String>,
}

impl Package {
    fn room(&self) -> &str {
        room_name(&self.name)
    }

    fn uses(&self, tests: bool) -> impl Iterator<Item = &str> {
        let kind = move |dependency: &&Dependency| (dependency.kind.as_deref() == Some("dev")) == tests;
        self.dependencies.iter().filter(kind).map(|dependency| dependency.name.as_str())
    }
}

fn room_name(package: &str) -> &str {
    package.strip_prefix("migrated-").unwrap_or(package)
}

/// Asks cargo for the workspace's packages and what each declares.
pub fn read(tree: &Tree) -> anyhow::Result<Metadata> {
    tree.metadata()
}

/// Every dependency that the house doesn't allow.
pub fn check(metadata: &Metadata) -> Vec<String> {
    let members: BTreeSet<&str> = metadata.packages.iter().map(|package| package.name.as_str()).collect();
    let mut breaches = Vec::new();
    for package in &metadata.packages {
        let name = package.room();
        let (may_use, not): (&[&str], &[_]) = match HOUSE.iter().find(|room| room.name == name) {
            Some(room) => (room.uses, room.not),
            None if BESIDE.contains(&name) => (&[], &[]),
            None => {
                breaches.push(format!("{name}: not a crate of the house; lint/arrows.rs lists them"));
                continue;
            }
        };
        for used in package.uses(false) {
            if members.contains(used) && !may_use.contains(&room_name(used)) {
                let may = may_use.join(", ");
                breaches.push(format!("{name} → {}: not an arrow; it may use: {may}", room_name(used)));
            }
            if not.iter().any(|sort| sort.contains(&used)) {
                breaches.push(format!("{name} → {used}: {name} must not know what that crate is about"));
            }
        }
        for used in package.uses(true).filter(|used| members.contains(used) && *used != package.name) {
            if built_on(metadata, used, &package.name) && room_name(used) != "testkit" {
                breaches.push(format!("{name} → {} (tests): it is built on {name}", room_name(used)));
            }
        }
    }
    breaches
}

/// Whether `upper` uses `lower`, directly or through others, apart from its own tests.
fn built_on(metadata: &Metadata, upper: &str, lower: &str) -> bool {
    let by_name: BTreeMap<&str, &Package> = metadata.packages.iter().map(|p| (p.name.as_str(), p)).collect();
    let mut seen = BTreeSet::from([upper]);
    let mut todo = vec![upper];
    while let Some(name) = todo.pop() {
        if name == lower {
            return true;
        }
        let Some(package) = by_name.get(name) else { continue };
        todo.extend(package.uses(false).filter(|used| seen.insert(used)));
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Packages from `name: used, used | used in tests`.
    fn house(lines: &[&str]) -> Metadata {
        let package = |line: &&str| {
            let (name, rest) = line.split_once(':').unwrap();
            let (normal, tests) = rest.split_once('|').unwrap_or((rest, ""));
            let names = |list: &str, kind: Option<&str>| {
                list.split(',')
                    .map(str::trim)
                    .filter(|name| !name.is_empty())
                    .map(|name| Dependency { name: name.to_owned(), kind: kind.map(str::to_owned) })
                    .collect::<Vec<_>>()
            };
            let mut dependencies = names(normal, None);
            dependencies.extend(names(tests, Some("dev")));
            Package { name: name.to_owned(), dependencies }
        };
        Metadata { packages: lines.iter().map(package).collect() }
    }

    #[test]
    fn arrows_of_the_table_pass() {
        let metadata =
            house(&["migrated-pages: serde", "migrated-wire: migrated-pages, bytes", "migrated-xtask: clap"]);
        assert!(check(&metadata).is_empty());
    }

    #[test]
    fn an_arrow_back_is_a_breach() {
        let breaches = check(&house(&["migrated-pages: migrated-wire", "migrated-wire:"]));
        assert_eq!(breaches, ["pages → wire: not an arrow; it may use: "]);
    }

    #[test]
    fn build_dependencies_count_as_normal_ones() {
        let mut metadata = house(&["migrated-cpuid: migrated-pages", "migrated-pages:"]);
        metadata.packages[0].dependencies[0].kind = Some("build".to_owned());
        assert_eq!(check(&metadata).len(), 1);
    }

    #[test]
    fn the_engine_knows_no_runtime_and_no_kvm() {
        let breaches = check(&house(&["migrated-engine: tokio, kvm-ioctls, thiserror"]));
        assert_eq!(breaches.len(), 2, "{breaches:?}");
    }

    #[test]
    fn tests_look_down_and_sideways() {
        let metadata = house(&[
            "migrated-pages:",
            "migrated-wire: migrated-pages",
            "migrated-tcp: migrated-wire",
            "migrated-session: migrated-wire | migrated-tcp, tokio",
            "migrated-engine: migrated-wire | migrated-testkit, migrated-engine",
            "migrated-testkit: migrated-engine",
        ]);
        assert!(check(&metadata).is_empty(), "{:?}", check(&metadata));
    }

    #[test]
    fn tests_do_not_look_up() {
        let metadata = house(&[
            "migrated-pages: | migrated-engine",
            "migrated-wire: migrated-pages",
            "migrated-engine: migrated-wire",
        ]);
        assert_eq!(check(&metadata), ["pages → engine (tests): it is built on pages"]);
    }

    #[test]
    fn a_crate_that_nobody_placed_is_a_breach() {
        assert_eq!(check(&house(&["migrated-shed:"])).len(), 1);
    }
}
