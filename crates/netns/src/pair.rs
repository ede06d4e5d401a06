use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::NetnsError;
use crate::filter::{self, Fault};
use crate::run::{run, run_with};

/// Name of both ends of the link: each is alone in its namespace.
pub(crate) const LINK: &str = "veth0";
/// Addresses of the two hosts. They exist inside the namespaces only, so every pair has the same.
pub const ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)];
/// Longest time that a packet may wait for its turn on a shaped link.
const QUEUE: &str = "50ms";
/// Part of a second that a shaped link lets through at once: two clock ticks at 100 Hz.
const BURST: u64 = 50;
/// Least bytes that it lets through at once: the largest packet that a sender hands to the kernel.
const MIN_BURST: u64 = 64 << 10;
/// How long a killed process may take to end.
const END: Duration = Duration::from_secs(10);
/// Time between two looks at what nobody announces.
const LOOK: Duration = Duration::from_millis(5);

/// Namespaces that this process has.
static MADE: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Kills whatever runs in any pair's namespaces: for who is told to end, and wants every wait for a program inside to
/// end as well, so that pairs are dropped in order.
pub fn kill_everything_inside() {
    let made = made().clone();
    // One that is gone has nothing in it.
    made.iter().filter_map(|name| pids(name).ok()).for_each(|pids| kill(&pids));
}

fn made() -> MutexGuard<'static, Vec<String>> {
    // A list of names is whole whoever panicked.
    MADE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Two network namespaces, joined by a pair of virtual Ethernet devices. Hosts are told apart by index, 0 and 1.
#[derive(Debug)]
pub struct Pair {
    made: Vec<String>,
}

impl Pair {
    /// Makes it; with a `rate`, in bits a second, in both directions.
    ///
    /// # Errors
    /// Not root, a program is missing, or the system refuses; nothing is left then.
    pub fn make(rate: Option<u64>) -> Result<Self, NetnsError> {
        static PAIRS: AtomicU32 = AtomicU32::new(0);
        if !rustix::process::geteuid().is_root() {
            return Err(NetnsError::NotRoot);
        }
        let number = PAIRS.fetch_add(1, Ordering::Relaxed);
        let mut pair = Self { made: Vec::new() };
        for side in ["a", "b"] {
            let name = format!("mgd-{}-{number}{side}", std::process::id());
            run("ip", &["netns", "add", &name])?;
            made().push(name.clone());
            pair.made.push(name);
        }
        pair.join()?;
        if let Some(rate) = rate {
            pair.shape(rate)?;
        }
        Ok(pair)
    }

    fn join(&self) -> Result<(), NetnsError> {
        let (a, b) = (&self.made[0], &self.made[1]);
        run("ip", &["-n", a, "link", "add", LINK, "type", "veth", "peer", "name", LINK, "netns", b])?;
        for (address, name) in ADDRESSES.iter().zip(&self.made) {
            run("ip", &["-n", name, "address", "add", &format!("{address}/30"), "dev", LINK])?;
            run("ip", &["-n", name, "link", "set", "lo", "up"])?;
            run("ip", &["-n", name, "link", "set", LINK, "up"])?;
        }
        Ok(())
    }

    /// Lets each end send at `rate` bits a second.
    fn shape(&self, rate: u64) -> Result<(), NetnsError> {
        let burst = (rate / 8 / BURST).max(MIN_BURST).to_string();
        let rate = format!("{rate}bit");
        for name in &self.made {
            let bucket = ["tbf", "rate", &rate, "burst", &burst, "latency", QUEUE];
            let device = ["-n", name, "qdisc", "add", "dev", LINK, "root"];
            run("tc", &[&device[..], &bucket[..]].concat())?;
        }
        Ok(())
    }

    /// A command that will run `program` on host `index`. `ip` becomes the program, so the child is the program itself.
    #[must_use]
    pub fn command(&self, index: usize, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.made[index]]).arg(program);
        command
    }

    /// Does something on a thread of host `index`, such as opening a socket, which stays there.
    ///
    /// # Errors
    /// The system does not let a thread in.
    ///
    /// # Panics
    /// When `work` does.
    pub fn enter<T: Send>(&self, index: usize, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        let namespace = File::open(format!("/run/netns/{}", self.made[index]))?;
        let inside = || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(work())
        };
        std::thread::scope(|scope| {
            scope.spawn(inside).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// All processes on host `index` that are not dead.
    ///
    /// # Errors
    /// `ip` can't tell.
    pub fn pids(&self, index: usize) -> Result<Vec<u32>, NetnsError> {
        pids(&self.made[index])
    }

    /// Sets what is wrong with the link, instead of what was before.
    ///
    /// # Errors
    /// `nft` is missing or fails.
    pub fn fault(&self, fault: Fault) -> Result<(), NetnsError> {
        self.filter(&filter::with(fault))
    }

    /// Takes it away again.
    ///
    /// # Errors
    /// As of [`fault`](Self::fault).
    pub fn restore(&self) -> Result<(), NetnsError> {
        self.filter(&filter::without())
    }

    /// One transaction of nft in each namespace.
    fn filter(&self, commands: &str) -> Result<(), NetnsError> {
        for name in &self.made {
            // `ip` would say of a missing `nft` only that it failed.
            run("nft", &["--version"])?;
            run_with("ip", &["netns", "exec", name, "nft", "-f", "-"], commands)?;
        }
        Ok(())
    }

    /// Kills what still runs inside and removes everything. Says what can't be.
    pub fn remove(&mut self) -> Vec<NetnsError> {
        let removed = self.made.drain(..).map(|name| {
            kill_all(&name)?;
            run("ip", &["netns", "delete", &name])?;
            made().retain(|made| *made != name);
            Ok(())
        });
        removed.filter_map(Result::err).collect()
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for problem in self.remove() {
            // Nobody can be told that standard error is closed.
            let _ = writeln!(io::stderr(), "{problem}");
        }
    }
}

fn pids(namespace: &str) -> Result<Vec<u32>, NetnsError> {
    let listed = run("ip", &["netns", "pids", namespace])?;
    Ok(listed.lines().filter_map(|pid| pid.trim().parse().ok()).collect())
}

fn kill_all(namespace: &str) -> Result<(), NetnsError> {
    let deadline = Instant::now() + END;
    loop {
        let pids = pids(namespace)?;
        if pids.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(NetnsError::Survivors { namespace: namespace.to_owned(), pids });
        }
        kill(&pids);
        std::thread::sleep(LOOK);
    }
}

fn kill(pids: &[u32]) {
    for pid in pids.iter().filter_map(|pid| Pid::from_raw(i32::try_from(*pid).ok()?)) {
        // It may have ended just now.
        let _ = kill_process(pid, Signal::KILL);
    }
}
