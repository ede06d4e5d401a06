use std::time::Duration;

use migrated_pages::PageSet;
use migrated_wire::{PostcopyUse, ToSource, VerifyWhen};

use super::common::Common;
use super::negotiating::{Negotiating, Window};
use super::postcopy_setup::PostcopySetup;
use super::precopy::Precopy;
use super::{FailureCode, SourceAction, SourceEvent, State};
use crate::limits::PREFLIGHT_TIMEOUT;
use crate::record::{MigrationState, Mode, OnTimeout, Predicted};
use crate::{PlanInputs, plan};

/// The destination compares the guest with what it has; nothing has moved.
pub(super) struct Preflight {
    deadline: Duration,
    /// Once accepted: what handling the state took the destination in its rehearsal.
    rehearsal: Option<Duration>,
    /// When the link was lost before: until when it may be opened again.
    window: Option<Window>,
    /// The guest is to switch at once, but the link is not fit for it yet: until when to wait.
    unfit_until: Option<Duration>,
}

/// How long pure post-copy waits for a link to get better: some times as long as a retransmission that backs off.
const UNFIT_PATIENCE: Duration = Duration::from_secs(5);
/// How often it looks.
const UNFIT_LOOK: Duration = Duration::from_millis(500);

impl Preflight {
    pub(super) fn begin(now: Duration, window: Option<Window>) -> State {
        let deadline = now + PREFLIGHT_TIMEOUT;
        State::Preflight(Self { deadline, rehearsal: None, window, unfit_until: None })
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
            (SourceEvent::Tick, Some(_)) if self.unfit_until.is_some() && common.now >= self.deadline => {
                match common.watch() {
                    Some(silence) => {
                        Negotiating::after_loss(common, self.window, FailureCode::PeerDead, &silence)
                    }
                    None => self.switch_when_fit(common),
                }
            }
            (SourceEvent::Tick, _) if common.now >= self.deadline => {
                let text = format!("preflight took longer than {PREFLIGHT_TIMEOUT:?}");
                let failure = common.failure(FailureCode::PhaseTimeout, text);
                common.fail_running(failure)
            }
            (SourceEvent::LinkLost(reason), _) if !common.tracking => {
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

    fn accepted(mut self, common: &mut Common, rehearsal: Duration, no_postcopy: Option<String>) -> State {
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
            self.rehearsal = Some(rehearsal);
            return self.switch_when_fit(common);
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
        Self { rehearsal: Some(rehearsal), ..self }.track(common)
    }

    fn track(self, common: &mut Common) -> State {
        common.tracking = true;
        common.act(SourceAction::StartTracking);
        State::Preflight(Self { deadline: common.now + PREFLIGHT_TIMEOUT, unfit_until: None, ..self })
    }

    /// Post-copy was asked for. Over a link that is not fit for it the guest doesn't switch: it waits for a while,
    /// then what was declared for a pre-copy that doesn't converge is done.
    fn switch_when_fit(mut self, common: &mut Common) -> State {
        let Some(objection) = common.objection() else {
            common.decide("switch_to_postcopy", "post-copy was asked for: all pages follow the guest");
            common.record.setup_ms = common.now.as_secs_f64() * 1e3;
            let everything = PageSet::full(&common.config.identity.layout);
            // Everything is missing, so nothing that the guest writes until it stops need be known.
            return PostcopySetup::begin(common, 1, everything);
        };
        let until = *self.unfit_until.get_or_insert_with(|| {
            common.decide("switch_delayed", &*objection);
            common.now + UNFIT_PATIENCE
        });
        if common.now < until {
            common.link.look_closely(common.now);
            self.deadline = until.min(common.now + UNFIT_LOOK);
            return State::Preflight(self);
        }
        common.decide("switch_refused", format!("{objection}, and was so for {UNFIT_PATIENCE:?}"));
        match common.config.limits.on_timeout {
            OnTimeout::Cancel => common.fail_unfit(&objection),
            OnTimeout::Stop => {
                common.can_switch = false;
                self.track(common)
            }
        }
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
