use super::common::Common;
use super::{Failure, SourceEvent, State};

/// The migration failed while the guest was paused: it must run again before anything else counts.
pub(super) struct Resuming {
    pub(super) failure: Failure,
}

impl Resuming {
    pub(super) fn on(mut self, common: &mut Common, event: SourceEvent) -> State {
        match event {
            SourceEvent::Resumed => common.end(Err(self.failure)),
            SourceEvent::GuestFailed(reason) => {
                self.failure.message =
                    format!("{}; and the guest could not be resumed: {reason}", self.failure.message);
                common.end(Err(self.failure))
            }
            _ => State::Resuming(self),
        }
    }
}
