//! What comes to the source for a guest that has left: when it is taken, what of it is sent, and what the destination
//! does with it. That no frame is ever seen twice, or at the wrong end, the pair's property test checks.

use std::time::Duration;

use migrated_engine::destination::{Destination, DestinationAction, DestinationConfig, DestinationEvent};
use migrated_engine::source::{Next, Source, SourceAction, SourceConfig, SourceEvent};
use migrated_engine::{Compression, Limits, MigrationRecord, MigrationState, Mode, policy_for};
use migrated_pages::{PageSet, RamBlock, RamLayout};
use migrated_wire::{
    CommitOutcome, FIRST_PACKET_SINCE, GuestIdentity, LATE_INPUT_SINCE, LateInput, LateInputs,
    MAX_LATE_BYTES, MAX_LATE_INPUT, PROTOCOL, PageSetPiece, PostcopyUse, ToDestination, ToSource, VerifyWhen,
};

const EPOCH: u64 = 1;
const NOW: Duration = Duration::ZERO;
const PAGES: u64 = 8;
const TAKE: SourceAction = SourceAction::TakeLateInput { limit_bytes: MAX_LATE_BYTES };

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn identity() -> GuestIdentity {
    let block = RamBlock { name: "ram0".into(), guest_base: 0, pages: PAGES };
    let layout = RamLayout::new(vec![block]).unwrap();
    GuestIdentity { layout, sections: Vec::new(), cpu: Vec::new().into() }
}

fn frame(number: u8) -> LateInput {
    LateInput { device: 3, data: vec![number; 60].into() }
}

fn inputs(all: &[LateInput]) -> LateInputs {
    let mut inputs = LateInputs::default();
    all.iter().for_each(|input| inputs.push(input.clone()).unwrap());
    inputs
}

fn say(source: &mut Source, now: Duration, message: ToSource) {
    source.handle(now, SourceEvent::Message(message));
}

fn actions(source: &mut Source) -> Vec<SourceAction> {
    std::iter::from_fn(|| source.poll_action()).collect()
}

/// A source of which the commit is on its way, over a link of this protocol version.
fn committing(version: u16) -> Source {
    let config = SourceConfig {
        identity: identity(),
        epoch: EPOCH,
        mode: Mode::Postcopy,
        channels: 1,
        verify: VerifyWhen::Off,
        compression: Compression::Auto,
        limits: Limits::default(),
        guest_clock: None,
        peer: "destination".into(),
    };
    let mut source = Source::new(config, MigrationRecord::default(), policy_for(Mode::Postcopy), NOW);
    source.handle(NOW, SourceEvent::Connected { version });
    say(&mut source, NOW, ToSource::PreflightOk { rehearsal_us: 0, no_postcopy: None });
    say(&mut source, NOW, ToSource::Armed { pages: PAGES });
    source.handle(NOW, SourceEvent::Paused);
    source.handle(NOW, SourceEvent::StateSaved(Vec::new()));
    say(&mut source, NOW, ToSource::Ready { import_us: 0, received: 0 });
    assert_eq!(source.state(), MigrationState::Switchover);
    assert!(!actions(&mut source).contains(&TAKE));
    source
}

/// A source whose guest runs at the destination, and that has been told so at the beginning of time.
fn following(version: u16) -> Source {
    let mut source = committing(version);
    say(&mut source, NOW, ToSource::Running { epoch: EPOCH, resume_us: 0 });
    assert_eq!(source.state(), MigrationState::PostcopyActive);
    source
}

/// All pages have arrived.
fn settle(source: &mut Source, now: Duration) {
    while matches!(source.next_batch(now, 0, &mut Vec::new()), Next::Pages { .. }) {}
    say(source, now, ToSource::AllPagesReceived { pages: PAGES });
    assert_eq!(source.state(), MigrationState::Settling);
}

const SUMMARY: ToSource = ToSource::Summary { wire_received: 0, guest_gap_us: None };

