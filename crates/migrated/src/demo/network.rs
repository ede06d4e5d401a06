//! The network between the demo's two hosts: two namespaces of their own, or loopback.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use migrated_netns::Pair;

use super::say;

/// The network between the two hosts.
#[derive(Debug)]
pub enum Network {
    /// Both hosts are in the network namespace of whoever runs the demo.
    Loopback,
    /// Each has one of its own.
    Namespaces(Pair),
}

impl Network {
    /// Makes it: namespaces where that is allowed, else loopback, whose speed can't be set.
    pub fn make(link: Option<u64>) -> Result<Self> {
        match (Pair::make(link), link) {
            (Ok(pair), _) => Ok(Self::Namespaces(pair)),
            (Err(why), Some(_)) => Err(why).context("--link needs two network namespaces"),
            (Err(why), None) => {
                say(&format!("note: both hosts are on loopback: {why}"));
                Ok(Self::Loopback)
            }
        }
    }

    /// A command that runs `program` on host `index`.
    pub fn command(&self, index: usize, program: &Path) -> Command {
        match self {
            Self::Loopback => Command::new(program),
            Self::Namespaces(pair) => pair.command(index, program),
        }
    }

    /// Removes it, when nothing runs on it any more. Says what can't be removed.
    pub fn remove(&mut self) -> Vec<String> {
        match self {
            Self::Loopback => Vec::new(),
            Self::Namespaces(pair) => pair.remove().iter().map(ToString::to_string).collect(),
        }
    }
}
