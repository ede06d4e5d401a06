use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Instant;

use migrated_engine::destination::DestinationEvent;
use migrated_guest::{
    FaultStop, Guest, GuestError, IncomingGuest, LateDelivery, LateInput, PreparedPostcopy, SectionId,
    StateSection,
};
use migrated_pages::PageSet;
use migrated_wire::{CommitOutcome, LateInput as OnWire, Section};

use super::Shared;
use super::faults::{self, Following};

/// What the session's thread holds while it carries out actions.
pub(super) struct Hands<I: IncomingGuest, R> {
    guest: Option<I>,
    running: Option<R>,
    pub(super) asker: Option<Sender<Option<CommitOutcome>>>,
    pub(super) committed_at: Option<Instant>,
    prepared: Option<PreparedPostcopy>,
    /// Takes what came late for the guest to its devices, once it runs.
    late: Option<Box<dyn LateDelivery>>,
    /// Ends the thread that reads faults.
    faults: Option<FaultStop>,
}

impl<I: IncomingGuest, R: FnOnce(I::Running)> Hands<I, R> {
    pub(super) const fn new(guest: I, running: R) -> Self {
        Self {
            guest: Some(guest),
            running: Some(running),
            asker: None,
            committed_at: None,
            prepared: None,
            late: None,
            faults: None,
        }
    }

    fn guest(&mut self) -> Result<&mut I, String> {
        self.guest.as_mut().ok_or_else(|| "the incoming guest is gone".to_owned())
    }

    /// The source says that pages may follow the guest: does what can be done for that before any page moves.
    pub(super) fn prepare(&mut self, shared: &Shared) {
        match self.prepared(shared) {
            Ok(prepared) => self.prepared = Some(prepared),
            // Whether it is needed is not known yet. If it is, it is tried again, and the error is told.
            Err(error) => tracing::warn!("post-copy could not be prepared: {error}"),
        }
    }

    fn prepared(&mut self, shared: &Shared) -> Result<PreparedPostcopy, String> {
        if let Some(prepared) = self.prepared.take() {
            return Ok(prepared);
        }
        let prepared = self.guest()?.prepare_postcopy().map_err(|error| error.to_string())?;
        // The first one's is as good.
        let _ = shared.staging.set(prepared.staging().clone());
        Ok(prepared)
    }

    /// Makes these pages missing, besides those that are already.
    pub(super) fn arm(&mut self, shared: &Arc<Shared>, stale: &PageSet) -> DestinationEvent {
        match self.try_arm(shared, stale) {
            Ok(()) => DestinationEvent::Armed,
            Err(error) => DestinationEvent::GuestFailed(error),
        }
    }

    fn try_arm(&mut self, shared: &Arc<Shared>, stale: &PageSet) -> Result<(), String> {
        let text = |error: GuestError| error.to_string();
        if let Some(following) = shared.following.get() {
            return following.ram.arm_more(stale).map_err(|error| error.to_string());
        }
        let prepared = self.prepared(shared)?;
        let ram = self.guest()?.arm_postcopy(prepared, stale).map_err(text)?;
        let reader = ram.faults().map_err(|error| error.to_string())?;
        // Armed once: this thread alone does it.
        let _ = shared.following.set(Following { ram });
        self.faults = Some(faults::start(shared, reader));
        Ok(())
    }

    /// Has pages that have come made ready for the guest.
    pub(super) fn warm_up(&mut self, pages: PageSet) {
        if let Some(guest) = &mut self.guest {
            guest.warm_up(pages);
        }
    }

    pub(super) fn restore(&mut self, shared: &Shared, sections: Vec<Section>) -> DestinationEvent {
        let began = Instant::now();
        let sections = sections.into_iter().map(from_wire).collect();
        let following = shared.following.get().map(|following| following.ram.clone());
        let restored = self.guest().and_then(|guest| match following {
            Some(ram) => shared.restoring.run(ram, || guest.restore(sections)),
            None => guest.restore(sections).map_err(|error| error.to_string()),
        });
        match restored {
            Ok(()) => DestinationEvent::Restored(began.elapsed()),
            Err(error) => DestinationEvent::GuestFailed(error),
        }
    }

    pub(super) fn start(&mut self) -> DestinationEvent {
        let Some(guest) = self.guest.take() else {
            return DestinationEvent::GuestFailed("the incoming guest is gone".into());
        };
        match guest.start() {
            Ok((guest, first_run)) => {
                self.late = Some(guest.late_delivery());
                if let Some(running) = self.running.take() {
                    running(guest);
                }
                let since = self.committed_at.unwrap_or(first_run.at);
                DestinationEvent::Started(first_run.at.saturating_duration_since(since))
            }
            Err(error) => DestinationEvent::GuestFailed(error.to_string()),
        }
    }

    /// Hands to the running guest's devices what came late for them.
    pub(super) fn deliver(&mut self, inputs: Vec<OnWire>) {
        if let Some(late) = &mut self.late {
            late.deliver(inputs.into_iter().map(late_from_wire).collect());
        }
    }

    /// Destroys the guest, which has not run.
    pub(super) fn destroy(&mut self, shared: &Shared) {
        if let Some(following) = shared.following.get()
            && let Err(error) = following.ram.abandon()
        {
            tracing::warn!("RAM of a guest that never runs stays watched: {error}");
        }
        self.guest = None;
        self.stop_faults();
    }

    /// Lets go of the running guest's RAM once nothing of it is missing.
    pub(super) fn let_go_when_complete(&mut self, shared: &Shared) {
        let Some(following) = shared.following.get() else { return };
        if self.guest.is_some() || self.faults.is_none() || following.ram.missing().count() > 0 {
            return;
        }
        match following.ram.finish() {
            Ok(()) => self.stop_faults(),
            // The guest goes on as before, with a reader for pages that are not missing.
            Err(error) => {
                tracing::warn!("RAM that has all its pages stays watched: {error}");
                self.faults = None;
            }
        }
    }

    fn stop_faults(&mut self) {
        if let Some(faults) = self.faults.take() {
            faults.stop();
        }
    }
}

fn from_wire(section: Section) -> StateSection {
    let Section { name, data } = section;
    let id = SectionId { kind: name.kind, instance: name.instance, version: name.version };
    StateSection { id, data: data.into() }
}

fn late_from_wire(input: OnWire) -> LateInput {
    let OnWire { device, data } = input;
    LateInput { device, data: data.into() }
}
