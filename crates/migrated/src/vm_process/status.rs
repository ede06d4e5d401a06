use migrated_control::{ConsoleRange, Status};

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
        vcpu_blocked_us: vm.as_ref().map_or(0, |vm| vm.blocked().as_micros() as u64),
        endpoints: process.endpoints(),
        migration,
        unresolved,
    }
}
