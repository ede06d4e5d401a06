//! The machine and the moment of a measurement.

use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};
use std::{fmt, fs};

use serde::Serialize;

/// What a figure must be read with.
#[derive(Clone, Debug, Serialize)]
pub struct HostFacts {
    /// The CPU's name.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Memory in KiB.
    pub memory_kib: u64,
    /// Kernel release.
    pub kernel: String,
    /// Seconds since the Unix epoch, at the beginning.
    pub unix_s: u64,
    /// Commit of the working directory's tree, with `-dirty` when it has changes; none outside of one.
    pub commit: Option<String>,
    /// Load average of the last minute, at the beginning. A machine that has other work gives no figures.
    pub load: f64,
}

impl HostFacts {
    /// Of this machine, now.
    #[must_use]
    pub fn gather() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            cpu: field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".into()),
            cores,
            memory_kib: field("/proc/meminfo", "MemTotal")
                .and_then(|kib| kib.trim_end_matches("kB").trim().parse().ok())
                .unwrap_or_default(),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            unix_s: since.as_secs(),
            commit: commit(),
            load: load(),
        }
    }
}

impl fmt::Display for HostFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cores, cpu, kernel, load, .. } = self;
        write!(f, "{cores} × {cpu}, Linux {kernel}, load {load:.2}")?;
        self.commit.as_ref().map_or(Ok(()), |commit| write!(f, ", commit {commit}"))
    }
}

/// Load average of the last minute; 0 when the system does not say.
#[must_use]
pub fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or_default()
}

/// The first value of `key` in a file of lines `key : value`.
fn field(file: &str, key: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let of_line = |line: &str| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim().to_owned())
    };
    text.lines().find_map(of_line)
}

fn commit() -> Option<String> {
    let output =
        Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]).output();
    let output = output.ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_known() {
        let facts = HostFacts::gather();
        assert!(facts.cores > 0 && facts.memory_kib > 0 && !facts.kernel.is_empty(), "{facts:?}");
        assert_ne!(facts.cpu, "unknown");
    }
}
