use std::fs::File;
use std::sync::Arc;

use migrated_pages::{BlockId, PAGE_SIZE, PageRun, RamBlock, RamLayout};
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use rustix::mm::MapFlags;
use vm_memory::{
    GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MmapRegion, VolatileMemory, VolatileSlice,
};
use xxhash_rust::xxh3::xxh3_64;

use crate::scan;

/// From a page with memory on, so many are looked at before the file is asked again: asking costs as much as a few
/// pages. (It is asked for data only. For the next hole the kernel would walk all pages up to it.)
const ASK_EVERY: u64 = 16;

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
    /// Memory that the guest never touched is not touched here either: reading it would give it pages.
    ///
    /// # Panics
    /// On a run outside the layout.
    pub fn split_zero(&self, run: PageRun, out: &mut Vec<(PageRun, PageClass)>) {
        let mut pieces = Pieces { block: run.block, start: out.len(), out };
        let Some(file) = self.file_of(run.block).filter(|_| run.count >= ASK_EVERY) else {
            return self.scan_into(run, &mut pieces);
        };
        let (mut at, end) = (run.first, run.first + run.count);
        while at < end {
            let data = next_data(file, at).min(end);
            pieces.push(at, data - at, PageClass::Zero);
            at = (data + ASK_EVERY).min(end);
            if at > data {
                self.scan_into(PageRun { block: run.block, first: data, count: at - data }, &mut pieces);
            }
        }
    }

    /// Appends those parts of `run` to `out` that may have memory of their own. Memory that the guest never touched
    /// is not touched here either.
    ///
    /// # Panics
    /// On a run outside the layout.
    pub fn populated(&self, run: PageRun, out: &mut Vec<PageRun>) {
        assert!(self.shared.layout.contains(run), "{run:?} is outside of guest RAM");
        let Some(file) = self.file_of(run.block) else { return out.push(run) };
        let (mut at, end) = (run.first, run.first + run.count);
        while at < end {
            let data = next_data(file, at).min(end);
            at = next_hole(file, data).min(end);
            if at > data {
                out.push(PageRun { block: run.block, first: data, count: at - data });
            }
        }
    }

    /// The mapping that a block lies in.
    pub(crate) fn mapping(&self, block: BlockId) -> &MmapRegion<()> {
        &self.shared.mappings[block.index()]
    }

    /// The file behind a block, when what the guest writes is in the file, and at the same offsets.
    pub(crate) fn file_of(&self, block: BlockId) -> Option<&File> {
        let mapping = self.mapping(block);
        let file = mapping.file_offset()?;
        let is_shared = MapFlags::from_bits_retain(mapping.flags() as u32).contains(MapFlags::SHARED);
        (file.start() == 0 && is_shared).then(|| file.file())
    }

    fn scan_into(&self, run: PageRun, pieces: &mut Pieces<'_>) {
        for (at, page) in pages(&self.slice(run)) {
            let class = if scan::is_zero(&page) { PageClass::Zero } else { PageClass::Data };
            pieces.push(run.first + at, 1, class);
        }
    }

    /// Makes all pages of `run` zero, and touches each of them; only those that are not zero are written.
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

    /// Makes all pages of `run` zero. A page without memory of its own is zero and stays without; looking at it would give
    /// it some, and take the time for that.
    ///
    /// # Panics
    /// On a run outside the layout.
    pub fn zero_populated(&self, run: PageRun) {
        let mut parts = Vec::new();
        self.populated(run, &mut parts);
        parts.into_iter().for_each(|part| self.zero(part));
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
        let mut parts = Vec::new();
        self.split_zero(run, &mut parts);
        // The hash wants a Rust slice, which guest memory must never be: each page is copied first.
        let mut copy = [0; PAGE_SIZE];
        for (part, class) in parts {
            match class {
                PageClass::Zero => out.extend((0..part.count).map(|_| Self::zero_page_hash())),
                PageClass::Data => out.extend(pages(&self.slice(part)).map(|(_, page)| {
                    page.copy_to(&mut copy);
                    xxh3_64(&copy)
                })),
            }
        }
    }
}

/// The runs that a run is cut into.
struct Pieces<'a> {
    block: BlockId,
    start: usize,
    out: &'a mut Vec<(PageRun, PageClass)>,
}

impl Pieces<'_> {
    /// Adds pages that follow the ones added before.
    fn push(&mut self, first: u64, count: u64, class: PageClass) {
        match self.out[self.start..].last_mut() {
            _ if count == 0 => {}
            Some((last, same)) if *same == class => last.count += count,
            _ => self.out.push((PageRun { block: self.block, first, count }, class)),
        }
    }
}

/// The first page from `from` on of a memfd that may have memory of its own. Only the kernel's word that there is
/// none makes it later: in doubt a page is looked at.
pub(crate) fn next_data(file: &File, from: u64) -> u64 {
    match rustix::fs::seek(file, SeekFrom::Data(from * PAGE_SIZE as u64)) {
        Ok(offset) => offset / PAGE_SIZE as u64,
        Err(Errno::NXIO) => u64::MAX,
        Err(_) => from,
    }
}

/// The first page from `from` on of a memfd that has no memory of its own. The kernel walks all pages up to it.
pub(crate) fn next_hole(file: &File, from: u64) -> u64 {
    match rustix::fs::seek(file, SeekFrom::Hole(from * PAGE_SIZE as u64)) {
        Ok(offset) => offset / PAGE_SIZE as u64,
        Err(_) => u64::MAX,
    }
}

/// The pages of a run's bytes with their positions in it.
fn pages<'a>(run: &VolatileSlice<'a>) -> impl Iterator<Item = (u64, VolatileSlice<'a>)> {
    let run = *run;
    (0..(run.len() / PAGE_SIZE) as u64).map(move |at| {
        (at, run.subslice(at as usize * PAGE_SIZE, PAGE_SIZE).expect("the run is whole pages"))
    })
}
