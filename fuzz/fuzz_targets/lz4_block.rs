//! A compressed block of so many pages; the first byte says how many.
#![no_main]

use libfuzzer_sys::fuzz_target;
use migrated_pages::PAGE_SIZE;
use migrated_wire::{Compressor, MAX_BLOCK_LEN, MAX_BLOCK_PAGES, decompress_block};

fuzz_target!(|data: &[u8]| {
    let Some((count, block)) = data.split_first() else { return };
    let pages = 1 + usize::from(*count) % MAX_BLOCK_PAGES as usize;
    let mut out = vec![0; pages * PAGE_SIZE];
    if decompress_block(block, &mut out).is_ok() {
        // What it says survives being said again.
        let mut again = vec![0; Compressor::room(MAX_BLOCK_LEN)];
        let size = Compressor::default().compress(&out, &mut again).expect("room for any pages");
        let mut back = vec![0; out.len()];
        decompress_block(&again[..size], &mut back).expect("what was just compressed");
        assert!(back == out);
    }
});
