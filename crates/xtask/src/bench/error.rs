use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use thiserror::Error;

use super::rounds::Side;

/// Why nothing was compared.
#[derive(Debug, Error)]
pub enum BenchError {
    /// The name of a base is no commit's.
    #[error(
        "there is no commit {name:?} here (git: {said}); name a branch, a tag or a hash that `git log` knows, or fetch \
         it first: a shallow clone gets its history with `git fetch --unshallow`"
    )]
    UnknownBase { name: String, said: String },
    /// The gate found nothing before HEAD.
    #[error(
        "this tree has no commit before HEAD to compare with (git: {said}); a shallow clone gets its history with `git \
         fetch --unshallow`, in GitHub's checkout by `fetch-depth: 0`"
    )]
    NoCommitBefore { said: String },
    /// The base and this tree share no benchmark program.
    #[error(
        "no benchmark of the chosen packages is in both trees: {base} may be older than they are; choose a later base, \
         or other packages"
    )]
    NothingInCommon { base: String },
    /// No program of the base builds.
    #[error("the benchmarks of {base} don't build with this toolchain, see above; choose a later base")]
    BaseDoesNotBuild { base: String },
    /// A program of this tree doesn't build.
    #[error("{program} does not build in this tree, see above")]
    HeadDoesNotBuild { program: String },
    /// The programs ran and left no result.
    #[error(
        "no benchmark was measured: `cargo bench -p PACKAGE -- --list` lists the names that a filter must match; \
         without a filter, criterion keeps its results elsewhere than crates/xtask/src/bench/estimates.rs looks"
    )]
    NothingMeasured,
    /// A program of benchmarks failed.
    #[error("{program} of the {side} failed: {status}\n{said}")]
    ProgramFailed { side: Side, program: PathBuf, status: ExitStatus, said: String },
    /// Criterion's output is not what it was when this was written.
    #[error(
        "{path}: not an estimate as criterion writes it; if Cargo.lock has a new criterion, adapt \
         crates/xtask/src/bench/estimates.rs"
    )]
    Estimate { path: PathBuf, source: serde_json::Error },
    /// Git can't check out the base.
    #[error("git {command} failed: {said}")]
    Git { command: String, said: String },
    /// Cargo can't describe a tree.
    #[error("cargo: {0}")]
    Cargo(String),
    /// A file or a program.
    #[error("{path}")]
    Io { path: PathBuf, source: io::Error },
}

impl BenchError {
    /// For `map_err`: what went wrong with `path`.
    pub fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }

    /// For `map_err` of what asks cargo about a tree.
    pub fn cargo(error: anyhow::Error) -> Self {
        Self::Cargo(format!("{error:#}"))
    }

    /// Whether there is just no base, or none that can be measured, and this tree is not to blame.
    pub const fn is_about_the_base(&self) -> bool {
        matches!(
            self,
            Self::UnknownBase { .. }
                | Self::NoCommitBefore { .. }
                | Self::NothingInCommon { .. }
                | Self::BaseDoesNotBuild { .. }
                | Self::ProgramFailed { side: Side::Base, .. }
        )
    }
}
