//! Any bytes at all in place of a hello or its answer: an error or a value that can be written and read
//! again. The fuzz targets of the same names look longer; these run with every `cargo test`.

use migrated_wire::{HELLO_LEN, Hello, HelloReply};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn hello(ours: bool, mut bytes: [u8; HELLO_LEN], role in 0u8..6) {
        // Random bytes alone would never get past the magic number.
        if ours {
            bytes[..4].copy_from_slice(b"MGRD");
            bytes[8] = role;
        }
        match Hello::decode(&bytes) {
            Ok(hello) => {
                let again = Hello::decode(&hello.encode()).unwrap();
                prop_assert_eq!(
                    (again.versions, again.role, again.migration),
                    (hello.versions, hello.role, hello.migration)
                );
            }
            Err(_) => prop_assert!(!ours || role > 3),
        }
    }

    #[test]
    fn hello_reply(
        code in 0u16..7,
        version: u16,
        len in 0u32..700,
        text in prop::collection::vec(any::<u8>(), 0..600),
    ) {
        let mut head = [0; HelloReply::HEAD_LEN];
        head[..4].copy_from_slice(b"MGRD");
        head[4..6].copy_from_slice(&code.to_le_bytes());
        head[6..8].copy_from_slice(&version.to_le_bytes());
        head[8..].copy_from_slice(&len.to_le_bytes());
        match HelloReply::text_len(&head) {
            Ok(len) if len <= text.len() => match HelloReply::decode(&head, &text[..len]) {
                Ok(reply) => {
                    // A text that isn't UTF-8 may grow when it is read; what is written again is cut.
                    let bytes = reply.encode();
                    let (head, text) = bytes.split_first_chunk().unwrap();
                    prop_assert!(HelloReply::decode(head, text).is_ok());
                }
                Err(_) => prop_assert!(code > 4),
            },
            Ok(len) => prop_assert!(HelloReply::decode(&head, &text).is_err(), "{len} bytes of text missing"),
            Err(_) => prop_assert!(len > 512),
        }
    }
}
