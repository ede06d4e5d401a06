//! The answer to a hello, from whatever listens where the source connected.
#![no_main]

use libfuzzer_sys::fuzz_target;
use migrated_wire::{HELLO_REPLY_MAX, HelloReply};

fuzz_target!(|data: &[u8]| {
    let Some((head, rest)) = data.split_first_chunk() else { return };
    let Ok(len) = HelloReply::text_len(head) else { return };
    assert!(HelloReply::HEAD_LEN + len <= HELLO_REPLY_MAX);
    let Some(text) = rest.get(..len) else { return };
    if let Ok(HelloReply::Refused(refusal)) = HelloReply::decode(head, text) {
        // Each byte that isn't UTF-8 becomes one replacement character of three bytes.
        assert!(refusal.text.len() <= 3 * len);
    }
});
