//! A VM as a migration sees it: three types for running, paused and incoming.

use migrated_guest::{
    FirstRun, Guest, GuestError, GuestRam, IncomingGuest, LateDelivery, LateInput, NoDelivery, PausedGuest,
    PostcopyRam, PreparedPostcopy, Refused, SectionId, StateSection, Throttle, Throttled,
};
use migrated_pages::PageSet;
use thiserror::Error;

use crate::state::{self, MachineState};
use crate::warm_up::WarmUp;
use crate::{Vm, memory};

/// Why a VM can't be taken for a migration.
#[derive(Debug, Error)]
pub enum ClaimError {
    /// Another migration has it.
    #[error("another migration has this VM: wait until that ends, or cancel it")]
    Busy,
    /// It has ended or is elsewhere.
    #[error(transparent)]
    Guest(#[from] GuestError),
}

/// A VM that a migration has taken, see [`Vm::outgoing`]; dropping it gives it back.
#[derive(Debug)]
pub struct RunningVm {
    claim: Claim,
}

/// A VM that a migration holds still. Dropped without [`resume`](PausedGuest::resume) or
/// [`retire`](PausedGuest::retire) it stays so: whether it may run is then not known here.
#[derive(Debug)]
pub struct PausedVm {
    vm: Vm,
}

/// A VM that has not run here yet.
#[derive(Debug)]
pub struct IncomingVm {
    warm_up: WarmUp,
    vm: Vm,
}

/// That a migration has the VM.
#[derive(Debug)]
struct Claim {
    vm: Option<Vm>,
}

impl Claim {
    fn vm(&self) -> &Vm {
        self.vm.as_ref().expect("a claim loses its VM only when it is consumed")
    }

    /// The VM, which stays taken.
    fn keep(mut self) -> Vm {
        self.vm.take().expect("a claim loses its VM only when it is consumed")
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(vm) = &self.vm {
            vm.machine.throttler.release();
            *vm.machine.claimed.lock() = false;
        }
    }
}

impl RunningVm {
    pub(crate) fn claim(vm: &Vm) -> Result<Self, ClaimError> {
        vm.machine.gate.check_usable()?;
        let mut claimed = vm.machine.claimed.lock();
        if *claimed {
            return Err(ClaimError::Busy);
        }
        *claimed = true;
        drop(claimed);
        Ok(Self { claim: Claim { vm: Some(vm.clone()) } })
    }

    /// The VM, for what a migration is not concerned with.
    #[must_use]
    pub fn vm(&self) -> &Vm {
        self.claim.vm()
    }
}

impl Guest for RunningVm {
    type Paused = PausedVm;

    fn ram(&self) -> &GuestRam {
        self.vm().ram()
    }

    fn start_tracking(&mut self) -> Result<(), GuestError> {
        let machine = &self.vm().machine;
        machine.tracker.lock().start()?;
        machine.throttler.begin();
        Ok(())
    }

    fn harvest(&mut self, dirty: &mut PageSet) -> Result<u64, GuestError> {
        let machine = &self.vm().machine;
        let pages = machine.tracker.lock().harvest(dirty)?;
        machine.throttler.harvested(pages);
        Ok(pages)
    }

    fn stop_tracking(&mut self) -> Result<(), GuestError> {
        let machine = &self.vm().machine;
        machine.throttler.release();
        machine.tracker.lock().stop()
    }

    fn throttle(&mut self, throttle: Option<Throttle>) -> Result<(), GuestError> {
        let throttler = &self.vm().machine.throttler;
        match throttle {
            Some(throttle) => throttler.set(throttle),
            None => {
                throttler.release();
                Ok(())
            }
        }
    }

    fn throttled(&self) -> Option<Throttled> {
        Some(self.vm().machine.throttler.throttled())
    }

    fn late_delivery(&self) -> Box<dyn LateDelivery> {
        match &self.vm().machine.hardware.devices {
            Some(devices) => Box::new(devices.cards().clone()),
            None => Box::new(NoDelivery),
        }
    }

