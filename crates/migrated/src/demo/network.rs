//! The network between the demo's two hosts: two namespaces of their own, or loopback.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};

use super::say;

/// Name of both ends of the link: each is alone in its namespace.
const LINK: &str = "veth0";
/// Longest time that a packet may wait for its turn on a shaped link.
const QUEUE: &str = "50ms";
/// Part of a second that a shaped link lets through at once: two clock ticks at 100 Hz.
const BURST: u64 = 50;
/// Least bytes that it lets through at once: the largest packet that a sender hands to the kernel.
const MIN_BURST: u64 = 64 << 10;

/// The network between the two hosts.
#[derive(Debug)]
pub enum Network {
    /// Both hosts are in the network namespace of whoever runs the demo.
    Loopback,
    /// Each has one of its own.
    Namespaces(Namespaces),
}

impl Network {
    /// Makes it: namespaces where that is allowed, else loopback, whose speed can't be set.
    pub fn make(link: Option<u64>) -> Result<Self> {
        match (Namespaces::make(link), link) {
            (Ok(namespaces), _) => Ok(Self::Namespaces(namespaces)),
            (Err(why), Some(_)) => Err(why.context("--link needs two network namespaces")),
            (Err(why), None) => {
                say(&format!("note: both hosts are on loopback: {why:#}"));
                Ok(Self::Loopback)
            }
        }
    }

    /// A command that runs `program` on host `index`.
    pub fn command(&self, index: usize, program: &Path) -> Command {
        match self {
            Self::Loopback => Command::new(program),
            // `ip` becomes the program, so that the child is the program itself.
            Self::Namespaces(namespaces) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", &namespaces.made[index]]).arg(program);
                command
            }
        }
    }

    /// Removes it, when nothing runs on it any more. Says what can't be removed.
    pub fn remove(&mut self) -> Vec<String> {
        match self {
            Self::Loopback => Vec::new(),
            Self::Namespaces(namespaces) => namespaces.remove(),
        }
    }
}

/// Two network namespaces, joined by a pair of virtual Ethernet devices.
#[derive(Debug)]
pub struct Namespaces {
    made: Vec<String>,
}

impl Namespaces {
    fn make(link: Option<u64>) -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            bail!("only root may make network namespaces");
        }
        let mut namespaces = Self { made: Vec::new() };
        for side in ["a", "b"] {
            let name = format!("mgd-{}-{side}", std::process::id());
            run("ip", &["netns", "add", &name])?;
            namespaces.made.push(name);
        }
        namespaces.join()?;
        if let Some(rate) = link {
            namespaces.shape(rate)?;
        }
        Ok(namespaces)
    }

    /// Address of host `index`. It exists inside the namespaces only.
    pub fn address(index: usize) -> String {
        format!("10.0.0.{}", index + 1)
    }

    fn join(&self) -> Result<()> {
        let (a, b) = (&self.made[0], &self.made[1]);
        run("ip", &["-n", a, "link", "add", LINK, "type", "veth", "peer", "name", LINK, "netns", b])?;
        for (index, name) in self.made.iter().enumerate() {
            let address = format!("{}/30", Self::address(index));
            run("ip", &["-n", name, "address", "add", &address, "dev", LINK])?;
            run("ip", &["-n", name, "link", "set", "lo", "up"])?;
            run("ip", &["-n", name, "link", "set", LINK, "up"])?;
        }
        Ok(())
    }

    /// Lets each end send at `rate` bits a second.
    fn shape(&self, rate: u64) -> Result<()> {
        let burst = (rate / 8 / BURST).max(MIN_BURST).to_string();
        let rate = format!("{rate}bit");
        for name in &self.made {
            let bucket = ["tbf", "rate", &rate, "burst", &burst, "latency", QUEUE];
            let device = ["-n", name, "qdisc", "add", "dev", LINK, "root"];
            run("tc", &[&device[..], &bucket[..]].concat())?;
        }
        Ok(())
    }

    fn remove(&mut self) -> Vec<String> {
        let removed = self.made.drain(..).map(|name| run("ip", &["netns", "delete", &name]));
        removed.filter_map(Result::err).map(|error| format!("{error:#}; remove it by hand")).collect()
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        self.remove().iter().for_each(|problem| say(problem));
    }
}

/// Runs a program of iproute2. An interrupt of the terminal must not reach it: it may be cleaning up.
fn run(program: &str, args: &[&str]) -> Result<()> {
    let mut command = Command::new(program);
    let ran = command.args(args).stdin(Stdio::null()).process_group(0).output();
    let ran = ran.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => anyhow!("there is no `{program}`; install iproute2"),
        _ => error.into(),
    });
    let what = || format!("can't run `{program} {}`", args.join(" "));
    let ran = ran.with_context(what)?;
    if ran.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ran.stderr).trim().replace('\n', "; ");
    Err(anyhow!("{said}")).with_context(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_said_and_what_is_missing_are_named() {
        let error = format!("{:#}", run("ip", &["netns", "delete", "mgd-none"]).unwrap_err());
        assert!(error.contains("`ip netns delete mgd-none`"), "{error}");
        let error = format!("{:#}", run("no-such-program", &["x"]).unwrap_err());
        assert!(error.ends_with("there is no `no-such-program`; install iproute2"), "{error}");
    }
}
