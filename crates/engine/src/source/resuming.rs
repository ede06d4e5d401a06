use super::common::Common;
use super::interrupted::Interrupted;
use super::precopy_paused::PrecopyPaused;
use super::{Failure, SourceAction, SourceEvent, State};

/// The attempt to switch came to nothing while the guest was paused: it must run again before anything else counts.
pub(super) struct Resuming {
    failure: Failure,
    then: Then,
}

/// What follows once it runs.
enum Then {
    /// The migration has failed.
    End,
    /// The link is opened again, and the migration goes on.
    Reconnect(Interrupted),
}

impl Resuming {
    /// The guest runs again, and the migration has failed.
    pub(super) fn to_end(common: &mut Common, failure: Failure) -> State {
        common.act(SourceAction::Resume);
        State::Resuming(Self { failure, then: Then::End })
    }

    /// The link was lost: the guest runs again until there is another one. `failure` is what that is called if there
    /// will be none.
    pub(super) fn to_reconnect(common: &mut Common, failure: Failure, interrupted: Interrupted) -> State {
        common.act(SourceAction::Resume);
        State::Resuming(Self { failure, then: Then::Reconnect(interrupted) })
    }

    pub(super) fn on(mut self, common: &mut Common, event: SourceEvent) -> State {
        match (event, self.then) {
            (SourceEvent::Resumed, Then::End) => {
                common.stop_tracking();
                common.end(Err(self.failure))
            }
            (SourceEvent::Resumed, Then::Reconnect(interrupted)) => {
                common.decide("resumed", "the guest runs on here until the link is back");
                let state =
                    PrecopyPaused::begin(common, interrupted, self.failure.code, &self.failure.message);
                common.keep_throttle_for_later();
                state
            }
            (SourceEvent::GuestFailed(reason), _) => {
                self.failure.message =
                    format!("{}; and the guest could not be resumed: {reason}", self.failure.message);
                common.end(Err(self.failure))
            }
            (_, then) => State::Resuming(Self { then, ..self }),
        }
    }
}
