//! The first bytes of a connection, from whoever calls.
#![no_main]

use libfuzzer_sys::fuzz_target;
use migrated_wire::Hello;

fuzz_target!(|data: &[u8]| {
    let Some(bytes) = data.first_chunk() else { return };
    if let Ok(hello) = Hello::decode(bytes) {
        let again = Hello::decode(&hello.encode()).expect("what was read can be written and read");
        assert_eq!((again.versions, again.role, again.migration), (hello.versions, hello.role, hello.migration));
        assert!(again.token.matches(&hello.token));
    }
});
