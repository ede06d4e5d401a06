use std::time::Duration;

use migrated_pages::PageSet;
use migrated_wire::PageSetPiece;

use super::common::Common;
use crate::limits::RECOVER_TIMEOUT;

/// What the destination says that it has, as far as it has said, in answer to
/// [`ToDestination::Recover`](migrated_wire::ToDestination::Recover).
pub(super) struct Answer {
    received: PageSet,
    deadline: Duration,
}

impl Answer {
    /// Nothing yet of an answer to a question that is asked now.
    pub(super) fn awaited(common: &Common) -> Self {
        Self { received: common.no_pages(), deadline: common.now + RECOVER_TIMEOUT }
    }

    /// When the whole answer must be here.
    pub(super) const fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Why the answer will not be waited for any longer, once that is so.
    pub(super) fn overdue(&self, common: &Common) -> Option<String> {
        (common.now >= self.deadline)
            .then(|| format!("the destination did not say within {RECOVER_TIMEOUT:?} what it has"))
    }

    /// Takes in a part.
    pub(super) fn take(&mut self, common: &Common, piece: &PageSetPiece) -> Result<(), String> {
        let added = piece.add_to(&mut self.received, &common.config.identity.layout);
        added.map(|_| ()).map_err(|error| error.to_string())
    }

    /// The whole answer, which is to have so many pages.
    pub(super) fn whole(&self, pages: u64) -> Result<&PageSet, String> {
        match self.received.len() {
            came if came == pages => Ok(&self.received),
            came => Err(format!("a received map of {pages} pages, of which {came} came")),
        }
    }
}
