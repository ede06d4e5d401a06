use std::sync::Arc;

use migrated_pages::{BlockId, PAGE_SIZE, PageRun, RamBlock, RamLayout};
use vm_memory::{
    GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MmapRegion, VolatileMemory, VolatileSlice,
};
use xxhash_rust::xxh3::xxh3_64;

use crate::scan;

/// A page without content, to copy from.
static ZERO_PAGE: [u8; PAGE_SIZE] = [0; PAGE_SIZE];

/// A guest's RAM: the mapped regions and the layout that names their pages for migration.
///
/// Cheap to clone; all clones are the same memory. What is read here while the guest runs may be
/// written meanwhile: such a page is dirty again and is read once more in a later round.
#[derive(Clone, Debug)]
pub struct GuestRam {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    memory: GuestMemoryMmap<()>,
    layout: RamLayout,
    /// The mapping of each block, by id.
    mappings: Vec<Arc<MmapRegion<()>>>,
}

/// What a page needs on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PageClass {
    /// All zero: its name is enough.
    Zero,
    /// Anything else: its bytes go.
    Data,
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
        let layout = RamLayout::new(blocks)?;
        let mappings = memory.iter().map(|region| region.get_mmap()).collect();
        Ok(Self { shared: Arc::new(Shared { memory, layout, mappings }) })
    }

    /// How the RAM is cut into blocks.
    #[must_use]
    pub fn layout(&self) -> &RamLayout {
        &self.shared.layout
    }

    /// The mapped regions.
    #[must_use]
    pub fn memory(&self) -> &GuestMemoryMmap<()> {
        &self.shared.memory
    }

    /// The bytes of a run, which the guest may be writing at this moment.
    ///
    /// # Panics
    /// On a run outside the layout: a peer's runs are checked with [`RamLayout::contains`] first.
    #[must_use]
    pub fn slice(&self, run: PageRun) -> VolatileSlice<'_> {
        assert!(self.shared.layout.contains(run), "{run:?} is outside of guest RAM");
        let mapping = &self.shared.mappings[run.block.index()];
        let (offset, length) = (run.first as usize * PAGE_SIZE, run.bytes() as usize);
        mapping.get_slice(offset, length).expect("a run of the layout lies in its mapping")
    }

    /// Appends the bytes of each run to `out`, in order, as for one gathering write.
    ///
    /// # Panics
    /// On a run outside the layout.
    pub fn slices<'a>(&'a self, runs: &[PageRun], out: &mut Vec<VolatileSlice<'a>>) {
        out.extend(runs.iter().map(|run| self.slice(*run)));
    }

    /// Whether a page is all zero now.
    ///
    /// # Panics
    /// On a page outside the layout.
    #[must_use]
    pub fn is_zero(&self, block: BlockId, page: u64) -> bool {
        scan::is_zero(&self.slice(PageRun { block, first: page, count: 1 }))
    }

    /// Cuts `run` into maximal runs of pages that are all zero or are not, and appends them to `out`.
    ///
    /// # Panics
    /// On a run outside the layout.
    pub fn split_zero(&self, run: PageRun, out: &mut Vec<(PageRun, PageClass)>) {
        let start = out.len();
        for (at, page) in pages(&self.slice(run)) {
            let class = if scan::is_zero(&page) { PageClass::Zero } else { PageClass::Data };
            match out[start..].last_mut() {
                Some((last, same)) if *same == class => last.count += 1,
                _ => out.push((PageRun { block: run.block, first: run.first + at, count: 1 }, class)),
            }
        }
    }

    /// Makes all pages of `run` zero. Only pages that are not are written: a write would give a page
    /// that was never touched memory of its own.
    ///
    /// # Panics
    /// On a run outside the layout.
    pub fn zero(&self, run: PageRun) {
        for (_, page) in pages(&self.slice(run)) {
            if !scan::is_zero(&page) {
                page.copy_from(&ZERO_PAGE);
            }
        }
    }

    /// The hash that [`hash_pages`](Self::hash_pages) gives of a zero page.
    #[must_use]
    pub fn zero_page_hash() -> u64 {
        static HASH: std::sync::LazyLock<u64> = std::sync::LazyLock::new(|| xxh3_64(&ZERO_PAGE));
        *HASH
    }

    /// Appends the XXH3 64-bit hash of each page of `run` to `out`. For memory that nobody writes:
    /// frozen at the source, or just placed at the destination.
    ///
    /// # Panics
    /// On a run outside the layout.
    pub fn hash_pages(&self, run: PageRun, out: &mut Vec<u64>) {
        // The hash wants a Rust slice, which guest memory must never be: each page is copied first.
        let mut copy = [0; PAGE_SIZE];
        out.extend(pages(&self.slice(run)).map(|(_, page)| {
            page.copy_to(&mut copy);
            xxh3_64(&copy)
        }));
    }
}

/// The pages of a run's bytes with their positions in it.
fn pages<'a>(run: &VolatileSlice<'a>) -> impl Iterator<Item = (u64, VolatileSlice<'a>)> {
    let run = *run;
    (0..(run.len() / PAGE_SIZE) as u64).map(move |at| {
        (at, run.subslice(at as usize * PAGE_SIZE, PAGE_SIZE).expect("the run is whole pages"))
    })
}
