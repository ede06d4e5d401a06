//! Compressed blocks on their way into place.

use migrated_transport::DataReceiver;
use migrated_wire::{FrameRun, MAX_BLOCK_LEN, PageClass, decompress_block};
use vm_memory::VolatileSlice;

use crate::error::ChannelFault;

/// Memory for one block as it comes and for its pages, used again for each: both stay in the cache while a block is read,
/// decompressed and copied into place.
pub(super) struct BlockReader {
    packed: Box<[u8]>,
    pages: Box<[u8]>,
}

impl BlockReader {
    pub(super) fn new() -> Self {
        let buffer = || vec![0; MAX_BLOCK_LEN].into_boxed_slice();
        Self { packed: buffer(), pages: buffer() }
    }

    /// Reads the blocks of these runs, which were checked by [`decode_table`](migrated_wire::decode_table), and writes their
    /// pages to `slices`, in order; runs that are not compressed are passed over. No block is written before all of it was
    /// decompressed.
    pub(super) fn read(
        &mut self,
        receiver: &mut dyn DataReceiver,
        runs: &[FrameRun],
        slices: &[VolatileSlice<'_>],
    ) -> Result<(), ChannelFault> {
        let mut slices = slices.iter();
        for run in runs {
            let PageClass::Lz4 { len } = run.class else { continue };
            let packed = &mut self.packed[..len as usize];
            receiver.read_exact(packed)?;
            let pages = &mut self.pages[..run.pages.bytes() as usize];
            decompress_block(packed, pages)?;
            let mut rest = &pages[..];
            while !rest.is_empty() {
                let Some(slice) = slices.next() else {
                    return Err(ChannelFault::Lost("a compressed block has more pages than room".into()));
                };
                let (now, later) = rest.split_at(slice.len().min(rest.len()));
                slice.copy_from(now);
                rest = later;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use migrated_pages::{BlockId, PAGE_SIZE, PageRun};
    use migrated_transport::{Hangup, TransportError};
    use migrated_wire::{Compressor, MAX_BLOCK_PAGES};

    use super::*;

    /// Bytes that a peer sent.
    struct Sent(Vec<u8>);

    impl DataReceiver for Sent {
        fn read_exact(&mut self, buf: &mut [u8]) -> Result<(), TransportError> {
            buf.copy_from_slice(&self.0.drain(..buf.len()).collect::<Vec<_>>());
            Ok(())
        }

        fn read_payload(&mut self, _: &[VolatileSlice<'_>]) -> Result<(), TransportError> {
            unreachable!("compressed blocks are not read in place")
        }

        fn bytes_received(&self) -> u64 {
            0
        }

        fn hangup(&self) -> Hangup {
            Hangup::new(|| {})
        }
    }

    fn block(pages: &[u8]) -> Vec<u8> {
        let mut out = vec![0; Compressor::room(pages.len())];
        let size = Compressor::default().compress(pages, &mut out).unwrap();
        out.truncate(size);
        out
    }

    fn run(first: u64, count: u64, block: &[u8]) -> FrameRun {
        let pages = PageRun { block: BlockId(0), first, count };
        FrameRun { pages, class: PageClass::Lz4 { len: block.len() as u32 } }
    }

    #[test]
    fn blocks_go_to_their_pages_however_those_are_cut() {
        let contents: Vec<_> = (0..20 * PAGE_SIZE).map(|at| (at / 1000) as u8).collect();
        let (first, second) = contents.split_at(MAX_BLOCK_PAGES as usize * PAGE_SIZE);
        let (first, second) = (block(first), block(second));
        let zero = PageRun { block: BlockId(0), first: 15, count: 100 };
        let zero = FrameRun { pages: zero, class: PageClass::Zero };
        let runs = [run(0, 15, &first), zero, run(200, 5, &second)];
        let mut ram = vec![0; contents.len()];
        let mut slices = Vec::new();
        let mut rest = &mut ram[..];
        for pages in [1, 14, 2, 3] {
            let (slice, later) = rest.split_at_mut(pages * PAGE_SIZE);
            slices.push(VolatileSlice::from(slice));
            rest = later;
        }
        let read = BlockReader::new().read(&mut Sent([first, second].concat()), &runs, &slices);
        assert!(read.is_ok() && rest.is_empty());
        drop(slices);
        assert!(ram == contents);
    }

    #[test]
    fn a_block_that_is_none_is_the_peer_s_fault_and_writes_nothing() {
        let good = block(&[3; 2 * PAGE_SIZE]);
        // Other pages than the table said, and bytes that are no block.
        for (sent, pages) in [(good.clone(), 1), (good.clone(), 3), (vec![0xff; 50], 2), (vec![0], 1)] {
            let mut ram = vec![7; pages * PAGE_SIZE];
            let slices = [VolatileSlice::from(&mut ram[..])];
            let runs = [run(0, pages as u64, &sent)];
            let read = BlockReader::new().read(&mut Sent(sent), &runs, &slices);
            assert!(matches!(read, Err(ChannelFault::Misbehaved(_))));
            assert!(ram.iter().all(|byte| *byte == 7), "half a block was written");
        }
    }
}
