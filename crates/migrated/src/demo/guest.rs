//! The guest that the demo moves.

use anyhow::{Context, Result};
use clap::Args;
use migrated_api::{BootSource, VmSpec};
use migrated_vmm::workload::WorkloadParams;

use crate::units;

/// What the demo's VM is called.
pub const NAME: &str = "demo";
/// The unit in which the workload guest uses RAM.
const PAGE: u64 = 4096;
/// RAM that the workload guest needs for itself besides its tables: image, stacks, what the VMM hands over.
const OWN: u64 = 4 << 20;
/// Its tables take less than this part of RAM.
const TABLES: u64 = 32;

/// The guest's size and what it does.
#[derive(Debug, Args)]
pub struct GuestArgs {
    /// Guest RAM: a multiple of 2M. Nearly all of it is filled with random data.
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = units::size)]
    memory: u64,
    /// Working set that the guest writes over and over [default: a quarter of its RAM].
    #[arg(long, value_name = "SIZE", value_parser = units::size)]
    hot: Option<u64>,
    /// Pages of its working set that the guest writes a second, or `max`.
    #[arg(long, value_name = "PAGES", default_value = "20000")]
    rate: String,
    /// Number of vCPUs.
    #[arg(long, value_name = "N", default_value_t = 1)]
    vcpus: u32,
}

impl GuestArgs {
    /// The guest's specification. The workload's parameters are checked here; RAM and vCPUs by the daemon.
    pub fn spec(&self) -> Result<VmSpec> {
        let hot = self.hot.unwrap_or(self.memory / 4 / PAGE * PAGE);
        let fill = fill(self.memory, hot);
        let cmdline = format!("hot={hot} rate={} pattern=random content=random fill={fill}", self.rate);
        cmdline.parse::<WorkloadParams>().context("the guest can't do that")?;
        Ok(VmSpec {
            name: NAME.into(),
            memory_bytes: self.memory,
            vcpus: self.vcpus,
            boot: BootSource::Workload { cmdline },
            backing: Default::default(),
            prefault: true,
            cpu_baseline: Default::default(),
            network: Vec::new(),
        })
    }
}

/// As much of the RAM outside the working set as can be filled for sure, in bytes.
const fn fill(memory: u64, hot: u64) -> u64 {
    memory.saturating_sub(hot).saturating_sub(OWN + memory / TABLES) / PAGE * PAGE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_of_the_ram_is_used() {
        let hot = 128 << 20;
        let used = fill(512 << 20, hot) + hot;
        assert!(used > 485 << 20 && used < 500 << 20, "{used}");
        assert_eq!(fill(16 << 20, 15 << 20), 0);
    }

    #[test]
    fn a_rate_that_is_none_is_refused_by_name() {
        let args = GuestArgs { memory: 64 << 20, hot: None, rate: "fast".into(), vcpus: 1 };
        let error = format!("{:#}", args.spec().unwrap_err());
        assert!(error.contains("rate=fast"), "{error}");
    }
}
