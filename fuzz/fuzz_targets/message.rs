//! Messages of the control channel, in both directions.
#![no_main]

use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use migrated_wire::{ToDestination, ToSource, decode_message, encode_message};
use serde::{Serialize, de::DeserializeOwned};

fuzz_target!(|data: &[u8]| {
    read::<ToDestination>(data);
    read::<ToSource>(data);
});

fn read<M: Serialize + DeserializeOwned + PartialEq + Debug>(data: &[u8]) {
    if let Ok(message) = decode_message::<M>(data) {
        let again = decode_message::<M>(&encode_message(&message)).expect("what was read can be written and read");
        assert_eq!(again, message);
    }
}
