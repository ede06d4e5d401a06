use migrated_wire::ToDestination;

use super::common::Common;
use super::{FailureCode, SourceEvent, State, preflight::Preflight};
use crate::record::MigrationState;

/// Channels are being opened.
pub(super) struct Negotiating;

impl Negotiating {
    pub(super) fn on(self, common: &mut Common, event: SourceEvent) -> State {
        match event {
            SourceEvent::Connected => {
                common.link.heard(common.now);
                common.enter(MigrationState::Preflight);
                common.progress("all channels open");
                let config = &common.config;
                let message = ToDestination::Preflight {
                    identity: config.identity.clone(),
                    epoch: config.epoch,
                    channels: config.channels,
                    verify: config.verify,
                    postcopy: common.postcopy_use(),
                    guest_clock: config.guest_clock,
                };
                common.send(message);
                Preflight::begin(common.now)
            }
            SourceEvent::ConnectFailed(reason) => {
                let failure = common.failure(FailureCode::PeerUnreachable, reason);
                common.fail_running(failure)
            }
            event => match common.common_failure(&event) {
                Some(failure) => common.fail_running(failure),
                None => State::Negotiating(self),
            },
        }
    }
}
