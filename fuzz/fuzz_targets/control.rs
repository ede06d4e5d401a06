//! Messages between a daemon and a VM process, in both directions.
#![no_main]

use libfuzzer_sys::fuzz_target;
use migrated_control::{FromVm, ToVm, decode, encode};
use serde::{Serialize, de::DeserializeOwned};

fuzz_target!(|data: &[u8]| {
    read::<ToVm>(data);
    read::<FromVm>(data);
});

fn read<M: Serialize + DeserializeOwned>(data: &[u8]) {
    let Ok(message) = decode::<M>(data) else { return };
    // Numbers may be written longer than they were read, so what was just read may be above the limit.
    let Ok(written) = encode(&message) else { return };
    let again = decode::<M>(&written).expect("what was written can be read");
    assert_eq!(encode(&again).expect("it fitted before"), written);
}
