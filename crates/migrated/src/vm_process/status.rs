use migrated_control::{Balloon, ConsoleRange, Status};
use migrated_vmm::{BalloonStatus, Vm};

use super::process::Process;

/// How the VM is at this moment.
pub fn status(process: &Process) -> Status {
    let (state, reason) = process.state();
    let vm = process.vm();
    let console = vm.as_ref().map_or_else(ConsoleRange::default, |vm| {
        let console = vm.console();
        ConsoleRange { start: console.start(), end: console.end() }
    });
    let (migration, unresolved) = match &*process.migration.lock() {
        Some(active) => (active.id_if_under_way(), active.unresolved()),
        None => (None, None),
    };
    Status {
        state,
        reason,
        console,
        workload: vm.as_ref().and_then(|vm| process.gaps.read(vm)),
        balloon: vm.as_ref().and_then(Vm::balloon).map(balloon),
        vcpu_blocked_us: vm.as_ref().map_or(0, |vm| vm.blocked().as_micros() as u64),
        endpoints: process.endpoints(),
        migration,
        unresolved,
    }
}

fn balloon(status: BalloonStatus) -> Balloon {
    let BalloonStatus { target_bytes, actual_bytes, given_back_bytes } = status;
    Balloon { target_bytes, actual_bytes, given_back_bytes }
}
