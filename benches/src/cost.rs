//! What a move costs the hosts: CPU time, by /proc, and bytes on the link, by the NICs' counters.
//!
//! The CPU time of a host is that of all threads in its namespace, daemon and VM processes, but for vCPU threads, which
//! do the guest's work. The process that a guest leaves may end before it can be asked, so it is looked at again and
//! again and the last look counts.

use std::collections::HashMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use migrated_netns::Pair;
use serde::{Deserialize, Serialize};

/// Time between two looks at the source's processes: what may be missed of one that ends.
const PERIOD: Duration = Duration::from_millis(20);
/// The NIC of each host.
const LINK: &str = "veth0:";

/// What a move took of one host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Side {
    /// CPU time in seconds, user and system, without vCPUs.
    pub cpu_s: f64,
    /// Bytes that its NIC sent, with headers and what was sent again. Where nothing is shaped, a packet here may be
    /// up to 64 KiB that a real link would carry in many, each with its header.
    pub nic_sent: u64,
}

/// What a move took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// The host that the guest left.
    pub source: Side,
    /// The one it came to.
    pub destination: Side,
}

/// CPU time of a process in clock ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Ticks {
    /// Of all its threads, also of those that have ended.
    all: u64,
    /// Of its vCPU threads, as long as they are there.
    vcpus: u64,
}

impl Ticks {
    const fn without_vcpus(self) -> u64 {
        self.all.saturating_sub(self.vcpus)
    }
}

/// By process.
type Processes = HashMap<u32, Ticks>;

/// Measures from its start to its end.
#[derive(Debug)]
pub struct Meter<'a> {
    pair: &'a Pair,
    /// Index of source and destination.
    ends: [usize; 2],
    before: [Processes; 2],
    sent: [u64; 2],
    stop: Arc<AtomicBool>,
    source: JoinHandle<Processes>,
}

impl<'a> Meter<'a> {
    /// Begins, for a move from host `from` to the other.
    ///
    /// # Errors
    /// The system does not tell what runs on a host, or what its NIC sent.
    pub fn start(pair: &'a Pair, from: usize) -> Result<Self> {
        let ends = [from, 1 - from];
        let before = [ticks(&pair.pids(ends[0])?), ticks(&pair.pids(ends[1])?)];
        let stop = Arc::new(AtomicBool::new(false));
        let (told, pids) = (Arc::clone(&stop), before[0].keys().copied().collect::<Vec<_>>());
        let source = std::thread::Builder::new().name("meter".into()).spawn(move || follow(&pids, &told))?;
        let sent = [sent(pair, ends[0])?, sent(pair, ends[1])?];
        Ok(Self { pair, ends, before, sent, stop, source })
    }

    /// Ends.
    ///
    /// # Errors
    /// As of [`start`](Self::start).
    pub fn end(self) -> Result<Cost> {
        let sent_now = [sent(self.pair, self.ends[0])?, sent(self.pair, self.ends[1])?];
        self.stop.store(true, Ordering::Relaxed);
        let source = self.source.join().map_err(|_| anyhow!("the meter's thread panicked"))?;
        let destination = ticks(&self.pair.pids(self.ends[1])?);
        let side = |index: usize, after: &Processes| Side {
            cpu_s: seconds(&self.before[index], after),
            nic_sent: sent_now[index].saturating_sub(self.sent[index]),
        };
        Ok(Cost { source: side(0, &source), destination: side(1, &destination) })
    }
}

/// The last that was seen of each process.
fn follow(pids: &[u32], stop: &AtomicBool) -> Processes {
    let mut seen = Processes::new();
    loop {
        let last = stop.load(Ordering::Relaxed);
        for (pid, now) in ticks(pids) {
            let before = seen.entry(pid).or_default();
            // When a vCPU's thread has ended, its time is still in that of the process.
            *before = Ticks { all: now.all, vcpus: before.vcpus.max(now.vcpus) };
        }
        if last {
            return seen;
        }
        std::thread::sleep(PERIOD);
    }
}

/// CPU time of these processes, as far as they still run.
fn ticks(pids: &[u32]) -> Processes {
    pids.iter().filter_map(|&pid| Some((pid, process(pid)?))).collect()
}

fn process(pid: u32) -> Option<Ticks> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    let stats = threads.filter_map(|thread| fs::read_to_string(thread.path().join("stat")).ok());
    let vcpus = stats.filter_map(|text| stat(&text).filter(|(name, _)| is_vcpu(name)));
    let vcpus = vcpus.map(|(_, ticks)| ticks).sum();
    let (_, all) = stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
    Some(Ticks { all, vcpus })
}

/// Ours are called `vcpu0:…`, QEMU's `CPU 0/KVM` with `debug-threads`.
fn is_vcpu(name: &str) -> bool {
    name.starts_with("vcpu") || (name.starts_with("CPU ") && name.ends_with("/KVM"))
}

/// Name, and user and system time in ticks, of a line as of proc_pid_stat(5): its fields 2, 14 and 15.
fn stat(line: &str) -> Option<(String, u64)> {
    // A name may hold brackets and spaces.
    let (head, fields) = line.rsplit_once(')')?;
    let (_, name) = head.split_once('(')?;
    let mut times = fields.split_ascii_whitespace().skip(11).map(str::parse::<u64>);
    let (user, system) = (times.next()?.ok()?, times.next()?.ok()?);
    Some((name.to_owned(), user + system))
}

fn seconds(before: &Processes, after: &Processes) -> f64 {
    let since = |(pid, now): (&u32, &Ticks)| {
        let before = before.get(pid).copied().unwrap_or_default();
        now.without_vcpus().saturating_sub(before.without_vcpus())
    };
    let ticks: u64 = after.iter().map(since).sum();
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

/// Bytes that a host's NIC has sent.
fn sent(pair: &Pair, host: usize) -> Result<u64> {
    let devices = pair.enter(host, || fs::read_to_string("/proc/thread-self/net/dev"))??;
    sent_of(&devices).context("the link has no counters in /proc/net/dev")
}

/// The ninth number of a device's line.
fn sent_of(devices: &str) -> Option<u64> {
    let line = devices.lines().find_map(|line| line.trim_start().strip_prefix(LINK))?;
    line.split_ascii_whitespace().nth(8)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_proc_are_understood() {
        let line = "12 (CPU 0/KVM) S 1 2 3 4 5 6 7 8 9 10 150 30 0 0 20 0 1 0 99";
        assert_eq!(stat(line), Some(("CPU 0/KVM".into(), 180)));
        assert!(is_vcpu("CPU 0/KVM") && is_vcpu("vcpu1:measured") && !is_vcpu("CPU burner"));
        assert_eq!(stat("12 (a) S"), None);
        let devices = "Inter-| x\n    lo: 1 2 3 4 5 6 7 8 9 10\n veth0: 10 0 0 0 0 0 0 0 77 1 0\n";
        assert_eq!(sent_of(devices), Some(77));
    }

    #[test]
    fn vcpus_do_not_count_and_a_process_that_began_meanwhile_counts_whole() {
        let hz = rustix::param::clock_ticks_per_second();
        let of = |all, vcpus| Ticks { all: all * hz, vcpus: vcpus * hz };
        let (before, after) = ([(1, of(5, 4))].into(), [(1, of(10, 7)), (2, of(1, 0))].into());
        assert!((seconds(&before, &after) - 3.0).abs() < 1e-9);
    }
}