#[test]
fn a_source_looks_behind_what_the_commit_needs_then_again_and_again_for_half_a_second() {
    let mut source = following(LATE_INPUT_SINCE);
    let first = actions(&mut source);
    let position = |action| first.iter().position(|is| *is == action);
    assert!(position(SourceAction::Wake) < position(TAKE), "{first:?}");
    source.handle(NOW, SourceEvent::LateInput(Vec::new()));
    let mut looks = 0;
    for now in (1..1000).map(ms) {
        let due = source.deadline().is_some_and(|at| at <= now);
        source.handle(now, SourceEvent::Tick);
        let does = actions(&mut source);
        if does.contains(&TAKE) {
            assert!(due, "the driver was told when to come");
            looks += 1;
            source.handle(now, SourceEvent::LateInput(Vec::new()));
        }
        assert!(!does.iter().any(|is| matches!(is, SourceAction::Send(ToDestination::LateInput(_)))));
    }
    assert_eq!(looks, 99, "every 5 ms, the first was at the beginning");
    assert!(source.deadline() > Some(ms(1000)), "nothing to look for any more");
    settle(&mut source, ms(1000));
    say(&mut source, ms(1000), SUMMARY);
    assert_eq!(source.state(), MigrationState::Completed);
    assert!(!actions(&mut source).contains(&TAKE));
}

#[test]
fn what_is_found_is_sent_and_the_last_of_it_before_the_end() {
    let mut source = following(LATE_INPUT_SINCE);
    actions(&mut source);
    source.handle(NOW, SourceEvent::LateInput(vec![frame(1), frame(2)]));
    let sent = SourceAction::Send(ToDestination::LateInput(inputs(&[frame(1), frame(2)])));
    assert_eq!(actions(&mut source), [sent]);

    settle(&mut source, ms(7));
    let settling = actions(&mut source);
    assert!(settling.contains(&TAKE) && !settling.contains(&SourceAction::Retire), "{settling:?}");
    source.handle(ms(7), SourceEvent::LateInput(Vec::new()));
    say(&mut source, ms(9), SUMMARY);
    assert_eq!(actions(&mut source), [TAKE]);
    source.handle(ms(9), SourceEvent::LateInput(vec![frame(3)]));
    assert_eq!(source.state(), MigrationState::Completed);
    let last = [
        SourceAction::Send(ToDestination::LateInput(inputs(&[frame(3)]))),
        SourceAction::Send(ToDestination::Goodbye),
        SourceAction::Retire,
    ];
    assert_eq!(actions(&mut source)[..3], last);
    let record = source.record(ms(9));
    assert_eq!(
        (record.late_frames.frames, record.late_frames.bytes, record.late_frames.dropped),
        (3, 180, 0)
    );
    assert_eq!(record.total_ms, 7.0, "late input is no part of the migration");
}

#[test]
fn a_peer_that_knows_no_late_input_gets_none() {
    let mut source = following(LATE_INPUT_SINCE - 1);
    settle(&mut source, ms(6));
    say(&mut source, ms(7), SUMMARY);
    assert_eq!(source.state(), MigrationState::Completed);
    assert!(!actions(&mut source).contains(&TAKE));
}

#[test]
fn nothing_is_taken_while_the_guest_may_still_run_here() {
    let mut source = committing(PROTOCOL.max);
    source.handle(ms(6), SourceEvent::LinkLost("cut".into()));
    assert_eq!(source.state(), MigrationState::Indeterminate);
    source.handle(ms(20), SourceEvent::Tick);
    source.handle(ms(20), SourceEvent::Outcome(None));
    source.handle(ms(200), SourceEvent::Tick);
    assert!(!actions(&mut source).contains(&TAKE));
    source.handle(ms(300), SourceEvent::Outcome(Some(CommitOutcome::NeverRan)));
    source.handle(ms(300), SourceEvent::Resumed);
    assert!(!actions(&mut source).contains(&TAKE));
    assert_eq!(source.state(), MigrationState::Failed);
}

