use migrated_pages::{PageRun, PageSet, RamLayout};

/// The pages that were placed in the newest iteration of which any was. A page of an earlier iteration may be
/// stale, so only this set tells a source that comes back what it need not send again.
pub(super) struct ThisRound {
    iteration: u32,
    pages: PageSet,
}

impl ThisRound {
    pub(super) fn new(layout: &RamLayout) -> Self {
        Self { iteration: 0, pages: PageSet::empty(layout) }
    }

    /// Notes placed pages.
    pub(super) fn insert(&mut self, iteration: u32, run: PageRun) {
        if self.iteration != iteration {
            self.iteration = iteration;
            self.pages.clear();
        }
        self.pages.insert(run);
    }

    /// What was placed in that iteration; `None` when no page of it was.
    pub(super) fn of(&self, iteration: u32) -> Option<&PageSet> {
        (self.iteration == iteration).then_some(&self.pages)
    }
}
