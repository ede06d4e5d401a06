use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// As `migrated workload build` prints it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Image {
    pub(super) image: PathBuf,
    pub(super) counters_address: u64,
    pub(super) counters_bytes: u64,
}

/// As `migrated workload counters` prints them, as far as they are used.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Counters {
    pub(super) total: Totals,
    pub(super) vcpus: Vec<Vcpu>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Totals {
    pub(super) running: u32,
    pub(super) pages_written: u64,
    pub(super) pages_read: u64,
    pub(super) errors: u64,
    pub(super) tsc_backward_steps: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Vcpu {
    tsc: u64,
    gaps: Vec<Gap>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
struct Gap {
    us: u64,
    end_tsc: u64,
}

impl Counters {
    /// The guest's clock.
    pub(super) fn tsc(&self) -> u64 {
        self.vcpus.iter().map(|vcpu| vcpu.tsc).max().unwrap_or_default()
    }

    /// The longest gap that ended after the clock read `tsc`, in µs: gaps are listed from the longest, each older than
    /// the next.
    pub(super) fn gap_since(&self, tsc: u64) -> u64 {
        let of = |vcpu: &Vcpu| vcpu.gaps.iter().find(|gap| gap.end_tsc > tsc).map_or(0, |gap| gap.us);
        self.vcpus.iter().map(of).max().unwrap_or_default()
    }
}

/// Writes the guest's image, for so many vCPUs.
pub(super) fn build(binary: &Path, image: &Path, vcpus: u32) -> Result<Image> {
    let mut build = Command::new(binary);
    build.args(["workload", "build", "--json", "--vcpus", &vcpus.to_string(), "--out"]).arg(image);
    let out = run(&mut build)?;
    Ok(serde_json::from_slice(&out)?)
}

/// Reads counters that were saved to files; none where the guest had not come so far.
pub(super) fn read(binary: &Path, files: &[PathBuf]) -> Result<Vec<Option<Counters>>> {
    let out = run(Command::new(binary).args(["workload", "counters"]).args(files))?;
    Ok(serde_json::from_slice(&out)?)
}

fn run(command: &mut Command) -> Result<Vec<u8>> {
    let ran = command.output().with_context(|| format!("can't run {command:?}"))?;
    ensure!(ran.status.success(), "{command:?}: {}", String::from_utf8_lossy(&ran.stderr));
    Ok(ran.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_since_a_moment() {
        let gap = |us, end_tsc| Gap { us, end_tsc };
        let vcpus = vec![
            Vcpu { tsc: 90, gaps: vec![gap(500, 10), gap(300, 50), gap(30, 80)] },
            Vcpu { tsc: 95, gaps: vec![gap(40, 60)] },
        ];
        let total = Totals { running: 2, pages_written: 0, pages_read: 0, errors: 0, tsc_backward_steps: 0 };
        let counters = Counters { total, vcpus };
        assert_eq!(counters.tsc(), 95);
        assert_eq!([0, 10, 55, 80].map(|tsc| counters.gap_since(tsc)), [500, 300, 40, 0]);
    }
}