#[test]
fn what_was_taken_when_the_link_broke_is_lost_and_what_comes_later_goes_by_the_next_link() {
    let answer = |source: &mut Source, now| {
        source.handle(now, SourceEvent::Connected { version: PROTOCOL.max });
        for piece in PageSetPiece::cut(&PageSet::full(&identity().layout), &identity().layout) {
            say(source, now, ToSource::Received(piece));
        }
        say(source, now, ToSource::ReceivedSent { pages: PAGES });
        assert_eq!(source.state(), MigrationState::PostcopyActive);
    };
    let mut source = following(PROTOCOL.max);
    source.handle(ms(1), SourceEvent::LinkLost("cut".into()));
    source.handle(ms(1), SourceEvent::LateInput(vec![frame(1)]));
    source.handle(ms(200), SourceEvent::Tick);
    let meanwhile = actions(&mut source);
    assert_eq!(meanwhile.iter().filter(|is| **is == TAKE).count(), 1, "that of the beginning: {meanwhile:?}");
    answer(&mut source, ms(300));
    assert!(actions(&mut source).contains(&TAKE));
    source.handle(ms(300), SourceEvent::LateInput(vec![frame(2)]));
    assert_eq!(actions(&mut source), [SourceAction::Send(ToDestination::LateInput(inputs(&[frame(2)])))]);
    let counts = source.record(ms(300)).late_frames;
    assert_eq!((counts.frames, counts.dropped), (1, 1));

    source.handle(ms(301), SourceEvent::LinkLost("cut".into()));
    answer(&mut source, ms(500));
    assert!(!actions(&mut source).contains(&TAKE), "by now the network knows where the guest is");
}

#[test]
fn a_switch_that_turned_out_well_hands_on_what_came_meanwhile() {
    let mut source = committing(PROTOCOL.max);
    source.handle(ms(1), SourceEvent::LinkLost("cut".into()));
    source.handle(ms(100), SourceEvent::Outcome(Some(CommitOutcome::Committed)));
    assert_eq!(source.state(), MigrationState::PostcopyPaused);
    source.handle(ms(599), SourceEvent::Connected { version: PROTOCOL.max });
    say(&mut source, ms(599), ToSource::ReceivedSent { pages: 0 });
    assert_eq!(source.state(), MigrationState::PostcopyActive);
    assert_eq!(actions(&mut source).iter().filter(|is| **is == TAKE).count(), 1);
}

#[test]
fn a_flood_is_cut_off_at_both_ends() {
    let mut source = following(PROTOCOL.max);
    actions(&mut source);
    let long = LateInput { device: 0, data: vec![0; MAX_LATE_INPUT + 1].into() };
    let mut sent = Vec::new();
    for _ in 0..20 {
        source.handle(NOW, SourceEvent::LateInput([vec![frame(1); 300], vec![long.clone()]].concat()));
        sent.extend(actions(&mut source).into_iter().map(|action| match action {
            SourceAction::Send(ToDestination::LateInput(inputs)) => inputs,
            other => panic!("{other:?}"),
        }));
    }
    assert_eq!(sent.iter().map(|inputs| inputs.inputs().len()).sum::<usize>(), 4096);
    let counts = source.record(NOW).late_frames;
    assert_eq!((counts.frames, counts.dropped), (4096, 20 * 301 - 4096));

    let mut destination = running();
    for _ in 0..20 {
        tell(&mut destination, ToDestination::LateInput(inputs(&vec![frame(1); 300])));
    }
    let delivered = deliveries(&mut destination);
    assert_eq!(delivered.iter().map(Vec::len).sum::<usize>(), 4096);
    let counts = destination.record(NOW).late_frames;
    assert_eq!((counts.frames, counts.bytes, counts.dropped), (4096, 4096 * 60, 6000 - 4096));
    assert_eq!(destination.state(), MigrationState::Running);
}

fn tell(destination: &mut Destination, message: ToDestination) {
    destination.handle(NOW, DestinationEvent::Message(message));
}

fn deliveries(destination: &mut Destination) -> Vec<Vec<LateInput>> {
    std::iter::from_fn(|| destination.poll_action())
        .filter_map(|action| match action {
            DestinationAction::Deliver(inputs) => Some(inputs),
            _ => None,
        })
        .collect()
}

