//! A link that is lost in pre-copy costs the pages that were on their way, and no more.
//!
//! The guest runs on at the source, and dirty tracking stays on. What decides which pages are sent again is the
//! round that was interrupted. For each page of it, its dirty bit was cleared before the page was read (law 1), so
//! whatever the guest writes from then on is in KVM's log and in the next harvest. A page of the round is thus
//! done if and only if the destination placed *this round's* version of it: an older version, placed in an
//! earlier round, looks as good in the cumulative map and is stale. The destination therefore keeps the set of
//! the pages that it placed in the current round besides the cumulative map, and tells that set on the new link,
//! once nothing of the old link is being placed any more: a frame that lands later could overwrite a newer
//! version that came on the new link.
//!
//! What the round has left (its pages less that set, handed out or not) becomes a round of its own, whose pages
//! are read anew. A round whose acknowledgement was lost is the same with nothing left. The harvest waits for
//! the end of that round, as always: bits that were harvested and whose pages are not known to be there are in
//! exactly one place, the round's set of pages, until the destination has them (law 2). Rounds before the
//! interrupted one need no question: each was acknowledged by counts on all channels before the next began.
//!
//! A link that is lost while the destination is told what it will lack costs a harvest: the guest went on writing,
//! so more is missing by then. All of it is named again, and what the destination has dropped already it only
//! counts.
//!
//! A link that is lost while the guest is paused for the switch leads back to one of these two, as nothing is
//! committed: the guest runs again, tracked without a gap, and the last harvest's pages are those of a round like any
//! other.

use std::time::Duration;

use migrated_wire::{ToSource, bounded_text};

use super::common::Common;
use super::interrupted::Interrupted;
use super::precopy_recovering::PrecopyRecovering;
use super::retry::Retry;
use super::{FailureCode, SourceEvent, State};
use crate::record::{self, MigrationState};

/// The link was lost while the guest runs here, and channels are opened again until the window is over.
pub(super) struct PrecopyPaused {
    interrupted: Interrupted,
    retry: Retry,
    until: Duration,
}

impl PrecopyPaused {
    /// The link is lost; `code` is what that is called if there is no window.
    pub(super) fn begin(
        common: &mut Common,
        interrupted: Interrupted,
        code: FailureCode,
        reason: &str,
    ) -> State {
        let window = common.config.limits.reconnect_window;
        if window.is_zero() {
            let failure = common.failure(code, reason);
            return common.fail_running(failure);
        }
        common.suspend_throttle();
        interrupted.note(common);
        let lost_ms = common.now_ms();
        record::note_loss(&mut common.record.reconnects, lost_ms, bounded_text(reason));
        let phase = interrupted.phase();
        common.decide("link_lost", format!("in {phase}: {reason}; reconnecting for {window:?}"));
        let message = format!(
            "the link to {} was lost: {reason}. The guest runs on here; the migration goes on by itself when the \
             link is back within {window:?}",
            common.config.peer
        );
        common.trouble(FailureCode::LinkLost, message, phase);
        Self::again(common, interrupted, common.now + window)
    }

    /// The new link was lost as well before pages flowed on it.
    pub(super) fn again(common: &mut Common, interrupted: Interrupted, until: Duration) -> State {
        common.enter(MigrationState::PrecopyPaused);
        State::PrecopyPaused(Self { interrupted, retry: Retry::soon(common), until })
    }

    pub(super) fn deadline(&self) -> Duration {
        self.retry.deadline().map_or(self.until, |at| at.min(self.until))
    }

    pub(super) fn remaining(&self) -> u64 {
        self.interrupted.remaining()
    }

    pub(super) fn on(mut self, common: &mut Common, event: SourceEvent) -> State {
        match &event {
            SourceEvent::Connected { .. } => {
                return PrecopyRecovering::begin(common, self.interrupted, self.until);
            }
            SourceEvent::ConnectFailed(reason) | SourceEvent::ConnectRefused(reason) => {
                self.retry.failed(common, reason);
            }
            SourceEvent::Tick if common.now >= self.until => {
                let window = common.config.limits.reconnect_window;
                let text = format!("the link was lost and did not come back within {window:?}");
                let failure = common.failure(FailureCode::LinkLost, text);
                return common.fail_running(failure);
            }
            SourceEvent::Cancel
            | SourceEvent::GuestFailed(_)
            | SourceEvent::Message(ToSource::Failed { .. }) => {
                if let Some(failure) = common.common_failure(&event) {
                    return common.fail_running(failure);
                }
            }
            event => self.retry.on(common, event),
        }
        State::PrecopyPaused(self)
    }
}
