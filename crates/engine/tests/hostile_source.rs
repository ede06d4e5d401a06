//! A destination against a source that breaks the protocol: the guest never runs, nothing panics.

use std::time::Duration;

use migrated_engine::destination::{
    Arrived, Destination, DestinationAction, DestinationConfig, DestinationEvent, Due, FaultAnswer,
};
use migrated_engine::{MigrationRecord, MigrationState};
use migrated_pages::{BlockId, PageRun, PageSet, RamBlock, RamLayout};
use migrated_wire::{
    FrameHead, FrameKind, GuestIdentity, PROTOCOL, PageSetPiece, PieceBits, PostcopyUse, ToDestination,
    VerifyWhen,
};

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
    destination.handle(NOW, DestinationEvent::Connected { version: PROTOCOL.min });
    destination
}

fn preflight(identity: GuestIdentity, epoch: u64, channels: u16, verify: VerifyWhen) -> ToDestination {
    let postcopy = PostcopyUse::Allowed;
    ToDestination::Preflight {
        identity,
        epoch,
        channels,
        verify,
        postcopy,
        guest_clock: None,
        reconnect_window_ms: 0,
    }
}

/// A destination whose source has said what it will send, on one channel.
fn receiving(verify: VerifyWhen) -> Destination {
    let mut destination = connected();
    say(&mut destination, preflight(identity(), EPOCH, 1, verify));
    assert_eq!(destination.state(), MigrationState::Receiving);
    while destination.poll_action().is_some() {}
    destination
}

fn run(first: u64, count: u64) -> PageRun {
    PageRun { block: BlockId(0), first, count }
}

fn say(destination: &mut Destination, message: ToDestination) {
    destination.handle(NOW, DestinationEvent::Message(message));
}

/// A frame of these pages is placed.
fn place(destination: &mut Destination, runs: &[PageRun]) {
    destination.begin_placing();
    assert!(!destination.placed(NOW, 0, runs.iter().copied()), "there is nothing to be done about it");
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
    place(&mut destination, &[run(0, 7)]);
    say(&mut destination, ToDestination::Finish { iteration: 1, sections: 0 });
    destination.handle(NOW, DestinationEvent::Marker { channel: 0, iteration: 1, pages: 7 });
    assert_failed(destination);
}

#[test]
fn the_same_page_twice_is_not_two_pages() {
    let mut destination = receiving(VerifyWhen::Off);
    place(&mut destination, &[run(0, 4), run(0, 4)]);
    say(&mut destination, ToDestination::Finish { iteration: 1, sections: 0 });
    destination.handle(NOW, DestinationEvent::Marker { channel: 0, iteration: 1, pages: 8 });
    assert_failed(destination);
}

