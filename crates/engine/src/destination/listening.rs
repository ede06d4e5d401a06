use std::time::Duration;

use migrated_wire::{GuestIdentity, PostcopyUse, ToDestination, ToSource, VerifyWhen, bounded_text};

use super::common::Common;
use super::receiving::Receiving;
use super::{DestinationEvent, FailureCode, State};
use crate::limits::MAX_RECONNECT_WINDOW;
use crate::record::MigrationState;

/// Most page channels a source may open.
const MAX_CHANNELS: u16 = 64;

/// Waiting for the source and its preflight message.
pub(super) struct Listening {
    deadline: Duration,
}

impl Listening {
    pub(super) fn begin(now: Duration, patience: Duration) -> Self {
        Self { deadline: now + patience }
    }

    pub(super) const fn deadline(&self) -> Duration {
        self.deadline
    }

    pub(super) fn on(self, common: &mut Common, event: DestinationEvent) -> State {
        match event {
            DestinationEvent::Connected { .. } => {
                // The source's window begins when it loses this link, or has begun already.
                Self::begin(common.now, common.config.patience).connected(common)
            }
            // Channels without an offer gain no time.
            DestinationEvent::Reconnected { .. } => self.connected(common),
            // Nothing has moved: it may connect again.
            DestinationEvent::LinkLost(_) | DestinationEvent::PagesLost(_) => {
                common.enter(MigrationState::Negotiating);
                State::Listening(self)
            }
            DestinationEvent::Message(message) => match Offer::of(message) {
                Ok(offer) => judge(common, offer),
                Err(other) => match common.common_failure(&DestinationEvent::Message(other)) {
                    Some(failure) => common.fail(failure),
                    None => State::Listening(self),
                },
            },
            DestinationEvent::Tick if common.now >= self.deadline => {
                let patience = common.config.patience;
                let text = format!("the source did not come within {patience:?}");
                let failure = common.failure(FailureCode::PhaseTimeout, text);
                common.fail(failure)
            }
            DestinationEvent::Tick => State::Listening(self),
            event => match common.common_failure(&event) {
                Some(failure) => common.fail(failure),
                None => State::Listening(self),
            },
        }
    }

    fn connected(self, common: &mut Common) -> State {
        common.enter(MigrationState::Preflight);
        common.link.heard(common.now);
        State::Listening(self)
    }
}

/// What the source says in preflight.
pub(super) struct Offer {
    identity: GuestIdentity,
    epoch: u64,
    channels: u16,
    verify: VerifyWhen,
    postcopy: PostcopyUse,
    guest_clock: Option<u64>,
    reconnect_window: Duration,
}

impl Offer {
    /// The offer in a message, or the message if it is another.
    pub(super) fn of(message: ToDestination) -> Result<Self, ToDestination> {
        match message {
            ToDestination::Preflight {
                identity,
                epoch,
                channels,
                verify,
                postcopy,
                guest_clock,
                reconnect_window_ms,
            } => {
                let reconnect_window = Duration::from_millis(reconnect_window_ms).min(MAX_RECONNECT_WINDOW);
                Ok(Self { identity, epoch, channels, verify, postcopy, guest_clock, reconnect_window })
            }
            other => Err(other),
        }
    }
}

/// Accepts the guest that is offered, or refuses it with all reasons.
pub(super) fn judge(common: &mut Common, offer: Offer) -> State {
    let Offer { identity, epoch, channels, verify, postcopy, guest_clock, reconnect_window } = offer;
    let mut reasons = differences(common, &identity, epoch, channels);
    let no_postcopy = common.config.postcopy.as_ref().err().map(|why| bounded_text(why));
    if postcopy == PostcopyUse::Required {
        reasons.extend(no_postcopy.clone());
        reasons.extend(cant_compare_before(verify));
    }
    if !reasons.is_empty() {
        let text = reasons.join("; ");
        common.send(ToSource::PreflightRefused { reasons });
        let failure = common.failure(FailureCode::PreflightRefused, text);
        return common.fail(failure);
    }
    common.verify = verify;
    common.guest_clock = guest_clock;
    common.reconnect_window = reconnect_window;
    common.may_follow =
        postcopy != PostcopyUse::Never && no_postcopy.is_none() && verify != VerifyWhen::Before;
    common.record.channels = channels;
    common.record.error = None;
    common.enter(MigrationState::Receiving);
    let rehearsal_us = common.config.rehearsal.as_micros() as u64;
    common.send(ToSource::PreflightOk { rehearsal_us, no_postcopy });
    State::Receiving(Box::new(Receiving::begin(common, channels)))
}

fn cant_compare_before(verify: VerifyWhen) -> Option<String> {
    (verify == VerifyWhen::Before).then(|| {
        "memory can't be compared before the guest runs when its pages follow it; use `--verify after`"
            .to_owned()
    })
}

/// Everything in which the guest that comes differs from the one that was prepared.
fn differences(common: &Common, theirs: &GuestIdentity, epoch: u64, channels: u16) -> Vec<String> {
    let ours = &common.config.identity;
    let mut reasons = Vec::new();
    if theirs.layout != ours.layout {
        reasons.push("the RAM layout is not the prepared one".to_owned());
    }
    for section in theirs.sections.iter().filter(|s| !ours.sections.contains(s)) {
        reasons.push(bounded_text(&format!(
            "state section {}/{} v{} is unknown here",
            section.kind, section.instance, section.version
        )));
    }
    for section in ours.sections.iter().filter(|s| !theirs.sections.contains(s)) {
        reasons.push(format!(
            "state section {}/{} v{} will be missing",
            section.kind, section.instance, section.version
        ));
    }
    if theirs.cpu != ours.cpu {
        reasons.push("the guest's CPU is not the prepared one".to_owned());
    }
    if epoch != common.config.epoch {
        reasons.push(format!("attempt {epoch} was announced, {} was prepared", common.config.epoch));
    }
    if channels == 0 || channels > MAX_CHANNELS {
        reasons.push(format!("{channels} page channels; 1 to {MAX_CHANNELS} are possible"));
    }
    reasons.truncate(32);
    reasons
}
