//! The commit to compare with, and its files.

use std::fmt;
use std::path::Path;
use std::process::Command;

use super::error::BenchError;
use crate::tree::Tree;

/// A commit of this repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    hash: String,
}

impl Commit {
    /// The commit that a person calls so.
    pub fn named(tree: &Tree, name: &str) -> Result<Self, BenchError> {
        let unknown = |said| BenchError::UnknownBase { name: name.to_owned(), said };
        parse(tree, name).map_err(unknown)
    }

    /// What a change is to be held against: where its branch left origin's main, or on main itself, the commit
    /// before.
    pub fn before(tree: &Tree) -> Result<Self, BenchError> {
        let missing = |said| BenchError::NoCommitBefore { said };
        let head = parse(tree, "HEAD").map_err(missing)?;
        let fork = git(tree, &["merge-base", "HEAD", "origin/main"]).map(|hash| Self { hash });
        match fork {
            Ok(fork) if fork != head => Ok(fork),
            _ => parse(tree, "HEAD~1").map_err(missing),
        }
    }

    /// This commit's files in `dir`, a worktree that is kept: only files that differ are written anew, so
    /// that cargo builds anew only what differs.
    pub fn checked_out(&self, tree: &Tree, dir: &Path) -> Result<Tree, BenchError> {
        let place = dir.to_string_lossy();
        let run = |arguments: &[&str]| {
            git(tree, arguments)
                .map_err(|said| BenchError::Git { command: arguments.join(" "), said })
                .map(drop)
        };
        // Worktrees whose folder was removed with the target folder are still on git's list.
        run(&["worktree", "prune"])?;
        if !dir.join(".git").is_file() {
            run(&["worktree", "add", "--force", "--detach", "--no-checkout", &place, &self.hash])?;
        }
        run(&["-C", &place, "checkout", "--quiet", "--force", "--detach", &self.hash])?;
        Ok(Tree::at(dir))
    }
}

impl fmt::Display for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hash[..12.min(self.hash.len())])
    }
}

fn parse(tree: &Tree, name: &str) -> Result<Commit, String> {
    // What begins with a dash is no option, and what names a tree or a file is no commit.
    let commit = format!("{name}^{{commit}}");
    git(tree, &["rev-parse", "--verify", "--end-of-options", &commit]).map(|hash| Commit { hash })
}

/// Runs git in a tree and gives what it said: an error when it failed.
fn git(tree: &Tree, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new("git").current_dir(tree.join("")).args(arguments).output();
    let output = output.map_err(|error| format!("can't be run: {error}"))?;
    let said = if output.status.success() { output.stdout } else { output.stderr };
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    if output.status.success() { Ok(said) } else { Err(said) }
}
