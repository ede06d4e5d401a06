//! A destination against a source that breaks the protocol: the guest never runs, nothing panics.

use std::time::Duration;

use migrated_engine::destination::{Destination, DestinationAction, DestinationConfig, DestinationEvent};
use migrated_engine::{MigrationRecord, MigrationState};
use migrated_pages::{BlockId, PageRun, RamBlock, RamLayout};
use migrated_wire::{FrameHead, FrameKind, GuestIdentity, PostcopyUse, ToDestination, VerifyWhen};

const EPOCH: u64 = 1;
const NOW: Duration = Duration::ZERO;

fn identity() -> GuestIdentity {
    let block = RamBlock { name: "ram0".into(), guest_base: 0, pages: 8 };
    GuestIdentity {
        layout: RamLayout::new(vec![block]).unwrap(),
        sections: Vec::new(),
        cpu: Vec::new().into(),
    }
}

/// A destination to which a source has connected.
fn connected() -> Destination {
    let config = DestinationConfig {
        identity: identity(),
        epoch: EPOCH,
        rehearsal: NOW,
        postcopy: Ok(()),
        patience: Duration::from_secs(1),
        peer: "hostile".into(),
    };
    let mut destination = Destination::new(config, MigrationRecord::default(), NOW);
    destination.handle(NOW, DestinationEvent::Connected);
    destination
}

fn preflight(identity: GuestIdentity, epoch: u64, channels: u16, verify: VerifyWhen) -> ToDestination {
    let postcopy = PostcopyUse::Allowed;
    ToDestination::Preflight { identity, epoch, channels, verify, postcopy, guest_clock: None }
}

/// A destination whose source has said what it will send, on one channel.
fn receiving(verify: VerifyWhen) -> Destination {
    let mut destination = connected();
    say(&mut destination, preflight(identity(), EPOCH, 1, verify));
    assert_eq!(destination.state(), MigrationState::Receiving);
    destination
}

fn run(first: u64, count: u64) -> PageRun {
    PageRun { block: BlockId(0), first, count }
}

fn say(destination: &mut Destination, message: ToDestination) {
    destination.handle(NOW, DestinationEvent::Message(message));
}

/// The guest was destroyed and nothing was done that would run it.
fn assert_failed(mut destination: Destination) {
    assert_eq!(destination.state(), MigrationState::Failed);
    let actions: Vec<_> = std::iter::from_fn(|| destination.poll_action()).collect();
    assert!(actions.contains(&DestinationAction::Destroy), "{actions:?}");
    assert!(!actions.contains(&DestinationAction::Start), "{actions:?}");
    assert!(!actions.iter().any(|a| matches!(a, DestinationAction::RecordCommit(_))), "{actions:?}");
}

#[test]
fn an_end_without_all_pages_is_no_end() {
    let mut destination = receiving(VerifyWhen::Off);
    destination.placed(0, [run(0, 7)]);
    say(&mut destination, ToDestination::Finish { iteration: 1, sections: 0 });
    destination.handle(NOW, DestinationEvent::Marker { channel: 0, iteration: 1, pages: 7 });
    assert_failed(destination);
}

#[test]
fn the_same_page_twice_is_not_two_pages() {
    let mut destination = receiving(VerifyWhen::Off);
    destination.placed(0, [run(0, 4), run(0, 4)]);
    say(&mut destination, ToDestination::Finish { iteration: 1, sections: 0 });
    destination.handle(NOW, DestinationEvent::Marker { channel: 0, iteration: 1, pages: 8 });
    assert_failed(destination);
}

#[test]
fn counts_that_do_not_match_end_it() {
    let mut destination = receiving(VerifyWhen::Off);
    destination.placed(0, [run(0, 8)]);
    destination.handle(NOW, DestinationEvent::Marker { channel: 0, iteration: 1, pages: 9 });
    assert_failed(destination);

    let mut destination = receiving(VerifyWhen::Off);
    destination.placed(0, [run(0, 8)]);
    say(&mut destination, ToDestination::Finish { iteration: 1, sections: 2 });
    destination.handle(NOW, DestinationEvent::Marker { channel: 0, iteration: 1, pages: 8 });
    assert_failed(destination);
}

#[test]
fn a_commit_is_taken_only_when_everything_is_ready_and_equal() {
    let mut early = receiving(VerifyWhen::Off);
    say(&mut early, ToDestination::Commit { epoch: EPOCH });
    assert_failed(early);

    for (verify, epoch) in [(VerifyWhen::Off, EPOCH + 1), (VerifyWhen::Before, EPOCH)] {
        let mut destination = receiving(verify);
        destination.placed(0, [run(0, 8)]);
        say(&mut destination, ToDestination::Finish { iteration: 1, sections: 0 });
        destination.handle(NOW, DestinationEvent::Marker { channel: 0, iteration: 1, pages: 8 });
        destination.handle(NOW, DestinationEvent::Restored(NOW));
        assert_eq!(destination.state(), MigrationState::Ready);
        say(&mut destination, ToDestination::Commit { epoch });
        assert_failed(destination);
    }
}

#[test]
fn frames_come_only_when_they_are_due() {
    let destination = receiving(VerifyWhen::Off);
    let head = |kind, iteration| FrameHead { kind, iteration, runs: 1, pages: 0 };
    assert!(destination.admit(0, &head(FrameKind::Pages, 1)).is_ok());
    assert!(destination.admit(0, &head(FrameKind::Pages, 2)).is_err(), "another iteration");
    assert!(destination.admit(1, &head(FrameKind::Pages, 1)).is_err(), "a channel that was not announced");
    assert!(destination.admit(0, &head(FrameKind::Hashes, 1)).is_err(), "hashes before the end");
}

#[test]
fn a_guest_that_differs_from_the_prepared_one_is_refused_with_all_reasons() {
    let mut destination = connected();
    let other = GuestIdentity { cpu: vec![1].into(), ..identity() };
    say(&mut destination, preflight(other, EPOCH + 1, 0, VerifyWhen::Off));
    let actions: Vec<_> = std::iter::from_fn(|| destination.poll_action()).collect();
    let refused = actions.iter().find_map(|action| match action {
        DestinationAction::Send(migrated_wire::ToSource::PreflightRefused { reasons }) => Some(reasons),
        _ => None,
    });
    assert_eq!(refused.map(Vec::len), Some(3), "{actions:?}");
    assert_eq!(destination.state(), MigrationState::Failed);
}
