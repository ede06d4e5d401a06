//! Messages of the control channel, in both directions, and the page sets that some of them carry.
#![no_main]

use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use migrated_pages::{PageSet, RamBlock, RamLayout};
use migrated_wire::{PageSetPiece, ToDestination, ToSource, decode_message, encode_message};
use serde::{Serialize, de::DeserializeOwned};

fuzz_target!(|data: &[u8]| {
    if let Some(ToDestination::Missing(piece)) = read(data) {
        add(&piece);
    }
    if let Some(ToSource::Received(piece)) = read(data) {
        add(&piece);
    }
});

/// A piece that is added has said exactly which pages, all of them in RAM.
fn add(piece: &PageSetPiece) {
    let block = |name: &str, guest_base, pages| RamBlock { name: name.into(), guest_base, pages };
    let layout = RamLayout::new(vec![block("low", 0, 3000), block("high", 1 << 32, 5000)]).expect("a valid layout");
    let mut set = PageSet::empty(&layout);
    if let Ok(pages) = piece.add_to(&mut set, &layout) {
        assert_eq!(pages, set.len());
        assert!(set.runs().all(|run| layout.contains(run)));
    }
}

fn read<M: Serialize + DeserializeOwned + PartialEq + Debug>(data: &[u8]) -> Option<M> {
    if let Ok(message) = decode_message::<M>(data) {
        let again = decode_message::<M>(&encode_message(&message)).expect("what was read can be written and read");
        assert_eq!(again, message);
        return Some(again);
    }
    None
}
