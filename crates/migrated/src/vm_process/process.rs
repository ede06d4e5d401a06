use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use migrated_control::{ControlError, Event, EventSink, ExitReport, Response, VmDir, VmState};
use migrated_vmm::{GuestEnd, RunState, Vm};
use parking_lot::{Condvar, Mutex};

use super::cpu::Pretended;
use super::errors;
use super::migration::Active;
use super::sample::Watching;
use super::workload::GapMeter;

/// How long the last messages may take to reach the daemon before the process exits.
const FAREWELL: Duration = Duration::from_millis(200);

/// What all threads of a VM process share.
pub struct Process {
    /// The directory shared with the daemon.
    pub dir: VmDir,
    /// Where events go.
    pub events: EventSink,
    /// The CPU that it is described with, where that is not its own.
    pub cpu: Pretended,
    /// The VM, once it is made.
    vm: Mutex<Option<Vm>>,
    /// What making it came to, for whoever waits.
    made: Mutex<Option<Result<Vec<SocketAddr>, ControlError>>>,
    made_now: Condvar,
    /// The migration under way, or the last one.
    pub migration: Mutex<Option<Active>>,
    /// Whether somebody watches what the guest writes.
    pub watching: Watching,
    /// The workload guest's gaps as the API was last told.
    pub gaps: GapMeter,
    end: Sender<ExitReport>,
}

impl Process {
    /// A process without a VM, and where its end is told.
    pub fn new(dir: VmDir, events: EventSink) -> (Arc<Self>, Receiver<ExitReport>) {
        let (end, ended) = channel();
        let process = Self {
            dir,
            events,
            cpu: Pretended::default(),
            vm: Mutex::new(None),
            made: Mutex::new(None),
            made_now: Condvar::new(),
            migration: Mutex::new(None),
            watching: Watching::default(),
            gaps: GapMeter::default(),
            end,
        };
        (Arc::new(process), ended)
    }

    /// The VM, if it is made.
    pub fn vm(&self) -> Option<Vm> {
        self.vm.lock().clone()
    }

    /// The VM is made; `endpoints` are where it waits for a guest.
    pub fn ready(self: &Arc<Self>, vm: &Vm, endpoints: Vec<SocketAddr>) {
        let process = Arc::clone(self);
        vm.on_end(move |end| process.guest_ended(end));
        *self.vm.lock() = Some(vm.clone());
        *self.made.lock() = Some(Ok(endpoints));
        self.made_now.notify_all();
        self.announce();
    }

    /// The VM can't be made: whoever waits hears it, and the process ends.
    pub fn cannot(&self, error: ControlError) {
        self.cannot_and(VmState::Failed, error);
    }

    /// The guest has reset itself and can't boot again: it stays off.
    pub fn cannot_again(&self, mut error: ControlError) {
        error.message =
            format!("the guest reset itself and can't boot again on this host: {}", error.message);
        self.cannot_and(VmState::Stopped, error);
    }

    fn cannot_and(&self, state: VmState, error: ControlError) {
        let report =
            ExitReport { state, code: error.code.clone(), message: error.message.clone(), record: None };
        *self.made.lock() = Some(Err(error));
        self.made_now.notify_all();
        self.end(report);
    }

    /// Waits until the VM is made or can't be.
    pub fn await_ready(&self) -> Result<Response, ControlError> {
        let mut made = self.made.lock();
        loop {
            match &*made {
                Some(Ok(endpoints)) => return Ok(Response::Ready { endpoints: endpoints.clone() }),
                Some(Err(error)) => return Err(error.clone()),
                None => self.made_now.wait(&mut made),
            }
        }
    }

    /// Where it waits for a guest.
    pub fn endpoints(&self) -> Vec<SocketAddr> {
        match &*self.made.lock() {
            Some(Ok(endpoints)) => endpoints.clone(),
            _ => Vec::new(),
        }
    }

    /// Refuses what needs all of the guest's memory while pages of it are still on their way to here.
    pub fn refuse_if_arriving(&self) -> Result<(), ControlError> {
        if self.migration.lock().as_ref().is_some_and(Active::is_arriving) {
            let message =
                "pages of this VM's memory are still on their way to here; wait until they have come";
            return Err(errors::conflict("migration_in_progress", message));
        }
        Ok(())
    }

    /// What the VM does, and why where that doesn't say itself.
    pub fn state(&self) -> (VmState, Option<String>) {
        match self.vm().map(|vm| vm.run_state()) {
            None => (VmState::Starting, None),
            Some(RunState::Incoming) => (VmState::Incoming, None),
            Some(RunState::Running) => (VmState::Running, None),
            Some(RunState::Paused) => (VmState::Paused, None),
            Some(RunState::Crashed(reason)) => (VmState::Crashed, Some(reason)),
            Some(RunState::ShutDown) => (VmState::Stopped, None),
            // For as long as this process still takes to say so and leave: the daemon boots it anew.
            Some(RunState::Reset) => (VmState::Running, Some("the guest resets itself".into())),
            Some(RunState::Retired) => (VmState::MigratedAway, None),
        }
    }

    /// Tells every daemon what the VM does now.
    pub fn announce(&self) {
        let (state, reason) = self.state();
        self.events.send(Event::VmState { state, reason });
    }

    /// The guest stopped by itself. A crashed one is kept for a look at its memory and console.
    fn guest_ended(&self, end: &GuestEnd) {
        let (code, message) = match end {
            GuestEnd::Crashed(_) => return self.announce(),
            GuestEnd::ShutDown => ("shutdown", "the guest shut itself down"),
            GuestEnd::Reset => (ExitReport::RESET, "the guest reset itself"),
        };
        if *end == GuestEnd::ShutDown {
            self.announce();
        }
        self.end(ExitReport {
            state: VmState::Stopped,
            code: code.into(),
            message: message.into(),
            record: None,
        });
    }

    /// Ends the process; the first reason counts.
    pub fn end(&self, report: ExitReport) {
        // Only a process that is ending already no longer listens.
        let _ = self.end.send(report);
    }

    /// Leaves word in the VM's directory and with every daemon.
    pub fn leave(&self, report: ExitReport) {
        let reason = report.message.clone();
        tracing::info!(code = report.code, "leaving: {reason}");
        if let Err(error) = self.dir.write_exit(&report) {
            tracing::error!("nobody will know why this process ended: {error}");
        }
        self.events.send(Event::Exiting { reason });
        // Messages are written by threads of their own; the directory has all that matters.
        std::thread::sleep(FAREWELL);
    }
}
