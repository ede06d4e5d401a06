//! Guests that run before their pages are there, on the real userfaultfd.

use std::time::Duration;

use migrated_engine::{FailureCode, Limits, MigrationState, Mode, Postcopy};
use migrated_pages::{BlockId, PageRun};
use migrated_session::{DestinationEnd, SourceEnd};
use migrated_testkit::{require, wait_until};
use migrated_transport::memory::{Cut, Direction};
use migrated_wire::VerifyWhen;

use crate::rig::{Case, Ending, Network, migrate, migrate_held};
use crate::{SWEEP, check, failure};

const PATIENCE: Duration = Duration::from_secs(60);

/// A guest whose pre-copy never ends, at a rate at which its pages take a while to follow.
fn case(mode: Mode) -> Case {
    let limits = Limits {
        max_downtime: Duration::from_nanos(1),
        max_iterations: 2,
        bandwidth_bps: Some(400_000_000),
        ..Limits::default()
    };
    let (pages, writes_per_harvest) = (4000, 3000);
    Case { mode, limits, pages, writes_per_harvest, vcpus: 3, verify: VerifyWhen::Off, ..Case::default() }
}

/// Few enough pages for a sweep.
fn small(mode: Mode) -> Case {
    let limits = Limits { bandwidth_bps: None, ..case(mode).limits };
    Case { pages: 40, writes_per_harvest: 30, vcpus: 1, limits, ..case(mode) }
}

fn postcopy(ending: &Ending) -> (&Postcopy, &Postcopy) {
    let of = |record: &'_ migrated_engine::MigrationRecord| record.postcopy.is_some();
    assert!(of(&ending.record) && of(&ending.destination_record), "{:?}", ending.record.error);
    (ending.record.postcopy.as_ref().unwrap(), ending.destination_record.postcopy.as_ref().unwrap())
}

#[test]
fn a_guest_runs_before_its_pages_and_sees_what_it_left() {
    require!(Userfaultfd);
    for network in [Network::Memory, Network::Tcp] {
        for mode in [Mode::Postcopy, Mode::Hybrid, Mode::Auto] {
            let ending = migrate(&Case { network, ..case(mode) }, |_, _| {});
            check(&ending);
            assert!(
                matches!(ending.source, SourceEnd::Moved),
                "{network:?} {mode:?}: {:?}",
                ending.record.error
            );
            assert_eq!(ending.record.state, Some(MigrationState::Completed));
            assert_eq!(ending.destination_record.state, Some(MigrationState::Completed));
            let (source, destination) = postcopy(&ending);
            assert_eq!(
                source.pages_push + source.pages_fault + source.pages_prefetch,
                destination.missing_pages,
                "each page once"
            );
            assert!(destination.pages_duplicate <= source.requests_duplicate, "{source:?} {destination:?}");
            let whole = ending.record.ram.pages;
            match mode {
                Mode::Postcopy => assert_eq!(destination.missing_pages, whole),
                _ => assert!((1..whole).contains(&destination.missing_pages), "{destination:?}"),
            }
            assert!(source.pages_fault > 0 && destination.faults > 0, "{source:?} {destination:?}");
            assert!(destination.fault_latency.count() > 0, "{destination:?}");
        }
    }
}

#[test]
fn memory_is_compared_though_the_guest_writes_it() {
    require!(Userfaultfd);
    for mode in [Mode::Postcopy, Mode::Hybrid, Mode::Auto] {
        let ending = migrate(&Case { verify: VerifyWhen::After, ..case(mode) }, |_, _| {});
        check(&ending);
        let found = ending.record.verified.as_ref().expect("it was compared");
        assert_eq!((found.pages, found.mismatches), (4000, 0), "{mode:?}");
    }
}

