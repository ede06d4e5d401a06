//! Guests whose pages shrink, over links where that pays.

use migrated_engine::{Compression, Limits, MigrationState, Mode};
use migrated_session::SourceEnd;
use migrated_testkit::require;
use migrated_wire::VerifyWhen;

use crate::check;
use crate::rig::{Case, Ending, Network, migrate};

/// A guest of which half the pages repeat one byte, at a rate at which such a page takes 1.6 ms on its channel.
fn case(network: Network, verify: VerifyWhen) -> Case {
    let limits = Limits { bandwidth_bps: Some(40_000_000), ..Limits::default() };
    Case { network, verify, limits, pages: 4000, compression: Compression::Auto, ..Case::default() }
}

/// Everything arrived, most of it compressed, and the record says so.
fn check_compressed(ending: &Ending) {
    check(ending);
    let record = &ending.record;
    assert!(matches!(ending.source, SourceEnd::Moved), "{:?}", record.error);
    assert_eq!(record.state, Some(MigrationState::Completed));
    let counts = &record.encodings;
    assert!(counts.lz4.pages > counts.raw.pages, "{counts:?}: {:?}", record.decisions);
    assert_eq!(counts.saved_bytes, counts.lz4.pages * 4096 - counts.lz4.bytes);
    assert_eq!(counts.raw.pages + counts.lz4.pages, record.ram.pages_sent);
    assert_eq!(counts.zero.pages, record.ram.pages_zero);
    let payload = counts.raw.bytes + counts.lz4.bytes;
    assert!(record.wire_bytes.sent > payload, "{counts:?} in {:?}", record.wire_bytes);
    assert!(record.wire_bytes.sent < record.ram.pages_sent * 4096 * 3 / 4, "{:?}", record.wire_bytes);
    let why = record.decisions.iter().find(|one| one.decision == "encode_lz4").expect("it was decided");
    assert!(why.reason.contains("µs a page and saves"), "{}", why.reason);
}

#[test]
fn a_compressible_guest_arrives_equal_whatever_is_compared() {
    for network in [Network::Memory, Network::Tcp] {
        for verify in [VerifyWhen::Before, VerifyWhen::After] {
            let ending = migrate(&case(network, verify), |_, _| {});
            check_compressed(&ending);
            let found = ending.record.verified.expect("it was compared");
            assert_eq!((found.pages, found.mismatches), (4000, 0), "{network:?} {verify:?}");
        }
    }
}

#[test]
fn pages_that_follow_a_guest_travel_compressed_too() {
    require!(Userfaultfd);
    for verify in [VerifyWhen::Off, VerifyWhen::After] {
        let calm = case(Network::Tcp, verify);
        // The push gets most pages: what is asked for, or sent ahead of that, goes raw.
        let limits = Limits { bandwidth_bps: Some(400_000_000), prefetch_pages: 0, ..calm.limits };
        let ending = migrate(&Case { mode: Mode::Postcopy, vcpus: 1, limits, ..calm }, |_, _| {});
        check(&ending);
        let record = &ending.record;
        assert!(matches!(ending.source, SourceEnd::Moved), "{:?}", record.error);
        assert!(record.encodings.lz4.pages > 0, "{:?}", record.decisions);
        assert_eq!(ending.destination_record.state, Some(MigrationState::Completed));
        assert_eq!(record.verified.as_ref().map_or(0, |found| found.mismatches), 0);
    }
}
