//! One run of one variant: a line of the file of runs.

use std::path::Path;

use anyhow::{Context, Result};
use migrated_api::{LatencyHistogram, MigrationRecord};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::axes::{Link, Variant};
use super::setting::Workload;
use crate::journey::Seen;

/// Bytes of a GiB.
const GIB: f64 = 1_073_741_824.0;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The guest runs at the other host, and all of it is there.
    Completed,
    /// Pre-copy did not keep up with the guest within its time and was cancelled; the guest runs where it was.
    NotConverged,
    /// Something failed or was lost.
    Lost,
}

/// One run, with everything that both ends say of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// The scenario.
    pub scenario: String,
    /// What is asked of its figures.
    #[serde(default)]
    pub aim: String,
    /// The link.
    pub link: Link,
    /// The guest.
    pub guest: Workload,
    /// Who moved it, and how.
    pub variant: Variant,
    /// The round, from 1; of warm-ups as well.
    pub round: u32,
    /// Whether it was a warm-up, which counts for nothing.
    pub warm_up: bool,
    /// How it ended.
    pub outcome: Outcome,
    /// What was lost.
    pub problems: Vec<String>,
    /// The link's TCP payload rate in bits a second.
    pub payload_bps: f64,
    /// Bytes of RAM that hold something.
    pub nonzero_bytes: u64,
    /// What was seen.
    pub seen: Seen,
    /// Our source's record.
    pub record: Option<MigrationRecord>,
    /// Our destination's record.
    pub arrival: Option<MigrationRecord>,
    /// QEMU's `query-migrate`.
    pub qemu: Option<Value>,
}

impl Run {
    /// Whether it is one of those that figures are made of.
    #[must_use]
    pub fn counts(&self) -> bool {
        !self.warm_up && self.outcome == Outcome::Completed
    }

    /// Link and guest, in words.
    #[must_use]
    pub fn setting(&self) -> String {
        format!("{}, {}", self.link, self.guest)
    }

    /// The least time in which what the guest's RAM holds can cross the link, in seconds.
    #[must_use]
    pub fn bound_s(&self) -> f64 {
        self.nonzero_bytes as f64 * 8.0 / self.payload_bps
    }

    /// Total time ÷ lower bound.
    #[must_use]
    pub fn over_bound(&self) -> Option<f64> {
        Some(self.seen.total_s / self.bound_s())
    }

    /// The same without our set-up; QEMU's total has little of it, as its destination is started beforehand.
    #[must_use]
    pub fn flow_over_bound(&self) -> Option<f64> {
        let setup_ms = match (&self.record, &self.qemu) {
            (Some(record), _) => record.setup_ms,
            (None, Some(qemu)) => qemu["setup-time"].as_f64()?,
            (None, None) => return None,
        };
        Some((self.seen.total_s - setup_ms / 1e3) / self.bound_s())
    }

    /// Bytes that the source's NIC sent ÷ RAM that holds something.
    #[must_use]
    pub fn wire_over_ram(&self) -> Option<f64> {
        Some(self.seen.cost?.source.nic_sent as f64 / self.nonzero_bytes as f64)
    }

    /// CPU seconds of the source a GiB of RAM that holds something.
    #[must_use]
    pub fn source_cpu(&self) -> Option<f64> {
        Some(self.seen.cost?.source.cpu_s / (self.nonzero_bytes as f64 / GIB))
    }

    /// The same of the destination.
    #[must_use]
    pub fn destination_cpu(&self) -> Option<f64> {
        Some(self.seen.cost?.destination.cpu_s / (self.nonzero_bytes as f64 / GIB))
    }

    /// How long the guest waited for pages at the destination.
    #[must_use]
    pub fn waits(&self) -> Option<&LatencyHistogram> {
        let waits = &self.arrival.as_ref()?.postcopy.as_ref()?.fault_latency;
        (waits.count() > 0).then_some(waits)
    }

    /// A quantile of those waits, in µs.
    #[must_use]
    pub fn wait_us(&self, share: f64) -> Option<f64> {
        Some(self.waits()?.quantile_us(share)? as f64)
    }
}

/// The runs of a file that `matrix --json` wrote, warm-ups included.
///
/// # Errors
/// It can't be read, or holds a run that is none.
pub fn read(path: &Path) -> Result<Vec<Run>> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("can't read the runs {}", path.display()))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let runs = lines.map(|(n, line)| {
        let wrong = || format!("line {} of {} is no line of a matrix", n + 1, path.display());
        let value: Value = serde_json::from_str(line).with_context(wrong)?;
        // The first and the last line are about the machine.
        if value.get("variant").is_none() {
            return Ok(None);
        }
        serde_json::from_value(value).with_context(wrong).map(Some)
    });
    let runs: Vec<Option<Run>> = runs.collect::<Result<_>>()?;
    Ok(runs.into_iter().flatten().collect())
}
