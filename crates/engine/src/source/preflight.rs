use std::time::Duration;

use migrated_pages::PageSet;
use migrated_wire::ToSource;

use super::common::Common;
use super::precopy::Precopy;
use super::{FailureCode, SourceAction, SourceEvent, State};
use crate::limits::PREFLIGHT_TIMEOUT;
use crate::record::MigrationState;

/// The destination compares the guest with what it has; nothing has moved.
pub(super) struct Preflight {
    deadline: Duration,
    /// Once accepted: what handling the state took the destination in its rehearsal.
    rehearsal: Option<Duration>,
}

impl Preflight {
    pub(super) fn begin(now: Duration) -> State {
        State::Preflight(Self { deadline: now + PREFLIGHT_TIMEOUT, rehearsal: None })
    }

    pub(super) const fn deadline(&self) -> Duration {
        self.deadline
    }

    pub(super) fn on(self, common: &mut Common, event: SourceEvent) -> State {
        match (event, self.rehearsal) {
            (SourceEvent::Message(ToSource::PreflightOk { rehearsal_us }), None) => {
                common.decide("precopy", "the destination accepted the guest");
                common.tracking = true;
                common.act(SourceAction::StartTracking);
                State::Preflight(Self { rehearsal: Some(Duration::from_micros(rehearsal_us)), ..self })
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
            (event, _) => match common.common_failure(&event) {
                Some(failure) => common.fail_running(failure),
                None => State::Preflight(self),
            },
        }
    }
}