#[test]
fn state_that_lies_in_missing_pages_is_brought_before_the_commit() {
    require!(Userfaultfd);
    for mode in [Mode::Postcopy, Mode::Hybrid, Mode::Auto] {
        let restore_reads = (0..40).map(|first| PageRun { block: BlockId(1), first: first * 7, count: 1 });
        let ending = migrate(&Case { restore_reads: restore_reads.collect(), ..case(mode) }, |_, _| {});
        check(&ending);
        assert!(matches!(ending.source, SourceEnd::Moved), "{mode:?}: {:?}", ending.record.error);
    }
}

#[test]
fn a_link_lost_while_pages_follow_comes_back_by_itself() {
    require!(Userfaultfd);
    for mode in [Mode::Postcopy, Mode::Hybrid, Mode::Auto] {
        let limits = Limits { bandwidth_bps: Some(40_000_000), ..case(mode).limits };
        let ending = migrate_held(&Case { limits, ..case(mode) }, |hold| {
            for lost in 1..=3 {
                wait_until("pages follow the guest", PATIENCE, || {
                    hold.source.state() == MigrationState::PostcopyActive
                });
                assert!(!hold.source.cancel(), "only the destination has the guest");
                hold.cut();
                wait_until("the loss is noticed", PATIENCE, || {
                    let lost_so_far = |postcopy: Postcopy| postcopy.recoveries.len();
                    hold.source.record().postcopy.map_or(0, lost_so_far) >= lost
                });
            }
        });
        check(&ending);
        assert!(matches!(ending.source, SourceEnd::Moved), "{mode:?}: {:?}", ending.record.error);
        let (source, _) = postcopy(&ending);
        assert!(source.recoveries.len() >= 3, "{:?}", source.recoveries);
        assert!(source.recoveries.iter().all(|recovery| recovery.recovered_ms.is_some()));
        assert_eq!(ending.record.error, None);
    }
}

#[test]
fn wherever_the_control_channel_breaks_one_copy_runs_and_it_is_whole() {
    require!(Userfaultfd);
    for mode in [Mode::Postcopy, Mode::Hybrid, Mode::Auto] {
        let calm = migrate(&small(mode), |_, _| {});
        check(&calm);
        assert!(calm.record.postcopy.is_some(), "{mode:?}: {:?}", calm.record.decisions);
        let (mut kept, mut asked) = (0, 0);
        for (direction, range) in SWEEP {
            for after in range.step_by(3) {
                let ending = migrate(&Case { cut: Some(Cut { direction, after }), ..small(mode) }, |_, _| {});
                check(&ending);
                let decided = |what: &str| ending.record.decisions.iter().any(|d| d.decision == what);
                kept += usize::from(matches!(ending.source, SourceEnd::Kept(..)));
                asked += usize::from(decided("ask_destination"));
            }
        }
        // The sweep went over the commit.
        assert!(kept > 0 && asked > 0, "{mode:?}: {kept} kept, {asked} asked");
    }
}

#[test]
fn a_link_lost_while_state_waits_for_a_page_gives_the_guest_back() {
    require!(Userfaultfd);
    let all = PageRun { block: BlockId(0), first: 0, count: 1 };
    // The first message of the destination that such a restore makes is the request, which gets nowhere.
    for after in (13..80).step_by(2) {
        let cut = Some(Cut { direction: Direction::ToCaller, after });
        let small = small(Mode::Postcopy);
        let limits = Limits { reconnect_window: Duration::ZERO, ..small.limits };
        let case = Case { cut, restore_reads: vec![all], limits, ..small };
        check(&migrate(&case, |_, _| {}));
    }
}

#[test]
fn a_destination_that_cannot_take_faults_refuses_before_anything_moves() {
    let no_postcopy = Some("load the module".to_owned());
    let ending = migrate(&Case { no_postcopy, ..small(Mode::Hybrid) }, |_, _| {});
    check(&ending);
    assert_eq!(failure(&ending), FailureCode::PreflightRefused);
    assert!(ending.record.error.unwrap().message.contains("load the module"));
    assert!(matches!(ending.destination, DestinationEnd::NeverRan(_)));
    assert_eq!(ending.record.ram.pages_sent, 0);
}
