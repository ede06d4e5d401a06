//! The source tree: where it is, and its Rust files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use serde::de::DeserializeOwned;

/// Folders that hold the project's Rust code.
const CODE: [&str; 5] = ["crates", "transports", "benches", "chaos", "fuzz"];

/// The project's tree.
pub struct Tree {
    root: PathBuf,
}

/// One Rust file.
pub struct Source {
    /// From the root, with `/`.
    pub path: String,
    /// Its content.
    pub text: String,
}

impl Tree {
    /// The tree that `cargo xtask` was called in. Asked at run time, since a target folder that two copies
    /// of the tree share may hold the other's binary.
    pub fn here() -> anyhow::Result<Self> {
        let manifest = std::env::var_os("CARGO_MANIFEST_DIR").context("run this as `cargo xtask`")?;
        let root = Path::new(&manifest).ancestors().nth(2).context("crates/xtask is not below the root")?;
        ensure!(root.join("Cargo.lock").is_file(), "{}: not the workspace", root.display());
        Ok(Self::at(root))
    }

    /// The tree with that root, such as another commit's.
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    pub fn join(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// A `cargo` command at the root. Variables that describe the xtask crate itself are not passed on:
    /// to build scripts they would look like a change.
    pub fn cargo(&self) -> Command {
        let mut command = Command::new("cargo");
        command.current_dir(&self.root);
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CARGO_PKG_")) {
            command.env_remove(name);
        }
        command.env_remove("CARGO_MANIFEST_DIR").env_remove("CARGO_MANIFEST_PATH");
        command
    }

    /// Where cargo puts what it builds.
    pub fn target(&self) -> anyhow::Result<PathBuf> {
        #[derive(serde::Deserialize)]
        struct Metadata {
            target_directory: PathBuf,
        }
        let metadata: Metadata = self.metadata()?;
        Ok(metadata.target_directory)
    }

    /// What cargo says of the workspace and its packages, as far as `T` asks for it.
    pub fn metadata<T: DeserializeOwned>(&self) -> anyhow::Result<T> {
        let mut metadata = self.cargo();
        let output = metadata.args(["metadata", "--format-version=1", "--no-deps"]).output();
        let output = output.context("cargo metadata")?;
        ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).context("cargo metadata")
    }

    /// All Rust files of the project, by path.
    pub fn sources(&self) -> anyhow::Result<Vec<Source>> {
        let mut paths = Vec::new();
        for folder in CODE {
            let folder = self.root.join(folder);
            if folder.is_dir() {
                collect(&folder, &mut paths)?;
            }
        }
        paths.sort();
        paths.iter().map(|path| self.source(path)).collect()
    }

    fn source(&self, path: &Path) -> anyhow::Result<Source> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let path = path.strip_prefix(&self.root)?.to_string_lossy().into_owned();
        Ok(Source { path, text })
    }
}

fn collect(folder: &Path, into: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                collect(&path, into)?;
            }
        } else if name.ends_with(".rs") {
            into.push(path);
        }
    }
    Ok(())
}
