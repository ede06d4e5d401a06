//! The guest's CPU: what the daemon chose, what the VM is made with, and what it is described as.
//!
//! These are the same, but on a **simulated** host: its daemon was told to pretend another CPU, so that two
//! hosts of different generations can be had on one machine. There the guest runs with what the machine really
//! gives, and only its description says what the daemon pretends. This file is all that knows of it here.

use std::sync::OnceLock;

use migrated_control::{ControlError, ErrorKind};
use migrated_cpuid::GuestCpu;
use migrated_vmm::{Vm, cpu_differences};

/// The CPU that a simulated host pretends the guest to have.
#[derive(Default)]
pub struct Pretended(OnceLock<GuestCpu>);

impl Pretended {
    /// The CPU to make the VM with; `None` for what this machine gives.
    pub fn to_run(&self, cpu: &GuestCpu, simulated: bool) -> Option<GuestCpu> {
        if !simulated {
            return Some(cpu.clone());
        }
        tracing::warn!(
            baseline = cpu.baseline,
            "SIMULATED CPU: this host pretends a CPU that it does not have, for tests; the guest does not get the \
             CPU that it is said to have, and must not be moved to a real host"
        );
        // It is asked for once, when the process makes its only VM.
        let _ = self.0.set(cpu.clone());
        None
    }

    /// Whether the guest is said to have another CPU than it has.
    pub fn is_simulated(&self) -> bool {
        self.0.get().is_some()
    }

    /// The CPU that the guest is said to have.
    pub fn of(&self, vm: &Vm) -> GuestCpu {
        self.0.get().unwrap_or_else(|| vm.cpu()).clone()
    }

    /// Checks that the VM made for an incoming guest has the CPU that the source says the guest has.
    ///
    /// # Errors
    /// `cpu_incompatible`, with everything that differs.
    pub fn check(&self, received: &GuestCpu, vm: &Vm) -> Result<(), ControlError> {
        let differing = cpu_differences(&received.table, &self.of(vm).table);
        if differing.is_empty() {
            return Ok(());
        }
        let differing: Vec<_> = differing.iter().map(ToString::to_string).collect();
        let message = format!(
            "the source describes a CPU that no guest runs with on this host: {}; choose another host, or see \
             whether the source tells the truth",
            differing.join(", ")
        );
        Err(ControlError::new(ErrorKind::InvalidInput, "cpu_incompatible", message))
    }
}

#[cfg(test)]
mod tests {
    use migrated_testkit::require;
    use migrated_vmm::VmConfig;

    use super::*;

    fn incoming(cpu: Option<GuestCpu>) -> Vm {
        let config = VmConfig { cpu, ..VmConfig::new("test", 2 << 20) };
        Vm::incoming(config).unwrap().vm().clone()
    }

    #[test]
    fn a_source_that_claims_another_table_is_refused() {
        require!(Kvm);
        let (real, here) = (Pretended::default(), incoming(None));
        let mut cpu = here.cpu().clone();
        let vm = incoming(real.to_run(&cpu, false));
        real.check(&cpu, &vm).unwrap();
        assert_eq!(&real.of(&vm), vm.cpu());
        // Two cores, of which there is one.
        cpu.table.cpuid.get_mut(1, 0).unwrap().ebx |= 2 << 16;
        let vm = incoming(real.to_run(&cpu, false));
        let refusal = real.check(&cpu, &vm).unwrap_err();
        assert_eq!(refusal.code, "cpu_incompatible");
        assert!(refusal.message.contains("CPUID leaf 0x1 subleaf 0 ebx"), "{}", refusal.message);
    }

    #[test]
    fn a_simulated_host_runs_one_cpu_and_tells_another() {
        require!(Kvm);
        let (simulated, here) = (Pretended::default(), incoming(None));
        let mut cpu = here.cpu().clone();
        cpu.table.cpuid.get_mut(1, 0).unwrap().eax = 0x0005_0657;
        cpu.baseline = "intel-cascadelake".into();
        let vm = incoming(simulated.to_run(&cpu, true));
        assert_eq!(vm.cpu(), here.cpu());
        assert_eq!(simulated.of(&vm), cpu);
        simulated.check(&cpu, &vm).unwrap();
    }
}
