//! A guest that resets itself boots anew, in a new VM process: with the same id, name, CPU and console.
//!
//! The process that it was in has ended and left word of the reset, so this also happens to a guest that did so while
//! no daemon ran. It boots from the kernel that its specification names, which must be on this host, wherever the
//! guest came from.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use migrated_control::{BootPlan, ExitReport, FileError, VmStart, VmState};
use thiserror::Error;

use super::lifecycle::ready_and_state;
use super::process::ProcessId;
use super::vm::Vm;
use super::{Daemon, DaemonError};

/// A guest that resets so often within so long does nothing else.
const LIMIT: usize = 3;
const WITHIN: Duration = Duration::from_secs(10);

/// When a guest has reset itself, as far as it matters.
#[derive(Debug, Default)]
pub struct Resets(VecDeque<Instant>);

/// A guest that resets itself again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "the guest reset itself {LIMIT} times within {} s and is left off: its console says how far it gets",
    WITHIN.as_secs()
)]
pub struct TooManyResets;

impl Resets {
    /// It has reset itself again, which may be once too often.
    pub fn note(&mut self, now: Instant) -> Result<(), TooManyResets> {
        self.0.push_back(now);
        if self.0.len() > LIMIT {
            self.0.pop_front();
        }
        match self.0.front() {
            Some(first) if self.0.len() == LIMIT && now - *first < WITHIN => Err(TooManyResets),
            _ => Ok(()),
        }
    }

    /// Whether it ever has, under this daemon.
    pub fn any(&self) -> bool {
        !self.0.is_empty()
    }
}

impl Daemon {
    /// Boots a guest anew whose process has ended with its reset.
    pub(super) fn reboot(self: &Arc<Self>, vm: &Arc<Vm>) {
        if let Err(error) = vm.note_reset() {
            return leave_off(vm, "reset_too_often", error.to_string());
        }
        vm.set_state(VmState::Starting, None);
        let (daemon, vm) = (Arc::clone(self), Arc::clone(vm));
        tokio::spawn(async move {
            if let Err(error) = daemon.try_reboot(&vm).await {
                vm.process().inspect(ProcessId::kill);
                let message = format!("the guest reset itself and can't boot again: {error}");
                leave_off(&vm, error.code(), message);
            }
        });
    }

    async fn try_reboot(self: &Arc<Self>, vm: &Arc<Vm>) -> Result<(), DaemonError> {
        let unusable =
            |e: FileError| DaemonError::local("its directory can't be used")(std::io::Error::other(e));
        let plan = match vm.dir.read_start().map_err(unusable)? {
            VmStart::Boot(plan) => BootPlan { again: true, ..*plan },
            // It keeps the CPU that it came with, so that it can go wherever it could.
            VmStart::Incoming(plan) => BootPlan {
                spec: plan.spec,
                networks: plan.networks,
                cpu: plan.description.cpu,
                simulated: plan.simulated,
                again: true,
            },
        };
        vm.dir.write_start(&VmStart::Boot(Box::new(plan))).map_err(unusable)?;
        // Last: a daemon that takes over before this finds the reset again.
        vm.dir.clear_exit().map_err(unusable)?;
        let asked = match self.start_process(vm).await? {
            Ok(client) => ready_and_state(&client, vm).await.map(drop),
            Err(error) => Err(error),
        };
        // Its supervisor asks again, and learns why it ends.
        if let Err(error) = asked {
            tracing::warn!(vm = vm.id, "the VM process does not say how it is: {error}");
        }
        Ok(())
    }
}

/// The guest stays as it is, also for the daemons to come.
fn leave_off(vm: &Vm, code: &str, message: String) {
    let report =
        ExitReport { state: VmState::Stopped, code: code.to_owned(), message: message.clone(), record: None };
    if let Err(error) = vm.dir.write_exit(&report) {
        tracing::error!(vm = vm.id, "a later daemon may boot this guest again: {error}");
    }
    vm.set_state(VmState::Stopped, Some(message));
    vm.set_gone();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_resets_in_ten_seconds_are_too_many() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut resets = Resets::default();
        assert!(!resets.any());
        // Each three of these take ten seconds.
        for seconds in [0, 5, 10, 15, 20, 26] {
            assert_eq!(resets.note(at(seconds)), Ok(()), "{seconds}");
        }
        assert!(resets.any());
        assert_eq!(resets.note(at(29)), Err(TooManyResets));
    }
}
