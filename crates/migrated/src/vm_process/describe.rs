//! The guest as both ends of a migration compare it.

use migrated_control::{ControlError, ErrorKind, GuestDescription, SectionRef};
use migrated_vmm::Vm;
use migrated_wire::{GuestIdentity, SectionName};

use super::process::Process;

/// What a host must know of a guest to judge whether it can run there.
pub fn describe(process: &Process, vm: &Vm) -> GuestDescription {
    let sections = vm
        .section_ids()
        .into_iter()
        .map(|id| SectionRef { kind: id.kind, instance: id.instance, version: id.version })
        .collect();
    GuestDescription {
        ram: vm.ram().layout().clone(),
        sections,
        cpu: process.cpu.of(vm),
        simulated: process.cpu.is_simulated(),
    }
}

/// The same as it goes on the wire at preflight, where both ends must have it byte by byte.
pub fn identity(description: &GuestDescription) -> Result<GuestIdentity, ControlError> {
    let cpu = serde_json::to_vec(&description.cpu)
        .map_err(|error| ControlError::new(ErrorKind::Internal, "cpu_table", error.to_string()))?;
    let sections = description
        .sections
        .iter()
        .map(|s| SectionName { kind: s.kind.clone(), instance: s.instance, version: s.version })
        .collect();
    Ok(GuestIdentity { layout: description.ram.clone(), sections, cpu: cpu.into() })
}

/// In which sections this host's VM differs from the one that will come, for people.
pub fn differing_sections(ours: &[SectionRef], theirs: &[SectionRef]) -> Vec<String> {
    let name = |s: &SectionRef| format!("{}/{} v{}", s.kind, s.instance, s.version);
    let unknown = theirs.iter().filter(|s| !ours.contains(s)).map(|s| format!("{} is unknown here", name(s)));
    let missing =
        ours.iter().filter(|s| !theirs.contains(s)).map(|s| format!("{} would be missing", name(s)));
    unknown.chain(missing).collect()
}
