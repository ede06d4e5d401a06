//! Frames of the page channels.
//!
//! A frame is a head of fixed size, a table of runs, and a payload: for page frames the bytes of all
//! data runs in the table's order, then the compressed blocks of all lz4 runs in that order (zero runs have
//! nothing), for hash frames eight bytes a page, for a marker nothing. The table comes first so that the receiver
//! can check every run, and the length of every block, before it reads a byte of payload, and then read
//! what is not compressed straight into place, in one go: that is why it comes before the blocks.
//!
//! A run of the table is 16 bytes, all numbers little-endian:
//!
//! | bytes | data, zero | lz4 |
//! |---|---|---|
//! | 0..2 | RAM block | RAM block |
//! | 2 | class: 0 data, 1 zero | class: 2 |
//! | 3 | 0 | pages, 1 to [`MAX_BLOCK_PAGES`] |
//! | 4..8 | pages | bytes of its compressed block |
//! | 8..16 | first page | first page |

use migrated_pages::{BlockId, PAGE_SIZE, PageRun, RamLayout};

use crate::WireError;
use crate::lz4::MAX_BLOCK_PAGES;

/// Size of an encoded [`FrameHead`] in bytes.
pub const FRAME_HEAD_LEN: usize = 24;
/// Size of one run in a frame's table, in bytes.
pub const RUN_LEN: usize = 16;
/// Most runs in a frame: its table is at most 64 KiB.
pub const MAX_RUNS: usize = 4096;
/// Most pages with payload in a frame: 4 MiB of payload.
pub const MAX_DATA_PAGES: u64 = 1024;
/// Most pages in a hash frame: 32 KiB of hashes.
pub const MAX_HASH_PAGES: u64 = 4096;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// Pages, with payload or zero.
    Pages,
    /// The end of an iteration on this channel.
    Marker,
    /// Hashes of pages, for verification.
    Hashes,
}

/// The fixed first part of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHead {
    /// What it carries.
    pub kind: FrameKind,
    /// Which iteration it belongs to, from 1.
    pub iteration: u32,
    /// Runs in its table.
    pub runs: u32,
    /// For a marker: pages sent on this channel in the iteration, to be checked. Else 0.
    pub pages: u64,
}

/// Whether a run's pages travel as bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PageClass {
    /// The bytes are in the payload.
    Data,
    /// All bytes are zero; nothing is in the payload.
    Zero,
    /// The bytes are in the payload as one compressed block. Its run has at most [`MAX_BLOCK_PAGES`] pages.
    Lz4 {
        /// Size of the block in bytes: not 0, and less than that of the pages.
        len: u32,
    },
}

impl PageClass {
    /// Whether nothing of the pages is in the payload.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        matches!(self, Self::Zero)
    }
}

/// One run of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameRun {
    /// Which pages.
    pub pages: PageRun,
    /// How they travel.
    pub class: PageClass,
}

impl FrameHead {
    /// The head of an iteration's end after `pages` pages on this channel.
    #[must_use]
    pub const fn marker(iteration: u32, pages: u64) -> Self {
        Self { kind: FrameKind::Marker, iteration, runs: 0, pages }
    }

    /// Appends the head to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let kind = match self.kind {
            FrameKind::Pages => 1u8,
            FrameKind::Marker => 2,
            FrameKind::Hashes => 3,
        };
        out.extend_from_slice(&[b'P', kind, 0, 0]);
        out.extend_from_slice(&self.iteration.to_le_bytes());
        out.extend_from_slice(&self.runs.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.pages.to_le_bytes());
    }

    /// Reads a head.
    ///
    /// # Errors
    /// [`WireError`] for an undefined kind, nonzero reserved bytes, or more runs than [`MAX_RUNS`].
    pub fn decode(bytes: &[u8; FRAME_HEAD_LEN]) -> Result<Self, WireError> {
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let tag = u32_at(0);
        let kind = match tag.to_le_bytes() {
            [b'P', 1, 0, 0] => FrameKind::Pages,
            [b'P', 2, 0, 0] => FrameKind::Marker,
            [b'P', 3, 0, 0] => FrameKind::Hashes,
            _ => return Err(WireError::Undefined { what: "frame kind", value: tag.into() }),
        };
        if u32_at(12) != 0 {
            return Err(WireError::Undefined { what: "reserved frame field", value: u32_at(12).into() });
        }
        let (low, high) = (u64::from(u32_at(16)), u64::from(u32_at(20)));
        let head = Self { kind, iteration: u32_at(4), runs: u32_at(8), pages: low | high << 32 };
        let limit = match kind {
            FrameKind::Pages => MAX_RUNS as u64,
            FrameKind::Marker => 0,
            FrameKind::Hashes => 1,
        };
        if u64::from(head.runs) > limit {
            return Err(WireError::TooLarge { what: "run count of a frame", got: head.runs.into(), limit });
        }
        Ok(head)
    }

    /// Size of the table that follows the head, in bytes; bounded by [`MAX_RUNS`].
    #[must_use]
    pub const fn table_len(&self) -> usize {
        self.runs as usize * RUN_LEN
    }
}

