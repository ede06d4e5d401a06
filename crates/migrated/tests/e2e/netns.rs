use std::fs::File;
use std::os::fd::AsFd;
use std::process::Command;
use std::thread;
use std::time::Duration;

use migrated_testkit::wait_until;
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A network namespace, and so everything that runs in it: whatever is left when it is dropped was
/// started by this test and is killed.
pub struct Netns(String);

impl Netns {
    pub fn new(name: String) -> Self {
        ip(&["netns", "add", &name]);
        ip(&["-n", &name, "link", "set", "lo", "up"]);
        Self(name)
    }

    pub fn name(&self) -> &str {
        &self.0
    }

    /// Joins two namespaces by a link of that name at both ends.
    pub fn join(&self, address: &str, other: &Self, other_address: &str) {
        ip(&["link", "add", LINK, "netns", &self.0, "type", "veth", "peer", "name", LINK, "netns", &other.0]);
        for (end, address) in [(self, address), (other, other_address)] {
            ip(&["-n", &end.0, "addr", "add", &format!("{address}/24"), "dev", LINK]);
            ip(&["-n", &end.0, "link", "set", LINK, "up"]);
        }
    }

    /// Gives this end of the link one more address.
    pub fn add_address(&self, address: &str) {
        ip(&["-n", &self.0, "addr", "add", &format!("{address}/24"), "dev", LINK]);
    }

    /// Takes an address of this end of the link away.
    pub fn remove_address(&self, address: &str) {
        ip(&["-n", &self.0, "addr", "del", &format!("{address}/24"), "dev", LINK]);
    }

    /// Takes this end of the link down, or up again.
    pub fn set_link(&self, up: bool) {
        ip(&["-n", &self.0, "link", "set", LINK, if up { "up" } else { "down" }]);
    }

    /// Lets this end of the link send no more than so many bits a second.
    pub fn shape(&self, bits_per_second: u64) {
        let (rate, burst) =
            (format!("{bits_per_second}bit"), (bits_per_second / 400).max(64 << 10).to_string());
        let bucket = ["tbf", "rate", &rate, "burst", &burst, "latency", "50ms"];
        run("tc", &[&["-n", &self.0, "qdisc", "add", "dev", LINK, "root"], &bucket[..]].concat());
    }

    /// Loses so many percent of what comes in over the link, or nothing any more.
    pub fn lose(&self, percent: u32) {
        let nft = |rules: &str| run("ip", &["netns", "exec", &self.0, "nft", rules]);
        nft("add table inet loss; delete table inet loss; add table inet loss");
        nft("add chain inet loss input { type filter hook input priority 0; }");
        nft(&format!("add rule inet loss input iifname {LINK} numgen random mod 100 < {percent} drop"));
    }

    /// A command that will run in here, as the process that it starts.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0, program]);
        command
    }

    /// Does something on a thread in here, such as opening a socket, which stays here.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        enter(&self.0, work)
    }

    /// All processes in here that are not dead.
    pub fn pids(&self) -> Vec<u32> {
        pids(&self.0)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        for pid in self.pids() {
            signal(pid, Signal::KILL);
        }
        wait_until("the namespace is empty", Duration::from_secs(30), || self.pids().is_empty());
        ip(&["netns", "del", &self.0]);
    }
}

const LINK: &str = "wire";

fn ip(args: &[&str]) {
    run("ip", args);
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
}

/// [`Netns::enter`] for who has only the name.
pub fn enter<T: Send>(netns: &str, work: impl FnOnce() -> T + Send) -> T {
    let file = File::open(format!("/run/netns/{netns}")).unwrap();
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        });
        worker.join().unwrap()
    })
}

/// [`Netns::pids`] for who has only the name.
pub fn pids(netns: &str) -> Vec<u32> {
    let output = Command::new("ip").args(["netns", "pids", netns]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(|pid| pid.trim().parse().unwrap()).collect()
}

/// Sends a signal to a process, which may have ended just now.
pub fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid.try_into().unwrap()).unwrap();
    let _ = kill_process(pid, signal);
}