/// A destination whose source has said what it will send, over a link of this protocol version.
fn receiving(version: u16) -> Destination {
    let config = DestinationConfig {
        identity: identity(),
        epoch: EPOCH,
        rehearsal: NOW,
        postcopy: Ok(()),
        patience: Duration::from_secs(1),
        peer: "source".into(),
    };
    let mut destination = Destination::new(config, MigrationRecord::default(), NOW);
    destination.handle(NOW, DestinationEvent::Connected { version });
    tell(
        &mut destination,
        ToDestination::Preflight {
            identity: identity(),
            epoch: EPOCH,
            channels: 1,
            verify: VerifyWhen::Off,
            postcopy: PostcopyUse::Allowed,
            guest_clock: None,
            reconnect_window_ms: 0,
        },
    );
    assert_eq!(destination.state(), MigrationState::Receiving);
    while destination.poll_action().is_some() {}
    destination
}

/// A destination that waits for the commit of a guest that is all there, or of one whose pages follow.
fn ready(version: u16, follows: bool) -> Destination {
    let mut destination = receiving(version);
    let mut iteration = 1;
    if follows {
        let all = PageSet::full(&identity().layout);
        for piece in PageSetPiece::cut(&all, &identity().layout) {
            tell(&mut destination, ToDestination::Missing(piece));
        }
        tell(&mut destination, ToDestination::MissingSent { pages: PAGES });
        destination.handle(NOW, DestinationEvent::Armed);
        iteration = 0;
    } else {
        destination.begin_placing();
        let all = PageSet::full(&identity().layout);
        assert!(!destination.placed(NOW, 0, all.runs()));
        destination.handle(NOW, DestinationEvent::Marker { channel: 0, iteration, pages: PAGES });
    }
    tell(&mut destination, ToDestination::Finish { iteration, sections: 0 });
    destination.handle(NOW, DestinationEvent::Restored(NOW));
    assert_eq!(destination.state(), MigrationState::Ready, "{:?}", destination.record(NOW).error);
    destination
}

fn start(mut destination: Destination) -> Destination {
    tell(&mut destination, ToDestination::Commit { epoch: EPOCH });
    destination.handle(NOW, DestinationEvent::CommitRecorded);
    destination.handle(NOW, DestinationEvent::Started(NOW));
    destination
}

fn running() -> Destination {
    let mut destination = start(ready(PROTOCOL.max, false));
    assert_eq!(destination.state(), MigrationState::Running);
    assert!(deliveries(&mut destination).is_empty());
    destination
}

#[test]
fn a_running_guest_gets_late_input_whether_its_pages_are_there_or_not() {
    for (follows, state) in [(false, MigrationState::Running), (true, MigrationState::PostcopyActive)] {
        let mut destination = start(ready(PROTOCOL.max, follows));
        assert_eq!(destination.state(), state);
        tell(&mut destination, ToDestination::LateInput(inputs(&[frame(1), frame(2)])));
        assert_eq!(deliveries(&mut destination), [vec![frame(1), frame(2)]]);
        assert_eq!(destination.state(), state);
    }
}

#[test]
fn late_input_before_the_commit_breaks_the_protocol() {
    for destination in [receiving(PROTOCOL.max), ready(PROTOCOL.max, false), ready(PROTOCOL.max, true)] {
        let mut destination = destination;
        tell(&mut destination, ToDestination::LateInput(inputs(&[frame(1)])));
        assert_eq!(destination.state(), MigrationState::Failed);
        assert!(deliveries(&mut destination).is_empty());
        assert_eq!(destination.record(NOW).late_frames.frames, 0);
    }
}

#[test]
fn a_source_learns_of_the_first_packet_if_it_knows_what_that_is() {
    for version in [FIRST_PACKET_SINCE - 1, FIRST_PACKET_SINCE] {
        let mut destination = start(ready(version, false));
        while destination.poll_action().is_some() {}
        let observed = DestinationEvent::Observed {
            wire_received: 1,
            guest_gap_us: Some(2),
            first_packet_us: Some(900),
        };
        destination.handle(NOW, observed);
        assert_eq!(destination.record(NOW).first_packet_us, Some(900.0));
        let mut source = following(version);
        settle(&mut source, NOW);
        while let Some(action) = destination.poll_action() {
            let DestinationAction::Send(message) = action else { panic!("{action:?}") };
            say(&mut source, NOW, message);
        }
        let expected = (version >= FIRST_PACKET_SINCE).then_some(900.0);
        assert_eq!(source.record(NOW).first_packet_us, expected);
        assert_eq!(source.record(NOW).guest_gap_us, Some(2.0));
    }
}
