//! Pages of a guest that does not run here are read straight to where they belong.

use std::time::Duration;

use migrated_pages::PageRun;

use super::{Destination, State};

impl Destination {
    /// A frame's pages begin to be placed.
    pub fn begin_placing(&mut self) {
        if let State::Receiving(state) = &mut self.state {
            state.begin_placing();
        }
    }

    /// A frame's pages are in place. When it says true there are actions to be polled.
    #[must_use]
    pub fn placed(&mut self, now: Duration, channel: u16, runs: impl IntoIterator<Item = PageRun>) -> bool {
        let State::Receiving(state) = &mut self.state else { return false };
        self.common.record.ram.pages_sent += state.placed(channel, runs);
        self.settle(now)
    }

    /// The channel broke in the middle of a frame, whose pages are zero again by now. When it says true there are
    /// actions to be polled.
    #[must_use]
    pub fn broke_off(&mut self, now: Duration, runs: impl IntoIterator<Item = PageRun>) -> bool {
        let State::Receiving(state) = &mut self.state else { return false };
        state.broke_off(runs);
        self.settle(now)
    }
}
