//! Frames of the page channels.
//!
//! A frame is a head of fixed size, a table of runs, and a payload: for page frames the bytes of all
//! data runs in the table's order (zero runs have none), for hash frames eight bytes a page, for a
//! marker nothing. The table comes first so that the receiver can check every run against the
//! guest's layout before it reads a byte of payload, and then read the payload straight into place.

use migrated_pages::{BlockId, PAGE_SIZE, PageRun, RamLayout};

use crate::WireError;

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
/// On a run of more than `u32::MAX` pages; senders cut runs to the frame limits long before.
pub fn encode_run(run: &FrameRun, out: &mut Vec<u8>) {
    let class = match run.class {
        PageClass::Data => 0u8,
        PageClass::Zero => 1,
    };
    let count = u32::try_from(run.pages.count).expect("runs are cut to frame limits");
    out.extend_from_slice(&run.pages.block.0.to_le_bytes());
    out.extend_from_slice(&[class, 0]);
    out.extend_from_slice(&count.to_le_bytes());
    out.extend_from_slice(&run.pages.first.to_le_bytes());
}

/// Reads a frame's table into `runs` and gives the size of the payload that follows, in bytes. Every
/// run lies within `layout` and the payload within its limit when this returns `Ok`.
///
/// # Errors
/// [`WireError`] for a run outside the layout, an undefined class, or too large a payload.
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
    let mut data_pages = 0u64;
    for entry in table.chunks_exact(RUN_LEN) {
        let run = decode_run(entry)?;
        if !layout.contains(run.pages) {
            return Err(WireError::Malformed {
                what: "run table",
                reason: format!("{:?} is outside of guest RAM", run.pages),
            });
        }
        if run.class == PageClass::Data || head.kind == FrameKind::Hashes {
            data_pages = data_pages.saturating_add(run.pages.count);
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
    Ok(data_pages as usize * unit)
}

fn decode_run(entry: &[u8]) -> Result<FrameRun, WireError> {
    let entry: &[u8; RUN_LEN] = entry.try_into().map_err(|_| WireError::Truncated("run"))?;
    let [b0, b1, class, reserved, c0, c1, c2, c3, first @ ..] = *entry;
    let class = match (class, reserved) {
        (0, 0) => PageClass::Data,
        (1, 0) => PageClass::Zero,
        _ => return Err(WireError::Undefined { what: "page class", value: class.into() }),
    };
    let pages = PageRun {
        block: BlockId(u16::from_le_bytes([b0, b1])),
        first: u64::from_le_bytes(first),
        count: u32::from_le_bytes([c0, c1, c2, c3]).into(),
    };
    Ok(FrameRun { pages, class })
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
        (0u16..2, 0u64..2900, 1u64..50, any::<bool>()).prop_map(|(block, first, count, zero)| FrameRun {
            pages: PageRun { block: BlockId(block), first, count },
            class: if zero { PageClass::Zero } else { PageClass::Data },
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
            let data = runs.iter().filter(|r| r.class == PageClass::Data).map(|r| r.pages.bytes()).sum::<u64>();
            prop_assert_eq!(payload as u64, data);
        }

        #[test]
        fn any_bytes_give_runs_inside_the_layout_or_an_error(
            first: [u8; FRAME_HEAD_LEN],
            kind in 0u8..5,
            mut table in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut first = first;
            first[..4].copy_from_slice(&[b'P', kind, 0, 0]);
            first[10..16].fill(0);
            first[9] = 0;
            if let Ok(head) = FrameHead::decode(&first) {
                table.resize(head.table_len().min(200), 0);
                let mut runs = Vec::new();
                if let Ok(payload) = decode_table(&head, &table, &layout(), &mut runs) {
                    prop_assert!(payload <= MAX_DATA_PAGES as usize * PAGE_SIZE);
                    prop_assert!(runs.iter().all(|run| layout().contains(run.pages)));
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
}