#[test]
fn counts_that_do_not_match_end_it() {
    let mut destination = receiving(VerifyWhen::Off);
    place(&mut destination, &[run(0, 8)]);
    destination.handle(NOW, DestinationEvent::Marker { channel: 0, iteration: 1, pages: 9 });
    assert_failed(destination);

    let mut destination = receiving(VerifyWhen::Off);
    place(&mut destination, &[run(0, 8)]);
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
        place(&mut destination, &[run(0, 8)]);
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

fn missing(first: u64, count: u64) -> Vec<ToDestination> {
    let mut set = PageSet::empty(&identity().layout);
    set.insert(run(first, count));
    PageSetPiece::cut(&set, &identity().layout).into_iter().map(ToDestination::Missing).collect()
}

/// A destination that runs a guest of which nothing is here.
fn following() -> Destination {
    let mut destination = receiving(VerifyWhen::Off);
    missing(0, 8).into_iter().for_each(|piece| say(&mut destination, piece));
    say(&mut destination, ToDestination::MissingSent { pages: 8 });
    destination.handle(NOW, DestinationEvent::Armed);
    say(&mut destination, ToDestination::Finish { iteration: 0, sections: 0 });
    destination.handle(NOW, DestinationEvent::Restored(NOW));
    say(&mut destination, ToDestination::Commit { epoch: EPOCH });
    destination.handle(NOW, DestinationEvent::CommitRecorded);
    destination.handle(NOW, DestinationEvent::Started(NOW));
    assert_eq!(destination.state(), MigrationState::PostcopyActive);
    destination
}

/// The guest runs on; the link is given up and nothing else.
fn assert_paused(mut destination: Destination) {
    assert_eq!(destination.state(), MigrationState::PostcopyPaused);
    assert!(destination.outcome().is_none() && destination.is_committed());
    let actions: Vec<_> = std::iter::from_fn(|| destination.poll_action()).collect();
    assert!(actions.contains(&DestinationAction::HangUp), "{actions:?}");
    assert!(!actions.contains(&DestinationAction::Destroy), "{actions:?}");
}

#[test]
fn missing_pages_are_named_once_within_ram_and_counted() {
    let stretch = |first, pages| {
        let bits = PieceBits::Runs(vec![0, 8].into());
        ToDestination::Missing(PageSetPiece { block: BlockId(0), first, pages, bits })
    };
    for messages in [
        vec![stretch(0, 9)],
        vec![stretch(4, 8)],
        [missing(0, 4), missing(3, 2)].concat(),
        [missing(0, 4), vec![ToDestination::MissingSent { pages: 5 }]].concat(),
        [missing(0, 4), vec![ToDestination::MissingSent { pages: 4 }], missing(3, 1)].concat(),
        vec![ToDestination::MissingSent { pages: 0 }],
        // Not all of the rest was ever sent.
        [
            missing(0, 4),
            vec![
                ToDestination::MissingSent { pages: 4 },
                ToDestination::Finish { iteration: 0, sections: 0 },
            ],
        ]
        .concat(),
        [missing(0, 8), vec![ToDestination::Finish { iteration: 0, sections: 0 }]].concat(),
    ] {
        let mut destination = receiving(VerifyWhen::Off);
        messages.into_iter().for_each(|message| say(&mut destination, message));
        assert_failed(destination);
    }
}

#[test]
fn pages_follow_only_a_guest_for_which_that_was_agreed() {
    let mut destination = connected();
    let message = |postcopy, verify| ToDestination::Preflight {
        identity: identity(),
        epoch: EPOCH,
        channels: 1,
        verify,
        postcopy,
        guest_clock: None,
        reconnect_window_ms: 0,
    };
    say(&mut destination, message(PostcopyUse::Never, VerifyWhen::Off));
    missing(0, 8).into_iter().for_each(|piece| say(&mut destination, piece));
    assert_failed(destination);

    let mut destination = connected();
    say(&mut destination, message(PostcopyUse::Required, VerifyWhen::Before));
    assert_failed(destination);
}

#[test]
fn a_page_that_comes_again_is_not_placed_again() {
    let mut destination = following();
    let head = FrameHead { kind: FrameKind::Pages, iteration: 1, runs: 1, pages: 0 };
    assert_eq!(destination.admit(0, &head).unwrap(), Due::Following);
    let mut claimed = Vec::new();
    destination.claim([run(0, 4)], &mut claimed);
    destination.claim([run(2, 4)], &mut claimed);
    assert_eq!(claimed, [run(0, 4), run(4, 2)], "while it is being placed");
    assert!(destination.fault(NOW, BlockId(0), 3, 1) == FaultAnswer::Waits);
    while destination.poll_action().is_some() {}
    assert!(!destination.placed_claims(NOW, Arrived::default(), claimed.drain(..)));
    destination.claim([run(0, 7), run(0, 7)], &mut claimed);
    assert_eq!(claimed, [run(6, 1)], "and when it was");
    assert!(destination.fault(NOW, BlockId(0), 3, 1) == FaultAnswer::Here);
    assert_eq!(destination.record(NOW).postcopy.unwrap().pages_duplicate, 2 + 13);
}

#[test]
fn only_pages_of_this_link_follow() {
    let destination = following();
    let head = |kind, iteration| FrameHead { kind, iteration, runs: 1, pages: 0 };
    assert!(destination.admit_urgent(&head(FrameKind::Pages, 1)).is_ok());
    for wrong in [head(FrameKind::Pages, 2), head(FrameKind::Hashes, 1), FrameHead::marker(1, 0)] {
        assert!(destination.admit(0, &wrong).is_err() && destination.admit_urgent(&wrong).is_err());
    }
    let early = receiving(VerifyWhen::Off);
    assert!(early.admit_urgent(&head(FrameKind::Pages, 1)).is_err(), "nothing follows yet");
}

#[test]
fn a_source_that_leaves_before_all_pages_came_is_a_lost_link() {
    for event in [
        DestinationEvent::Message(ToDestination::Goodbye),
        DestinationEvent::Message(ToDestination::Abort { reason: "changed my mind".into() }),
        DestinationEvent::Message(ToDestination::Commit { epoch: EPOCH }),
        DestinationEvent::Message(ToDestination::Recover { epoch: EPOCH, iteration: 2 }),
        DestinationEvent::PagesLost("eof".into()),
        DestinationEvent::LinkLost("eof".into()),
    ] {
        let mut destination = following();
        destination.handle(NOW, event);
        assert_paused(destination);
    }
    for (epoch, iteration) in [(EPOCH + 1, 2), (EPOCH, 1), (EPOCH, u32::MAX)] {
        let mut destination = following();
        destination.handle(NOW, DestinationEvent::LinkLost("cut".into()));
        destination.handle(NOW, DestinationEvent::Reconnected { version: PROTOCOL.min });
        assert_eq!(destination.state(), MigrationState::Recovering);
        say(&mut destination, ToDestination::Recover { epoch, iteration });
        assert_paused(destination);
    }
}
