use std::time::Duration;

use migrated_pages::PageSet;
use migrated_wire::{PostcopyUse, ToSource, VerifyWhen};

use super::common::Common;
use super::negotiating::{Negotiating, Window};
use super::postcopy_setup::PostcopySetup;
use super::precopy::Precopy;
use super::{FailureCode, SourceAction, SourceEvent, State};
use crate::limits::PREFLIGHT_TIMEOUT;
use crate::record::{MigrationState, Mode, Predicted};
use crate::{PlanInputs, plan};

/// The destination compares the guest with what it has; nothing has moved.
pub(super) struct Preflight {
    deadline: Duration,
    /// Once accepted: what handling the state took the destination in its rehearsal.
    rehearsal: Option<Duration>,
    /// When the link was lost before: until when it may be opened again.
    window: Option<Window>,
}

impl Preflight {
    pub(super) fn begin(now: Duration, window: Option<Window>) -> State {
        State::Preflight(Self { deadline: now + PREFLIGHT_TIMEOUT, rehearsal: None, window })
    }

    pub(super) const fn deadline(&self) -> Duration {
        self.deadline
    }

    pub(super) fn on(self, common: &mut Common, event: SourceEvent) -> State {
        match (event, self.rehearsal) {
            (SourceEvent::Message(ToSource::PreflightOk { rehearsal_us, no_postcopy }), None) => {
                self.accepted(common, Duration::from_micros(rehearsal_us), no_postcopy)
            }
            // From here on every write is seen, so all of RAM may be read.
            (SourceEvent::TrackingStarted, Some(rehearsal)) => {
                common.enter(MigrationState::Precopy);
                common.record.setup_ms = common.now.as_secs_f64() * 1e3;
                let everything = PageSet::full(&common.config.identity.layout);
                State::Precopy(Box::new(Precopy::begin(common, everything, rehearsal)))
            }
            (SourceEvent::Message(ToSource::PreflightRefused { reasons }), _) => {
                let failure = common.failure(FailureCode::PreflightRefused, reasons.join("; "));
                common.fail_running(failure)
            }
            (SourceEvent::Tick, _) if common.now >= self.deadline => {
                let text = format!("preflight took longer than {PREFLIGHT_TIMEOUT:?}");
                let failure = common.failure(FailureCode::PhaseTimeout, text);
                common.fail_running(failure)
            }
            (SourceEvent::LinkLost(reason), None) => {
                Negotiating::after_loss(common, self.window, FailureCode::LinkLost, &reason)
            }
            (SourceEvent::Tick, None) => match common.watch() {
                Some(silence) => {
                    Negotiating::after_loss(common, self.window, FailureCode::PeerDead, &silence)
                }
                None => State::Preflight(self),
            },
            (event, _) => match common.common_failure(&event) {
                Some(failure) => common.fail_running(failure),
                None => State::Preflight(self),
            },
        }
    }

    fn accepted(self, common: &mut Common, rehearsal: Duration, no_postcopy: Option<String>) -> State {
        let wanted = common.postcopy_use();
        common.can_switch = wanted != PostcopyUse::Never
            && no_postcopy.is_none()
            && common.config.verify != VerifyWhen::Before;
        if let (PostcopyUse::Required, Some(why)) = (wanted, no_postcopy.clone()) {
            let failure = common.failure(FailureCode::PreflightRefused, why);
            return common.fail_running(failure);
        }
        note_prediction(common, rehearsal, no_postcopy.clone());
        if common.config.mode == Mode::Postcopy {
            common.decide("switch_to_postcopy", "post-copy was asked for: all pages follow the guest");
            common.record.setup_ms = common.now.as_secs_f64() * 1e3;
            let everything = PageSet::full(&common.config.identity.layout);
            // Everything is missing, so nothing that the guest writes until it stops need be known.
            return PostcopySetup::begin(common, 1, everything);
        }
        let accepted = "the destination accepted the guest";
        let reason = match (wanted, no_postcopy) {
            (PostcopyUse::Allowed, Some(why)) => format!("{accepted}; post-copy is not possible: {why}"),
            (PostcopyUse::Never, _) if common.config.mode == Mode::Auto => {
                format!("{accepted}; post-copy is not allowed, by its limits or because of `verify: before`")
            }
            _ => accepted.to_owned(),
        };
        common.decide("precopy", reason);
        common.tracking = true;
        common.act(SourceAction::StartTracking);
        State::Preflight(Self { rehearsal: Some(rehearsal), ..self })
    }
}

/// Predicts what is to come from what is known now, unless whoever asked for the migration did, who may know
/// more.
fn note_prediction(common: &mut Common, rehearsal: Duration, no_postcopy: Option<String>) {
    if common.record.predicted.is_some() {
        return;
    }
    let inputs = PlanInputs {
        ram_pages: common.record.ram.pages,
        rtt: common.link.rtt.unwrap_or_default(),
        setup: common.now,
        state: rehearsal,
        no_postcopy,
        limits: common.config.limits,
        ..PlanInputs::default()
    };
    common.record.predicted = Some(Predicted { start: plan(&inputs).prediction, decision: None });
}
