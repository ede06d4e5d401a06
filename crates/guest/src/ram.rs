use std::sync::Arc;

use migrated_pages::{PAGE_SIZE, PageRun, RamBlock, RamLayout};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, VolatileSlice};

/// A guest's RAM: the mapped regions and the layout that names their pages for migration.
///
/// Cheap to clone; all clones are the same memory.
#[derive(Clone, Debug)]
pub struct GuestRam {
    memory: Arc<GuestMemoryMmap<()>>,
    layout: Arc<RamLayout>,
}

impl GuestRam {
    /// Names the regions of `memory`, in order of guest-physical address, `ram0`, `ram1`, ….
    ///
    /// # Errors
    /// [`LayoutError`](migrated_pages::LayoutError) when the regions are none or too many, or not whole pages.
    pub fn new(memory: GuestMemoryMmap<()>) -> Result<Self, migrated_pages::LayoutError> {
        let blocks = memory
            .iter()
            .enumerate()
            .map(|(index, region)| RamBlock {
                name: format!("ram{index}"),
                guest_base: region.start_addr().0,
                pages: region.len() / PAGE_SIZE as u64,
            })
            .collect();
        Ok(Self { layout: Arc::new(RamLayout::new(blocks)?), memory: Arc::new(memory) })
    }

    /// How the RAM is cut into blocks.
    #[must_use]
    pub fn layout(&self) -> &RamLayout {
        &self.layout
    }

    /// The mapped regions.
    #[must_use]
    pub fn memory(&self) -> &GuestMemoryMmap<()> {
        &self.memory
    }

    /// The bytes of a run, which the guest may be writing at this moment.
    ///
    /// # Panics
    /// On a run outside the layout: a peer's runs are checked with [`RamLayout::contains`] first.
    #[must_use]
    pub fn slice(&self, run: PageRun) -> VolatileSlice<'_> {
        assert!(self.layout.contains(run), "{run:?} is outside of guest RAM");
        let region = self.memory.iter().nth(run.block.index()).expect("a layout has a region per block");
        let offset = vm_memory::MemoryRegionAddress(run.first * PAGE_SIZE as u64);
        region.get_slice(offset, run.bytes() as usize).expect("the run lies in its region")
    }
}
