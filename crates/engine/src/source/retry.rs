use std::time::Duration;

use super::common::Common;
use super::{SourceAction, SourceEvent};

const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_SLOWEST: Duration = Duration::from_secs(5);

/// When channels are opened again that could not be opened or were lost: at once, then ever less often.
pub(super) struct Retry {
    /// When to try again; `None` while an attempt is under way.
    at: Option<Duration>,
    backoff: Duration,
}

impl Retry {
    /// Gives up the channels of a link that was lost, and opens new ones.
    pub(super) fn now(common: &mut Common) -> Self {
        // Page threads look up and find that their link has ended.
        common.act(SourceAction::Wake);
        common.act(SourceAction::HangUp);
        common.act(SourceAction::Reconnect);
        Self { at: None, backoff: RETRY_FIRST }
    }

    /// Gives up the channels of a link that was lost, and opens new ones, in a moment: until then the destination is
    /// heard, which may have a reason that comes behind the news that a page channel broke.
    pub(super) fn soon(common: &mut Common) -> Self {
        common.act(SourceAction::Wake);
        let mut retry = Self { at: None, backoff: RETRY_FIRST };
        retry.wait(common);
        retry
    }

    /// An attempt failed.
    pub(super) fn failed(&mut self, common: &mut Common, reason: &str) {
        common.progress(format!("reconnecting failed: {reason}"));
        self.wait(common);
    }

    fn wait(&mut self, common: &Common) {
        self.at = Some(common.now + self.backoff);
        self.backoff = (self.backoff * 2).min(RETRY_SLOWEST);
    }

    /// Tries again when it is time, or when somebody knows that it may work now.
    pub(super) fn on(&mut self, common: &mut Common, event: &SourceEvent) {
        let Some(at) = self.at else { return };
        match event {
            SourceEvent::Tick if common.now >= at => {}
            SourceEvent::Retry => self.backoff = RETRY_FIRST,
            _ => return,
        }
        self.at = None;
        common.act(SourceAction::HangUp);
        common.act(SourceAction::Reconnect);
    }

    /// When it will be time.
    pub(super) const fn deadline(&self) -> Option<Duration> {
        self.at
    }
}