    fn pause(self) -> Result<PausedVm, Refused<Self>> {
        match self.vm().machine.gate.migration_pause() {
            Ok(()) => {
                // Only now: a vCPU that rests stands still already, and must not write once more before the pause.
                self.vm().machine.throttler.release();
                Ok(PausedVm { vm: self.claim.keep() })
            }
            Err(error) => Err(Refused { guest: self, error }),
        }
    }
}

impl PausedGuest for PausedVm {
    type Running = RunningVm;

    fn ram(&self) -> &GuestRam {
        self.vm.ram()
    }

    fn harvest(&mut self, dirty: &mut PageSet) -> Result<u64, GuestError> {
        self.vm.machine.tracker.lock().harvest(dirty)
    }

    fn save(&mut self) -> Result<Vec<StateSection>, GuestError> {
        let machine = MachineState { owner_paused: self.vm.machine.gate.owner_paused() };
        state::save(&self.vm.machine.hardware, machine)
    }

    fn resume(self) -> Result<RunningVm, Refused<Self>> {
        self.vm.machine.hardware.serial.stay();
        match self.vm.machine.gate.migration_resume() {
            Ok(()) => Ok(RunningVm { claim: Claim { vm: Some(self.vm) } }),
            Err(error) => Err(Refused { guest: self, error }),
        }
    }

    fn late_input(&mut self, limit_bytes: usize) -> Vec<LateInput> {
        let devices = self.vm.machine.hardware.devices.as_ref();
        devices.map_or_else(Vec::new, |devices| devices.cards().late_input(limit_bytes))
    }

    fn retire(self) {
        self.vm.machine.gate.retire();
        if let Err(error) = memory::release(self.vm.ram()) {
            tracing::warn!(vm = self.vm.name(), "RAM of a guest that left stays in use: {error}");
        }
    }
}

impl IncomingVm {
    pub(crate) fn new(vm: Vm) -> Self {
        *vm.machine.claimed.lock() = true;
        Self { warm_up: WarmUp::default(), vm }
    }

    /// The VM, for what a migration is not concerned with.
    #[must_use]
    pub fn vm(&self) -> &Vm {
        &self.vm
    }

    /// Saves the fresh state and restores it: what both take here is what they will take in a downtime,
    /// and the first of each, which is the slowest, has then been.
    ///
    /// # Errors
    /// As [`save`](PausedGuest::save) and [`restore`](IncomingGuest::restore).
    pub fn rehearse(&self) -> Result<(), GuestError> {
        let hardware = &self.vm.machine.hardware;
        let sections = state::save(hardware, MachineState { owner_paused: false })?;
        state::restore(hardware, sections).map(drop)
    }

    /// The sections that [`restore`](IncomingGuest::restore) wants.
    #[must_use]
    pub fn section_ids(&self) -> Vec<SectionId> {
        self.vm.section_ids()
    }
}

impl IncomingGuest for IncomingVm {
    type Running = RunningVm;

    fn ram(&self) -> &GuestRam {
        self.vm.ram()
    }

    fn arm_postcopy(
        &mut self,
        prepared: PreparedPostcopy,
        stale: &PageSet,
    ) -> Result<PostcopyRam, GuestError> {
        // Page tables of missing pages are made by nobody: who tried would wait for the page.
        self.warm_up.stop();
        let postcopy = prepared.arm(stale)?;
        // RAM can be watched once, so this is the first time.
        let _ = self.vm.machine.watched.set(postcopy.watched().clone());
        Ok(postcopy)
    }

    fn warm_up(&mut self, pages: PageSet) {
        self.warm_up.add(&self.vm.machine.hardware, self.vm.ram(), pages);
    }

    fn restore(&mut self, sections: Vec<StateSection>) -> Result<(), GuestError> {
        self.warm_up.stop();
        let machine = &self.vm.machine;
        let MachineState { owner_paused } = state::restore(&machine.hardware, sections)?;
        machine.gate.inherit_owner_pause(owner_paused);
        Ok(())
    }

    fn start(self) -> Result<(RunningVm, FirstRun), GuestError> {
        let at = self.vm.machine.gate.start()?;
        Ok((RunningVm { claim: Claim { vm: Some(self.vm) } }, FirstRun { at }))
    }
}
