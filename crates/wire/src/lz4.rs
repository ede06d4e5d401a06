//! Pages that travel compressed, in the block format of LZ4.
//!
//! A block holds neighbours of one run, up to [`MAX_BLOCK_PAGES`], and nothing that a later one needs, so that any
//! channel can take any batch and a block can be checked and placed by itself. One page a block would find no
//! repetition between pages, which is where much of a guest's redundancy is, and begin with an empty table each time;
//! more pages than that gain nothing, as LZ4 looks back 64 KiB at most, while the first page waits for the last to
//! arrive (0.5 ms at 1 Gbit/s) before the guest's copy of it is complete.

use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};
use migrated_pages::PAGE_SIZE;

use crate::WireError;

/// Peers of this protocol version and newer are sent compressed pages.
pub const LZ4_SINCE: u16 = 6;
/// Most pages in a compressed block: the most whose positions are less than `u16::MAX`. Then the compressor's table has 8
/// KiB and stays in the first-level cache beside what it reads.
pub const MAX_BLOCK_PAGES: u64 = 15;
/// Most bytes of a block's pages, decompressed.
pub const MAX_BLOCK_LEN: usize = MAX_BLOCK_PAGES as usize * PAGE_SIZE;

/// Compresses blocks, with memory of its own that it uses again.
pub struct Compressor {
    table: CompressTable,
}

impl Default for Compressor {
    fn default() -> Self {
        Self { table: CompressTable::small() }
    }
}

impl Compressor {
    /// Room that [`compress`](Self::compress) wants for pages of `len` bytes, whatever it makes of them.
    #[must_use]
    pub const fn room(len: usize) -> usize {
        get_maximum_output_size(len)
    }

    /// Compresses pages to the beginning of `out` and gives the size of the block in bytes; `None` if `out` is smaller
    /// than [`room`](Self::room).
    pub fn compress(&mut self, pages: &[u8], out: &mut [u8]) -> Option<usize> {
        compress_into_with_table(pages, out, &mut self.table).ok()
    }
}

/// Decompresses a block into `pages`, which it must fill exactly. Neither reads nor allocates anything else, whatever
/// `block` is.
///
/// # Errors
/// [`WireError::Malformed`] when the block is none, or not of pages of this size; `pages` may have been written.
pub fn decompress_block(block: &[u8], pages: &mut [u8]) -> Result<(), WireError> {
    let malformed = |reason| WireError::Malformed { what: "compressed block", reason };
    let size = decompress_into(block, pages).map_err(|error| malformed(error.to_string()))?;
    match size == pages.len() {
        true => Ok(()),
        false => Err(malformed(format!("it holds {size} bytes, its pages have {}", pages.len()))),
    }
}

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Compressor")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Pages in which some bytes repeat.
    fn pages() -> impl Strategy<Value = Vec<u8>> {
        (1..=MAX_BLOCK_PAGES as usize, prop::collection::vec(any::<u8>(), 1..2000), any::<u64>()).prop_map(
            |(count, pattern, noise)| {
                let noise = noise.to_le_bytes();
                let bytes = pattern.iter().cycle().zip(0..count * PAGE_SIZE);
                bytes.map(|(byte, at)| if at % 97 == 0 { noise[at % 8] } else { *byte }).collect()
            },
        )
    }

    proptest! {
        #[test]
        fn pages_survive_whatever_was_compressed_before(blocks in prop::collection::vec(pages(), 1..4)) {
            let mut compressor = Compressor::default();
            let mut out = vec![0xa5; Compressor::room(MAX_BLOCK_LEN)];
            for pages in blocks {
                let size = compressor.compress(&pages, &mut out).unwrap();
                let mut back = vec![0x5a; pages.len()];
                prop_assert_eq!(decompress_block(&out[..size], &mut back), Ok(()));
                prop_assert!(back == pages);
            }
        }

        #[test]
        fn a_block_that_is_cut_short_is_refused_and_a_spoilt_one_is_survived(
            pages in pages(),
            spoilt in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut out = vec![0; Compressor::room(pages.len())];
            let size = Compressor::default().compress(&pages, &mut out).unwrap();
            let mut back = vec![0; pages.len()];
            prop_assert!(decompress_block(&out[..cut.index(size)], &mut back).is_err());
            for (at, byte) in spoilt {
                out[at.index(size)] = byte;
            }
            let _ = decompress_block(&out[..size], &mut back);
        }

        #[test]
        fn any_bytes_are_an_error_or_fill_the_pages(block in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = decompress_block(&block, &mut [0; PAGE_SIZE]);
        }
    }

    #[test]
    fn a_block_of_more_or_fewer_pages_is_refused() {
        let two = vec![7; 2 * PAGE_SIZE];
        let mut out = vec![0; Compressor::room(two.len())];
        let size = Compressor::default().compress(&two, &mut out).unwrap();
        assert!(size < 100, "{size} bytes for one byte repeated");
        for pages in [1, 3, MAX_BLOCK_PAGES as usize] {
            let refused = decompress_block(&out[..size], &mut vec![0; pages * PAGE_SIZE]);
            assert!(
                matches!(refused, Err(WireError::Malformed { what: "compressed block", .. })),
                "{refused:?}"
            );
        }
    }

    #[test]
    fn too_little_room_is_no_block() {
        let page = [1; PAGE_SIZE];
        assert_eq!(Compressor::default().compress(&page, &mut [0; PAGE_SIZE]), None);
    }
}
