//! Links that are lost while the guest runs at the source.

use std::time::Duration;

use migrated_engine::{FailureCode, Limits, MigrationState, Mode};
use migrated_session::SourceEnd;
use migrated_testkit::wait_until;
use migrated_wire::VerifyWhen;

use crate::rig::{Case, Network, migrate, migrate_held};
use crate::{check, failure};

const PATIENCE: Duration = Duration::from_secs(60);

/// A guest whose first iteration takes about a second.
fn case(network: Network, verify: VerifyWhen) -> Case {
    let limits = Limits { bandwidth_bps: Some(100_000_000), ..Limits::default() };
    Case { network, verify, limits, pages: 4000, channels: 3, ..Case::default() }
}

#[test]
fn a_link_lost_in_precopy_comes_back_by_itself_and_what_had_come_is_not_sent_again() {
    for network in [Network::Memory, Network::Relayed] {
        for (mode, verify) in [
            (Mode::Precopy, VerifyWhen::Before),
            (Mode::Precopy, VerifyWhen::After),
            (Mode::Auto, VerifyWhen::Before),
        ] {
            let ending = migrate_held(&Case { mode, ..case(network, verify) }, |hold| {
                for lost in 1..=3 {
                    wait_until("pages flow", PATIENCE, || {
                        let record = hold.source.record();
                        record.state == Some(MigrationState::Precopy) && record.ram.pages_sent > lost * 400
                    });
                    hold.cut();
                    wait_until("the loss is noticed", PATIENCE, || {
                        hold.source.record().reconnects.len() as u64 >= lost
                    });
                }
            });
            check(&ending);
            let record = &ending.record;
            assert!(matches!(ending.source, SourceEnd::Moved), "{network:?}: {:?}", record.error);
            assert!(record.reconnects.len() >= 3 && !ending.destination_record.reconnects.is_empty());
            assert!(
                record.reconnects.iter().all(|one| one.recovered_ms.is_some()),
                "{:?}",
                record.reconnects
            );
            let found = record.verified.as_ref().expect("it was compared");
            assert_eq!((found.pages, found.mismatches), (4000, 0), "{network:?} {verify:?}");
            // Sent once more each time would be four times; the guest's own writes are a few.
            let sent = record.ram.pages_sent + record.ram.pages_zero;
            assert!(sent < 2 * 4000 + 3 * 3 * 256, "{sent} pages: {:?}", record.iterations);
            assert_eq!(record.error, None);
        }
    }
}

#[test]
fn a_link_that_may_not_come_back_leaves_the_guest_where_it_is_at_once() {
    let calm = case(Network::Memory, VerifyWhen::Off);
    let limits = Limits { reconnect_window: Duration::ZERO, ..calm.limits };
    let ending = migrate_held(&Case { limits, ..calm }, |hold| {
        wait_until("pages flow", PATIENCE, || hold.source.record().ram.pages_sent > 0);
        hold.cut();
    });
    check(&ending);
    assert_eq!(failure(&ending), FailureCode::LinkLost);
    assert!(ending.record.reconnects.is_empty());
}

#[test]
fn cancel_needs_no_link() {
    let calm = case(Network::Relayed, VerifyWhen::Off);
    let ending = migrate_held(&calm, |hold| {
        wait_until("pages flow", PATIENCE, || hold.source.record().ram.pages_sent > 0);
        hold.close();
        wait_until("the loss is noticed", PATIENCE, || {
            hold.source.state() == MigrationState::PrecopyPaused
                && hold.destination.state() == MigrationState::PrecopyPaused
        });
        assert!(hold.source.cancel());
    });
    check(&ending);
    assert_eq!(failure(&ending), FailureCode::Cancelled);
}

#[test]
fn an_address_where_nobody_is_is_another_ones_turn() {
    for network in [Network::Memory, Network::Relayed] {
        let ending = migrate(&Case { dead_address: true, ..case(network, VerifyWhen::Off) }, |_, _| {});
        check(&ending);
        assert!(matches!(ending.source, SourceEnd::Moved), "{network:?}: {:?}", ending.record.error);
    }
}