/// Appends one run of a table to `out`.
///
/// # Panics
/// On a run of more than `u32::MAX` pages, or a compressed one of more than [`MAX_BLOCK_PAGES`]; senders cut runs to the
/// frame limits long before.
pub fn encode_run(run: &FrameRun, out: &mut Vec<u8>) {
    let count = |most: u64| {
        let count = run.pages.count;
        assert!(count <= most, "runs are cut to frame limits");
        count as u32
    };
    let (class, pages, number) = match run.class {
        PageClass::Data => (0u8, 0, count(u32::MAX.into())),
        PageClass::Zero => (1, 0, count(u32::MAX.into())),
        PageClass::Lz4 { len } => (2, count(MAX_BLOCK_PAGES) as u8, len),
    };
    out.extend_from_slice(&run.pages.block.0.to_le_bytes());
    out.extend_from_slice(&[class, pages]);
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&run.pages.first.to_le_bytes());
}

/// Reads a frame's table into `runs` and gives the size of the payload that follows, in bytes. Every
/// run lies within `layout` and the payload, as it comes and as it is once it is decompressed, within its limit when
/// this returns `Ok`.
///
/// # Errors
/// [`WireError`] for a run outside the layout, an undefined class, a compressed block that can't be one, or too large a
/// payload.
pub fn decode_table(
    head: &FrameHead,
    table: &[u8],
    layout: &RamLayout,
    runs: &mut Vec<FrameRun>,
) -> Result<usize, WireError> {
    runs.clear();
    if table.len() != head.table_len() {
        return Err(WireError::Truncated("run table"));
    }
    let (mut data_pages, mut saved) = (0u64, 0u64);
    for entry in table.chunks_exact(RUN_LEN) {
        let run = decode_run(entry)?;
        if !layout.contains(run.pages) {
            return Err(WireError::Malformed {
                what: "run table",
                reason: format!("{:?} is outside of guest RAM", run.pages),
            });
        }
        if !run.class.is_zero() || head.kind == FrameKind::Hashes {
            data_pages = data_pages.saturating_add(run.pages.count);
        }
        if let PageClass::Lz4 { len } = run.class {
            saved += run.pages.bytes() - u64::from(len);
        }
        runs.push(run);
    }
    let (what, limit, unit) = match head.kind {
        FrameKind::Pages => ("pages of a frame", MAX_DATA_PAGES, PAGE_SIZE),
        FrameKind::Hashes => ("hashes of a frame", MAX_HASH_PAGES, size_of::<u64>()),
        FrameKind::Marker => return Ok(0),
    };
    if data_pages > limit {
        return Err(WireError::TooLarge { what, got: data_pages, limit });
    }
    let whole = data_pages as usize * unit;
    Ok(if head.kind == FrameKind::Pages { whole - saved as usize } else { whole })
}

fn decode_run(entry: &[u8]) -> Result<FrameRun, WireError> {
    let entry: &[u8; RUN_LEN] = entry.try_into().map_err(|_| WireError::Truncated("run"))?;
    let [b0, b1, class, pages, n0, n1, n2, n3, first @ ..] = *entry;
    let number = u32::from_le_bytes([n0, n1, n2, n3]);
    let (class, count) = match (class, pages) {
        (0, 0) => (PageClass::Data, number.into()),
        (1, 0) => (PageClass::Zero, number.into()),
        (2, 1..) => (PageClass::Lz4 { len: number }, u64::from(pages)),
        _ => return Err(WireError::Undefined { what: "page class", value: class.into() }),
    };
    let pages =
        PageRun { block: BlockId(u16::from_le_bytes([b0, b1])), first: u64::from_le_bytes(first), count };
    if let PageClass::Lz4 { len } = class {
        check_block(&pages, len)?;
    }
    Ok(FrameRun { pages, class })
}

