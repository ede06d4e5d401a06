//! The benchmark programs of a tree: what its manifests declare, and what cargo makes of that.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde::Deserialize;

use super::error::BenchError;
use crate::artifacts;
use crate::tree::Tree;

/// Names a program in every tree.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    package: String,
    bench: String,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "benchmark program {} of {}", self.bench, self.package)
    }
}

/// What a tree has, with cargo's id of each program's package.
pub struct Declared(BTreeMap<Name, String>);

/// What cargo made of it.
#[derive(Default)]
pub struct Built {
    pub files: BTreeMap<Name, PathBuf>,
    pub failed: Vec<Name>,
}

impl Declared {
    /// The benchmark programs of these packages, or of all.
    pub fn by(tree: &Tree, packages: &[String]) -> Result<Self, BenchError> {
        Ok(Self::of(tree.metadata().map_err(BenchError::cargo)?, packages))
    }

    fn of(metadata: Metadata, packages: &[String]) -> Self {
        let mut programs = BTreeMap::new();
        for package in metadata.packages {
            if !packages.is_empty() && !packages.contains(&package.name) {
                continue;
            }
            for target in package.targets.into_iter().filter(|target| target.kind == ["bench"]) {
                let name = Name { package: package.name.clone(), bench: target.name };
                programs.insert(name, package.id.clone());
            }
        }
        Self(programs)
    }

    /// Leaves only what the other tree has, too.
    pub fn keep_common(&mut self, other: &mut Self) {
        self.0.retain(|name, _| other.0.contains_key(name));
        other.0.retain(|name, _| self.0.contains_key(name));
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Builds them as `cargo bench` does, in `target` or where cargo builds this tree, and shows what cargo says. A
    /// program that doesn't build leaves the others alone.
    pub fn build(self, tree: &Tree, target: Option<&Path>) -> Result<Built, BenchError> {
        let mut cargo = tree.cargo();
        cargo.args(["build", "--locked", "--profile", "bench", "--keep-going"]);
        cargo.arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit());
        if let Some(target) = target {
            cargo.arg("--target-dir").arg(target);
        }
        for Name { package, bench } in self.0.keys() {
            cargo.args(["--package", package, "--bench", bench]);
        }
        let said = cargo.output().map_err(BenchError::io(Path::new("cargo")))?.stdout;
        let executables = artifacts::executables(&said);
        let mut built = Built::default();
        for (name, package) in self.0 {
            let is_it = |one: &&artifacts::Executable| one.package == package && one.target == name.bench;
            match executables.iter().find(is_it) {
                Some(executable) => drop(built.files.insert(name, executable.path.clone())),
                None => built.failed.push(name),
            }
        }
        Ok(built)
    }
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    id: String,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declared(text: &str, packages: &[&str]) -> Declared {
        let packages: Vec<_> = packages.iter().map(|name| (*name).to_owned()).collect();
        Declared::of(serde_json::from_str(text).unwrap(), &packages)
    }

    const METADATA: &str = r#"{"packages": [
        {"name": "a", "id": "path+file:///t/a", "targets": [
            {"name": "a", "kind": ["lib"]}, {"name": "fast", "kind": ["bench"]}, {"name": "slow", "kind": ["bench"]}]},
        {"name": "b", "id": "path+file:///t/b", "targets": [{"name": "fast", "kind": ["bench"]}]}]}"#;

    #[test]
    fn only_benchmarks_of_the_packages_that_were_asked_for_count() {
        let names = |declared: &Declared| declared.0.keys().map(Name::to_string).collect::<Vec<_>>();
        let of_a = ["benchmark program fast of a", "benchmark program slow of a"];
        assert_eq!(names(&declared(METADATA, &["a"])), of_a);
        assert_eq!(declared(METADATA, &[]).0.len(), 3);
        assert!(declared(METADATA, &["c"]).is_empty());
    }

    #[test]
    fn a_program_of_the_same_name_in_another_package_is_another_one() {
        let (mut here, mut there) = (declared(METADATA, &["a"]), declared(METADATA, &["b"]));
        here.keep_common(&mut there);
        assert!(here.is_empty() && there.is_empty());
    }
}
