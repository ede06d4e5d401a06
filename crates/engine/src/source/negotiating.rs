use std::time::Duration;

use migrated_wire::{ToDestination, ToSource};

use super::common::Common;
use super::retry::Retry;
use super::{Failure, FailureCode, SourceEvent, State, preflight::Preflight};
use crate::record::MigrationState;

/// Channels are being opened. Nothing has moved, so a link that is lost this early leaves nothing to go on with.
pub(super) struct Negotiating {
    again: Option<Again>,
}

/// It is not the first attempt.
struct Again {
    retry: Retry,
    window: Window,
}

/// Until when channels are opened again.
#[derive(Clone, Copy)]
pub(super) struct Window {
    until: Duration,
    /// What it is called if that is in vain.
    code: FailureCode,
}

impl Negotiating {
    pub(super) const fn begin() -> State {
        State::Negotiating(Self { again: None })
    }

    /// The link was lost before the destination said that the guest fits; `code` is what that is called if it
    /// does not come back. `before` is the window of a loss before this one.
    pub(super) fn after_loss(
        common: &mut Common,
        before: Option<Window>,
        code: FailureCode,
        reason: &str,
    ) -> State {
        match Window::open(common, before, code, reason) {
            Ok(window) => {
                common.enter(MigrationState::Negotiating);
                State::Negotiating(Self { again: Some(Again { retry: Retry::soon(common), window }) })
            }
            Err(failure) => common.fail_running(failure),
        }
    }

    pub(super) fn deadline(&self) -> Option<Duration> {
        let Again { retry, window } = self.again.as_ref()?;
        Some(retry.deadline().map_or(window.until, |at| at.min(window.until)))
    }

    pub(super) fn on(mut self, common: &mut Common, event: SourceEvent) -> State {
        match (event, &mut self.again) {
            (SourceEvent::Connected { .. }, again) => {
                common.link.relinked(common.now);
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
                    reconnect_window_ms: config.limits.reconnect_window.as_millis() as u64,
                };
                common.send(message);
                return Preflight::begin(common.now, again.as_ref().map(|again| again.window));
            }
            (SourceEvent::ConnectFailed(reason), None) => {
                match Window::open(common, None, FailureCode::PeerUnreachable, &reason) {
                    Ok(window) => self.again = Some(Again { retry: Retry::soon(common), window }),
                    Err(failure) => return common.fail_running(failure),
                }
            }
            (SourceEvent::ConnectRefused(reason), None) => {
                let failure = common.failure(FailureCode::PeerUnreachable, reason);
                return common.fail_running(failure);
            }
            (SourceEvent::ConnectFailed(reason) | SourceEvent::ConnectRefused(reason), Some(again)) => {
                again.retry.failed(common, &reason);
            }
            (SourceEvent::Tick, Some(again)) if common.now >= again.window.until => {
                let window = common.config.limits.reconnect_window;
                let text = format!("no link to the destination within {window:?}");
                let failure = common.failure(again.window.code, text);
                return common.fail_running(failure);
            }
            (SourceEvent::Message(ToSource::PreflightRefused { reasons }), _) => {
                let failure = common.failure(FailureCode::PreflightRefused, reasons.join("; "));
                return common.fail_running(failure);
            }
            (
                event @ (SourceEvent::Cancel
                | SourceEvent::GuestFailed(_)
                | SourceEvent::Message(ToSource::Failed { .. })),
                _,
            ) => {
                if let Some(failure) = common.common_failure(&event) {
                    return common.fail_running(failure);
                }
            }
            (event, Some(again)) => again.retry.on(common, &event),
            (_, None) => {}
        }
        State::Negotiating(self)
    }
}

impl Window {
    /// The window of this loss, which is that of the one before if pages never flowed since. Without one the loss is
    /// a failure.
    fn open(
        common: &mut Common,
        before: Option<Self>,
        code: FailureCode,
        reason: &str,
    ) -> Result<Self, Failure> {
        let window = common.config.limits.reconnect_window;
        if window.is_zero() {
            return Err(common.failure(code, reason));
        }
        common.progress(reason);
        common.decide("reconnect", format!("{reason}; trying for {window:?}"));
        Ok(before.unwrap_or(Self { until: common.now + window, code }))
    }
}
