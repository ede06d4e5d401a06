use std::time::Instant;

use bytes::Bytes;
use migrated_engine::source::{SourceAction, SourceEvent};
use migrated_guest::{Guest, GuestError, LateInput, PausedGuest, Refused, StateSection};
use migrated_pages::PageSet;
use migrated_wire::{LateInput as OnWire, Section, SectionName};

use super::throttle;
use crate::priority;

/// The guest in the one form it has now.
pub(super) enum Held<G: Guest> {
    Running(G),
    Paused(G::Paused),
    /// Retired: nothing is left that could run.
    Gone,
}

/// Carries out the engine's actions on the guest.
pub(super) struct Holder<G: Guest> {
    held: Held<G>,
}

impl<G: Guest> Holder<G> {
    pub(super) const fn new(guest: G) -> Self {
        Self { held: Held::Running(guest) }
    }

    pub(super) fn into_held(self) -> Held<G> {
        self.held
    }

    /// Does one action and gives the event that answers it.
    pub(super) fn act(&mut self, action: &SourceAction) -> Option<SourceEvent> {
        let failed = |error: GuestError| Some(SourceEvent::GuestFailed(error.to_string()));
        let held = std::mem::replace(&mut self.held, Held::Gone);
        let (held, answer) = match (action, held) {
            (SourceAction::StartTracking, Held::Running(mut guest)) => {
                let answer = match guest.start_tracking() {
                    Ok(()) => Some(SourceEvent::TrackingStarted),
                    Err(error) => failed(error),
                };
                (Held::Running(guest), answer)
            }
            (SourceAction::StopTracking, Held::Running(mut guest)) => {
                if let Err(error) = guest.stop_tracking() {
                    tracing::warn!("dirty tracking stays on and slows the guest: {error}");
                }
                (Held::Running(guest), None)
            }
            (SourceAction::Throttle(order), Held::Running(mut guest)) => {
                let answer = throttle::set(&mut guest, *order);
                (Held::Running(guest), answer)
            }
            (SourceAction::ReadThrottle, Held::Running(guest)) => {
                let answer = throttle::read(&guest);
                (Held::Running(guest), answer)
            }
            (SourceAction::Harvest, Held::Running(mut guest)) => {
                let empty = PageSet::empty(guest.ram().layout());
                let answer = harvest(empty, |dirty| guest.harvest(dirty));
                (Held::Running(guest), Some(answer))
            }
            (SourceAction::FinalHarvest, Held::Paused(mut guest)) => {
                let empty = PageSet::empty(guest.ram().layout());
                let answer = harvest(empty, |dirty| guest.harvest(dirty));
                (Held::Paused(guest), Some(answer))
            }
            (SourceAction::Pause, Held::Running(guest)) => match guest.pause() {
                Ok(paused) => (Held::Paused(paused), Some(SourceEvent::Paused)),
                Err(Refused { guest, error }) => (Held::Running(guest), failed(error)),
            },
            (SourceAction::SaveState, Held::Paused(mut guest)) => {
                let answer = match guest.save() {
                    Ok(sections) => {
                        Some(SourceEvent::StateSaved(sections.into_iter().map(to_wire).collect()))
                    }
                    Err(error) => failed(error),
                };
                (Held::Paused(guest), answer)
            }
            (SourceAction::Resume, Held::Paused(guest)) => match guest.resume() {
                Ok(guest) => (Held::Running(guest), Some(SourceEvent::Resumed)),
                Err(Refused { guest, error }) => (Held::Paused(guest), failed(error)),
            },
            (SourceAction::TakeLateInput { limit_bytes }, Held::Paused(mut guest)) => {
                let found = guest.late_input(*limit_bytes).into_iter().map(late_to_wire).collect();
                (Held::Paused(guest), Some(SourceEvent::LateInput(found)))
            }
            (SourceAction::Retire, Held::Paused(guest)) => {
                // Freeing much takes long, and other guests' vCPUs need the cores more.
                priority::lower();
                guest.retire();
                (Held::Gone, None)
            }
            (action, held) => {
                let what = format!("the engine wanted {action:?} of a guest in another form");
                (held, Some(SourceEvent::GuestFailed(what)))
            }
        };
        self.held = held;
        answer
    }
}

fn harvest(mut dirty: PageSet, by: impl FnOnce(&mut PageSet) -> Result<u64, GuestError>) -> SourceEvent {
    let began = Instant::now();
    match by(&mut dirty) {
        Ok(_) => SourceEvent::Harvested { dirty, took: began.elapsed() },
        Err(error) => SourceEvent::GuestFailed(error.to_string()),
    }
}

fn to_wire(section: StateSection) -> Section {
    let StateSection { id, data } = section;
    let name = SectionName { kind: id.kind, instance: id.instance, version: id.version };
    Section { name, data: Bytes::from(data) }
}

fn late_to_wire(input: LateInput) -> OnWire {
    let LateInput { device, data } = input;
    OnWire { device, data: Bytes::from(data) }
}
