//! A vCPU: a descriptor of KVM's and the thread that runs it.

mod kick;
mod run;

use std::sync::Arc;
use std::thread;

use kvm_ioctls::VcpuFd;
use parking_lot::Mutex;

use crate::VmmError;
use crate::gate::Gate;

pub(crate) use kick::Kicker;
pub(crate) use run::Exits;

/// A vCPU's descriptor. Its thread holds the lock while the vCPU may run; whoever holds it otherwise
/// can be sure that it does not.
pub(crate) type Vcpu = Arc<Mutex<VcpuFd>>;

/// Starts the thread of vCPU `index`, which waits at the gate first.
pub(crate) fn spawn(
    name: &str,
    index: usize,
    vcpu: Vcpu,
    gate: Arc<Gate>,
    exits: Exits,
) -> Result<(), VmmError> {
    // The kernel keeps 15 bytes of a thread's name.
    let name: String = format!("vcpu{index}:{name}").chars().take(15).collect();
    let thread = {
        let gate = gate.clone();
        thread::Builder::new()
            .name(name)
            .spawn(move || run::run(index, &vcpu, &gate, &exits))
            .map_err(VmmError::Thread)?
    };
    gate.kicker(index).attach(thread);
    Ok(())
}
