use migrated_pages::{BlockId, PageRun, PageSet, RamLayout};

/// A guest without a VMM: a number for each page's contents, and the dirty set that tracking reports.
///
/// The number is the page: 0 is a zero page, and every write gives a page a number that no page ever had.
#[derive(Clone, Debug)]
pub struct FakeGuest {
    layout: RamLayout,
    pages: Vec<Vec<u64>>,
    dirty: PageSet,
    tracking: bool,
    writes: u64,
    running: bool,
}

impl FakeGuest {
    /// A running guest of which about half of the pages are zero.
    #[must_use]
    pub fn running(layout: RamLayout) -> Self {
        let mut guest = Self::empty(layout);
        guest.running = true;
        for block in guest.layout.ids() {
            let pages = guest.layout.blocks()[block.index()].pages;
            (0..pages).filter(|page| page % 2 == 1).for_each(|page| guest.write(block, page));
        }
        guest
    }

    /// An incoming guest: all zero, not running.
    #[must_use]
    pub fn empty(layout: RamLayout) -> Self {
        let pages = layout.blocks().iter().map(|block| vec![0; block.pages as usize]).collect();
        Self { dirty: PageSet::empty(&layout), layout, pages, tracking: false, writes: 0, running: false }
    }

    /// Whether a vCPU may run.
    #[must_use]
    pub const fn is_running(&self) -> bool {
        self.running
    }

    /// How RAM is cut into blocks.
    #[must_use]
    pub const fn layout(&self) -> &RamLayout {
        &self.layout
    }

    /// Starts or stops the vCPUs.
    pub const fn set_running(&mut self, running: bool) {
        self.running = running;
    }

    /// The guest writes a page. A guest that doesn't run writes nothing.
    ///
    /// # Panics
    /// On a page outside the layout.
    pub fn write(&mut self, block: BlockId, page: u64) {
        if !self.running {
            return;
        }
        self.writes += 1;
        self.pages[block.index()][page as usize] = self.writes;
        if self.tracking {
            self.dirty.insert(PageRun { block, first: page, count: 1 });
        }
    }

    /// Turns dirty tracking on or off; bits not harvested are lost when it goes off, as in KVM.
    pub fn track(&mut self, on: bool) {
        self.tracking = on;
        self.dirty.clear();
    }

    /// Gives and forgets the dirty set.
    pub fn harvest(&mut self) -> PageSet {
        std::mem::replace(&mut self.dirty, PageSet::empty(&self.layout))
    }

    /// A page's contents.
    ///
    /// # Panics
    /// On a page outside the layout.
    #[must_use]
    pub fn read(&self, block: BlockId, page: u64) -> u64 {
        self.pages[block.index()][page as usize]
    }

    /// A page arrives from the other host.
    ///
    /// # Panics
    /// On a page outside the layout.
    pub fn place(&mut self, block: BlockId, page: u64, contents: u64) {
        self.pages[block.index()][page as usize] = contents;
    }

    /// All contents, to compare with another guest's.
    #[must_use]
    pub fn contents(&self) -> &[Vec<u64>] {
        &self.pages
    }

    /// What it takes to restore this guest's CPU: how often it has written.
    #[must_use]
    pub const fn cpu_state(&self) -> u64 {
        self.writes
    }

    /// Restores what [`FakeGuest::cpu_state`] gave.
    pub const fn restore_cpu(&mut self, writes: u64) {
        self.writes = writes;
    }
}
