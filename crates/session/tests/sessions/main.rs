//! Both sessions with real threads and real memory, over the in-memory transport and TCP.

mod compression;
mod guest;
mod late;
mod postcopy;
mod precopy;
mod relay;
mod rig;
mod vcpus;

use std::time::Duration;

use migrated_engine::{FailureCode, Limits, MigrationState, OnTimeout};
use migrated_session::{DestinationEnd, SourceEnd};
use migrated_testkit::wait_until;
use migrated_transport::memory::{Cut, Direction};
use migrated_wire::VerifyWhen;

use rig::{Case, EPOCH, Ending, migrate};

/// Where a control channel's cut is tried: past the hello and its answer, and to beyond the last message of a
/// small guest's conversation.
const SWEEP: [(Direction, std::ops::Range<u64>); 2] =
    [(Direction::ToListener, 66..760), (Direction::ToCaller, 13..400)];

/// What must hold of every ending: one copy runs, nowhere were there two, and who has it knows it.
fn check(ending: &Ending) {
    assert_eq!(ending.runners.worst(), 1, "two copies ran");
    assert_eq!(ending.runners.now(), 1, "exactly one copy runs");
    match &ending.source {
        SourceEnd::Moved => {
            assert_eq!(ending.committed, Some(EPOCH));
            assert!(matches!(ending.destination, DestinationEnd::Runs), "{:?}", ending.destination);
            let arrived = ending.destination_ram.as_ref().expect("the destination ran");
            let mut expected = ending.source_ram.clone();
            vcpus::apply(&ending.writes, &mut expected);
            assert!(
                *arrived == expected,
                "the destination has the source's last memory and what it wrote since"
            );
        }
        SourceEnd::Kept(_, failure) => {
            assert!(ending.destination_ram.is_none(), "both ends have the guest: {failure:?}");
        }
        SourceEnd::Stuck(failure) => panic!("a fake guest always resumes: {failure:?}"),
    }
}

fn failure(ending: &Ending) -> FailureCode {
    match &ending.source {
        SourceEnd::Kept(_, failure) => failure.code,
        other => panic!("expected a failure, got {other:?}"),
    }
}

#[test]
fn a_guest_moves_whole_whatever_is_compared_and_however_many_channels_there_are() {
    for verify in [VerifyWhen::Off, VerifyWhen::Before, VerifyWhen::After] {
        for channels in [1, 2, 5] {
            let ending = migrate(&Case { verify, channels, ..Case::default() }, |_, _| {});
            check(&ending);
            let record = &ending.record;
            assert_eq!(record.state, Some(MigrationState::Completed), "{:?}", record.error);
            match (&record.verified, verify) {
                (None, VerifyWhen::Off) => {}
                (Some(found), _) => assert_eq!((found.pages, found.mismatches), (300, 0)),
                (None, _) => panic!("{verify:?} compared nothing: {:?}", record.decisions),
            }
            assert_eq!(record.guest_gap_us, Some(7.0));
            assert!(record.ram.pages_zero > 0 && record.ram.pages_sent > 0, "{:?}", record.ram);
            assert!(record.wire_bytes.sent > record.ram.pages_sent * 4096);
            assert_eq!(ending.destination_record.state, Some(MigrationState::Completed));
        }
    }
}

#[test]
fn wherever_the_control_channel_breaks_one_copy_runs() {
    let calm = migrate(&Case::default(), |_, _| {});
    check(&calm);
    let (mut endings, mut reconnected) = (Vec::new(), 0);
    for (direction, range) in SWEEP {
        for after in range.step_by(3) {
            let case = Case { cut: Some(Cut { direction, after }), pages: 40, ..Case::default() };
            let ending = migrate(&case, |_, _| {});
            check(&ending);
            let asked = ending.record.decisions.iter().any(|d| d.decision == "ask_destination");
            let moved = matches!(ending.source, SourceEnd::Moved);
            reconnected += usize::from(moved && !ending.record.reconnects.is_empty());
            endings.push((asked, moved));
        }
    }
    // The sweep met each kind of end, so it went over the commit and its ack.
    for kind in [(false, false), (false, true), (true, true)] {
        assert!(endings.contains(&kind), "no ending of kind {kind:?}");
    }
    assert!(reconnected > 0, "no cut in pre-copy");
}

#[test]
fn a_commit_that_cannot_be_recorded_gives_the_guest_back() {
    let ending = migrate(&Case { record_fails: true, ..Case::default() }, |_, _| {});
    check(&ending);
    assert_eq!(failure(&ending), FailureCode::CommitRefused);
    assert_eq!(ending.committed, None);
}

#[test]
fn state_that_does_not_fit_gives_the_guest_back() {
    let ending = migrate(&Case { restore_fails: true, ..Case::default() }, |_, _| {});
    check(&ending);
    assert_eq!(failure(&ending), FailureCode::DestinationFailed);
    let error = ending.record.error.unwrap();
    assert!(error.message.contains("made to fail"), "the reason reaches the source: {}", error.message);
}

#[test]
fn another_attempt_than_the_prepared_one_is_refused_before_any_page() {
    let ending = migrate(&Case { destination_epoch: EPOCH + 1, ..Case::default() }, |_, _| {});
    check(&ending);
    assert_eq!(failure(&ending), FailureCode::PreflightRefused);
    assert_eq!(ending.record.ram.pages_sent, 0);
}

#[test]
fn cancel_in_precopy_leaves_the_guest_where_it_is() {
    // At this rate the guest would take minutes.
    let limits = Limits { bandwidth_bps: Some(80_000), ..Limits::default() };
    let ending = migrate(&Case { limits, ..Case::default() }, |source, _| {
        wait_until("pages flow", Duration::from_secs(30), || source.record().ram.pages_sent > 0);
        assert!(source.cancel());
    });
    check(&ending);
    assert_eq!(failure(&ending), FailureCode::Cancelled);
    assert_eq!(ending.record.state, Some(MigrationState::Cancelled));
}

#[test]
fn a_destination_that_is_asked_too_early_never_runs_the_guest() {
    let limits = Limits { bandwidth_bps: Some(80_000), ..Limits::default() };
    let ending = migrate(&Case { limits, ..Case::default() }, |source, destination| {
        wait_until("pages flow", Duration::from_secs(30), || source.record().ram.pages_sent > 0);
        assert_eq!(destination.resolve(EPOCH + 1), None, "nothing is known of another attempt");
        assert_eq!(destination.resolve(EPOCH), Some(migrated_wire::CommitOutcome::NeverRan));
    });
    check(&ending);
    assert!(matches!(failure(&ending), FailureCode::DestinationFailed | FailureCode::LinkLost));
    assert!(matches!(ending.destination, DestinationEnd::NeverRan(_)));
}

#[test]
fn a_guest_that_writes_faster_than_the_link_ends_as_was_declared() {
    for (on_timeout, moves) in [(OnTimeout::Cancel, false), (OnTimeout::Stop, true)] {
        let limits = Limits { max_downtime: Duration::from_nanos(1), on_timeout, ..Limits::default() };
        let ending = migrate(&Case { limits, writes_per_harvest: 2000, ..Case::default() }, |_, _| {});
        check(&ending);
        assert_eq!(matches!(ending.source, SourceEnd::Moved), moves, "{:?}", ending.record.error);
        if !moves {
            assert_eq!(failure(&ending), FailureCode::NotConverged);
        }
    }
}