/// Refuses a compressed block that no sender makes, before it is read.
fn check_block(pages: &PageRun, len: u32) -> Result<(), WireError> {
    if pages.count > MAX_BLOCK_PAGES {
        let what = "pages of a compressed block";
        return Err(WireError::TooLarge { what, got: pages.count, limit: MAX_BLOCK_PAGES });
    }
    if len == 0 {
        return Err(WireError::Truncated("compressed block"));
    }
    let limit = pages.bytes() - 1;
    if u64::from(len) > limit {
        return Err(WireError::TooLarge { what: "size of a compressed block", got: len.into(), limit });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use migrated_pages::RamBlock;
    use proptest::prelude::*;

    fn layout() -> RamLayout {
        let block = |name: &str, base, pages| RamBlock { name: name.into(), guest_base: base, pages };
        RamLayout::new(vec![block("a", 0, 3000), block("b", 1 << 32, 5000)]).unwrap()
    }

    fn run() -> impl Strategy<Value = FrameRun> {
        (0u16..2, 0u64..2900, 1u64..50, 0u8..3, 1u32..4096).prop_map(|(block, first, count, class, len)| {
            let (class, count) = match class {
                0 => (PageClass::Zero, count),
                1 => (PageClass::Data, count),
                _ => (PageClass::Lz4 { len }, 1 + count % MAX_BLOCK_PAGES),
            };
            FrameRun { pages: PageRun { block: BlockId(block), first, count }, class }
        })
    }

    proptest! {
        #[test]
        fn frames_survive_the_wire(runs in prop::collection::vec(run(), 1..20), iteration: u32) {
            let head = FrameHead { kind: FrameKind::Pages, iteration, runs: runs.len() as u32, pages: 0 };
            let mut bytes = Vec::new();
            head.encode(&mut bytes);
            runs.iter().for_each(|run| encode_run(run, &mut bytes));
            let (first, table) = bytes.split_first_chunk().unwrap();
            prop_assert_eq!(FrameHead::decode(first).unwrap(), head);
            let mut back = Vec::new();
            let payload = decode_table(&head, table, &layout(), &mut back).unwrap();
            prop_assert_eq!(&back, &runs);
            let size = |run: &FrameRun| match run.class {
                PageClass::Data => run.pages.bytes(),
                PageClass::Zero => 0,
                PageClass::Lz4 { len } => len.into(),
            };
            prop_assert_eq!(payload as u64, runs.iter().map(size).sum::<u64>());
        }

        #[test]
        fn any_bytes_give_runs_inside_the_layout_or_an_error(
            first: [u8; FRAME_HEAD_LEN],
            kind in 0u8..5,
            mut table in prop::collection::vec(any::<u8>(), 0..200),
            // Random bytes alone seldom are a run inside the layout.
            plausible: bool,
        ) {
            let mut first = first;
            first[..4].copy_from_slice(&[b'P', kind, 0, 0]);
            first[10..16].fill(0);
            first[9] = 0;
            if let Ok(head) = FrameHead::decode(&first) {
                table.resize(head.table_len().min(200), 0);
                if plausible {
                    for run in table.chunks_exact_mut(RUN_LEN) {
                        let class = run[2] % 3;
                        run[..3].copy_from_slice(&[0, 0, class]);
                        run[3] = if class == 2 { run[3] % 20 } else { 0 };
                        run[5] %= 0x20;
                        [6, 7, 10, 11, 12, 13, 14, 15].into_iter().for_each(|at| run[at] = 0);
                        run[9] %= 8;
                    }
                }
                let mut runs = Vec::new();
                if let Ok(payload) = decode_table(&head, &table, &layout(), &mut runs) {
                    prop_assert!(payload <= MAX_DATA_PAGES as usize * PAGE_SIZE);
                    prop_assert!(runs.iter().all(|run| layout().contains(run.pages)));
                    for run in &runs {
                        if let PageClass::Lz4 { len } = run.class {
                            prop_assert!(run.pages.count <= MAX_BLOCK_PAGES);
                            prop_assert!(len > 0 && u64::from(len) < run.pages.bytes());
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn limits_hold_before_anything_is_read() {
        let mut bytes = Vec::new();
        FrameHead { kind: FrameKind::Pages, iteration: 1, runs: MAX_RUNS as u32 + 1, pages: 0 }
            .encode(&mut bytes);
        let head = FrameHead::decode(bytes.first_chunk().unwrap());
        assert!(matches!(head, Err(WireError::TooLarge { .. })));
        let head = FrameHead { kind: FrameKind::Pages, iteration: 1, runs: 1, pages: 0 };
        let mut table = Vec::new();
        let big = PageRun { block: BlockId(1), first: 0, count: MAX_DATA_PAGES + 1 };
        encode_run(&FrameRun { pages: big, class: PageClass::Data }, &mut table);
        assert!(matches!(
            decode_table(&head, &table, &layout(), &mut Vec::new()),
            Err(WireError::TooLarge { .. })
        ));
    }

    #[test]
    fn compressed_blocks_that_nobody_sends_are_refused_before_they_are_read() {
        let decode = |pages: u8, len: u32| {
            let mut table = Vec::new();
            let run = PageRun { block: BlockId(1), first: 7, count: 1 };
            encode_run(&FrameRun { pages: run, class: PageClass::Lz4 { len } }, &mut table);
            table[3] = pages;
            let head = FrameHead { kind: FrameKind::Pages, iteration: 1, runs: 1, pages: 0 };
            decode_table(&head, &table, &layout(), &mut Vec::new())
        };
        assert_eq!(decode(1, 1), Ok(1));
        assert_eq!(decode(15, 15 * 4096 - 1), Ok(15 * 4096 - 1));
        assert!(matches!(decode(0, 100), Err(WireError::Undefined { what: "page class", .. })));
        assert!(matches!(decode(16, 100), Err(WireError::TooLarge { got: 16, limit: 15, .. })));
        assert_eq!(decode(1, 0), Err(WireError::Truncated("compressed block")));
        // One that saves nothing, and one that would have the reader allocate.
        assert!(matches!(decode(1, 4096), Err(WireError::TooLarge { got: 4096, limit: 4095, .. })));
        assert!(matches!(decode(15, u32::MAX), Err(WireError::TooLarge { .. })));
    }
}
