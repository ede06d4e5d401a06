//! A page channel's frame: its head, then its table against a guest's layout.
#![no_main]

use libfuzzer_sys::fuzz_target;
use migrated_pages::{PAGE_SIZE, RamBlock, RamLayout};
use migrated_wire::{FrameHead, MAX_DATA_PAGES, MAX_RUNS, RUN_LEN, decode_table};

fuzz_target!(|data: &[u8]| {
    let Some((head, rest)) = data.split_first_chunk() else { return };
    let Ok(head) = FrameHead::decode(head) else { return };
    assert!(head.table_len() <= MAX_RUNS * RUN_LEN);
    let Some(table) = rest.get(..head.table_len()) else { return };

    let block = |name: &str, guest_base, pages| RamBlock { name: name.into(), guest_base, pages };
    let layout = RamLayout::new(vec![block("low", 0, 3000), block("high", 1 << 32, 5000)]).expect("a valid layout");
    let mut runs = Vec::new();
    if let Ok(payload) = decode_table(&head, table, &layout, &mut runs) {
        assert!(payload <= MAX_DATA_PAGES as usize * PAGE_SIZE);
        assert!(runs.iter().all(|run| layout.contains(run.pages)));
    }
});
