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
        if !dir.join(".git").is_file() {
            // Forced, because it is still on git's list when it was removed with the target folder.
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
    let mut git = Command::new("git");
    git.current_dir(tree.join("")).args(arguments);
    // Set in hooks: they would make git take another folder's index and HEAD for those of the worktree.
    for variable in ["GIT_DIR", "GIT_COMMON_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
        git.env_remove(variable);
    }
    let output = git.output().map_err(|error| format!("can't be run: {error}"))?;
    let said = if output.status.success() { output.stdout } else { output.stderr };
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    if output.status.success() { Ok(said) } else { Err(said) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    /// A repository of its own, with a file that is another in each commit.
    struct Repository {
        folder: TempDir,
        tree: Tree,
    }

    impl Repository {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let repository = Self { tree: Tree::at(folder.path()), folder };
            repository.git(&["init", "--quiet"]);
            repository
        }

        fn git(&self, arguments: &[&str]) {
            let author =
                ["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false"];
            git(&self.tree, &[&author, arguments].concat()).unwrap();
        }

        fn commit(&self, content: &str) -> Commit {
            fs::write(self.folder.path().join("file"), content).unwrap();
            self.git(&["add", "file"]);
            self.git(&["commit", "--quiet", "--message", content]);
            Commit::named(&self.tree, "HEAD").unwrap()
        }

        fn set_origin(&self, main: &Commit) {
            self.git(&["update-ref", "refs/remotes/origin/main", &main.hash]);
        }
    }

    #[test]
    fn a_commit_that_is_not_there_is_an_error_that_names_it() {
        let repository = Repository::new();
        let before = Commit::before(&repository.tree);
        assert!(matches!(before, Err(BenchError::NoCommitBefore { .. })), "no commit at all: {before:?}");
        repository.commit("first");
        let before = Commit::before(&repository.tree);
        assert!(matches!(before, Err(BenchError::NoCommitBefore { .. })), "one commit: {before:?}");
        for name in ["nonsense", "--all", "HEAD:file", ""] {
            let error = Commit::named(&repository.tree, name).unwrap_err();
            assert!(error.to_string().starts_with(&format!("there is no commit {name:?} here")), "{error}");
        }
    }

    #[test]
    fn a_change_is_held_against_its_fork_from_main_and_main_against_the_commit_before() {
        let repository = Repository::new();
        let commits = ["first", "second", "third"].map(|content| repository.commit(content));
        let before = || Commit::before(&repository.tree).unwrap();
        assert_eq!(before(), commits[1], "no origin");
        repository.set_origin(&commits[0]);
        assert_eq!(before(), commits[0]);
        repository.set_origin(&commits[2]);
        assert_eq!(before(), commits[1], "on main");
    }

    #[test]
    fn a_worktree_has_the_files_of_the_commit_that_was_asked_for_last() {
        let repository = Repository::new();
        let (first, second) = (repository.commit("first"), repository.commit("second"));
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("base");
        let content = |commit: &Commit| {
            let base = commit.checked_out(&repository.tree, &dir).unwrap();
            fs::read_to_string(base.join("file")).unwrap()
        };
        assert_eq!(content(&first), "first");
        fs::write(dir.join("file"), "left by somebody").unwrap();
        assert_eq!(content(&second), "second");
        // As when the target folder is removed.
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(content(&first), "first");
        assert_eq!(
            fs::read_to_string(repository.folder.path().join("file")).unwrap(),
            "second",
            "not touched"
        );
    }
}
