//! The host's CPU as this daemon takes it, and the CPUs that it gives to new guests.

use std::path::Path;
use std::sync::OnceLock;

use anyhow::Context;
use migrated_api::{HostCpuReport, Reason, VmCpu};
use migrated_control::{VmSpec, VmStart};
use migrated_cpuid::{BaselineError, BaselineSpec, CpuDump, FeatureSet, GuestCpu, HostCpu};
use migrated_vmm::layout::{HIGH_RAM_START, LOW_RAM_END};
use parking_lot::Mutex;

use super::store::Store;
use super::vm::Vm;
use super::{Daemon, DaemonError, Ground, drift};
use crate::config::HostConfig;

/// The CPU, read when it is first asked for, because that takes a VM's making and unmaking and KVM may come later.
#[derive(Debug)]
pub struct OwnCpu {
    read: fn(&str) -> Result<HostCpu, DaemonError>,
    hidden: FeatureSet,
    known: OnceLock<HostCpu>,
    reading: Mutex<()>,
}

impl OwnCpu {
    /// The real CPU, or the one that the configuration wants to be pretended.
    pub fn new(config: &HostConfig, ground: &Ground) -> anyhow::Result<Self> {
        let hidden = config.hidden_features()?;
        let own = Self { read: ground.cpu, hidden, known: OnceLock::new(), reading: Mutex::new(()) };
        if let Some(file) = &config.testing.simulate_cpu {
            let mut host = read_dump(file).context("`testing.simulate_cpu`")?;
            host.identity.name.clone_from(&config.name);
            host.hidden = host.hidden | hidden;
            tracing::warn!(
                "THIS HOST PRETENDS TO HAVE ANOTHER CPU, the one in {}: FOR TESTS ONLY. Guests are admitted and \
                 refused by it, and run with what the real CPU gives",
                file.display()
            );
            own.known.get_or_init(|| host);
        }
        Ok(own)
    }

    /// What it can give a guest.
    fn get(&self, name: &str, store: &Store) -> Result<&HostCpu, DaemonError> {
        if let Some(known) = self.known.get() {
            return Ok(known);
        }
        let _reading = self.reading.lock();
        if let Some(known) = self.known.get() {
            return Ok(known);
        }
        let mut host = (self.read)(name)?;
        host.hidden = self.hidden;
        drift::follow(&mut host, store);
        Ok(self.known.get_or_init(|| host))
    }

    /// How many features it had once and has no more; 0 while that is not known.
    pub fn features_lost(&self) -> usize {
        self.known.get().map_or(0, |host| host.lost.len())
    }
}

fn read_dump(file: &Path) -> anyhow::Result<HostCpu> {
    let text = std::fs::read_to_string(file).with_context(|| format!("can't read {}", file.display()))?;
    Ok(parse_dump(&file.display().to_string(), &text)?)
}

/// The CPU in a dump's text; `place` is where that is from.
pub fn parse_dump(place: &str, text: &str) -> Result<HostCpu, DaemonError> {
    let host = CpuDump::parse(text).and_then(HostCpu::try_from);
    host.map_err(|error| DaemonError::InvalidDump { place: place.to_owned(), error })
}

/// The CPU of a guest of that baseline on a host.
pub fn guest_of(host: &HostCpu, baseline: &BaselineSpec) -> Result<GuestCpu, DaemonError> {
    let baseline = baseline.resolve(host).map_err(|errors| DaemonError::Baseline(reasons(&errors)))?;
    host.grant(&baseline)
        .map_err(|report| DaemonError::CpuNotGiven { host: host.identity.name.clone(), report })
}

fn reasons(errors: &[BaselineError]) -> Vec<Reason> {
    errors.iter().map(|error| Reason { code: code(error).into(), detail: error.to_string() }).collect()
}

const fn code(error: &BaselineError) -> &'static str {
    match error {
        BaselineError::UnknownName { .. } => "unknown_baseline",
        BaselineError::UnknownPart { .. } => "unknown_baseline_part",
        BaselineError::UnknownFeature { .. } => "unknown_cpu_feature",
        BaselineError::Withheld { .. } => "withheld_cpu_feature",
        BaselineError::Impossible { .. } => "impossible_cpu_features",
        BaselineError::Contradiction { .. } => "contradictory_cpu_features",
        BaselineError::AddressBits { .. } => "invalid_address_bits",
    }
}

impl Daemon {
    /// What the host's CPU can give a guest.
    pub(super) fn host_cpu(&self) -> Result<&HostCpu, DaemonError> {
        self.cpu.get(&self.config.name, &self.store)
    }

    /// Whether the host only pretends to have its CPU.
    pub(super) const fn is_simulated(&self) -> bool {
        self.config.testing.simulate_cpu.is_some()
    }

    /// The host's CPU as the API shows it.
    pub fn host_cpu_report(&self) -> Result<HostCpuReport, DaemonError> {
        let simulated = self.config.testing.simulate_cpu.as_ref().map(|path| path.display().to_string());
        Ok(HostCpuReport::of(self.host_cpu()?, simulated))
    }

    /// The CPU of a new VM.
    pub(super) fn cpu_for(&self, spec: &VmSpec) -> Result<GuestCpu, DaemonError> {
        let host = self.host_cpu()?;
        let cpu = guest_of(host, &spec.cpu_baseline).inspect_err(|error| {
            if error.cpu().is_some() {
                self.metrics.cpu_refused("creation");
            }
        })?;
        match out_of_reach(spec.memory_bytes, cpu.table.physical_address_bits()) {
            Some(fault) => Err(DaemonError::Invalid(vec![fault])),
            None => Ok(cpu),
        }
    }
}

/// RAM that the guest could not address.
fn out_of_reach(memory_bytes: u64, bits: u32) -> Option<Reason> {
    let end = match memory_bytes.checked_sub(LOW_RAM_END) {
        Some(high) if high > 0 => HIGH_RAM_START.saturating_add(high),
        _ => memory_bytes,
    };
    1_u64.checked_shl(bits).is_some_and(|limit| end > limit).then(|| Reason {
        code: "invalid_memory".into(),
        detail: format!(
            "the guest's RAM ends at {end:#x}, and its CPU baseline has {bits}-bit physical addresses: use a baseline of \
             your own with a higher `physical_address_bits` (as many as all hosts have), or less memory"
        ),
    })
}

/// The CPU of a VM as the API shows it.
pub(super) fn show(cpu: &GuestCpu, vm: &Vm) -> VmCpu {
    let simulated = match vm.dir.read_start() {
        Ok(VmStart::Boot(plan)) => plan.simulated,
        Ok(VmStart::Incoming(plan)) => plan.simulated,
        // It is shown as what it is described as.
        Err(_) => false,
    };
    VmCpu { baseline: cpu.baseline.clone(), best: cpu.best_name(), unmasked: cpu.unmasked, simulated }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_must_end_within_the_guests_addresses() {
        const GIB: u64 = 1 << 30;
        assert_eq!(out_of_reach(64 * GIB - GIB, 36), None);
        assert_eq!(out_of_reach(3 * GIB, 32), None);
        let fault = out_of_reach(64 * GIB - GIB + 1, 36).unwrap();
        assert!(fault.detail.contains("36-bit") && fault.detail.contains("physical_address_bits"));
        assert!(out_of_reach(4 * GIB, 32).is_some());
        assert!(out_of_reach(u64::MAX, 52).is_some());
        assert_eq!(out_of_reach(u64::MAX, 255), None);
    }
}
