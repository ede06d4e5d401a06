//! Programs that the host builds and the lab runs: stripped copies, since a debug build's symbols would have to
//! come over a slow file system.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use super::{Lab, output_of};
use crate::tree::Tree;

/// Their folder in the lab's.
pub const DIR: &str = "bin";

/// Builds `migrated` and puts it there.
pub fn provide(lab: &Lab, tree: &Tree) -> anyhow::Result<()> {
    let status =
        tree.cargo().args(["build", "--quiet", "--package", "migrated"]).status().context("cargo build")?;
    ensure!(status.success(), "`migrated` does not build, see above");
    lab.add_program("migrated", &tree.target()?.join("debug/migrated")).map(drop)
}

impl Lab {
    /// Puts a program onto the lab's path, under `name`.
    pub fn add_program(&self, name: &str, built: &Path) -> anyhow::Result<PathBuf> {
        let copy = self.programs().join(name);
        fs::create_dir_all(self.programs()).context("the lab's programs")?;
        let modified = |path: &Path| fs::metadata(path).and_then(|about| about.modified());
        let built_at = modified(built).with_context(|| built.display().to_string())?;
        if modified(&copy).ok() != Some(built_at) {
            output_of(Command::new("strip").arg("-o").arg(&copy).arg(built))?;
            File::options().write(true).open(&copy)?.set_modified(built_at)?;
        }
        Ok(copy)
    }

    /// The folder of the lab's programs.
    pub fn programs(&self) -> PathBuf {
        self.dir.join(DIR)
    }
}
