//! A source against a destination that breaks the protocol while pages follow the guest: the source never
//! runs the guest again, and never gives up its RAM, which may be the only copy.

use std::time::Duration;

use migrated_engine::source::{Next, Source, SourceAction, SourceConfig, SourceEvent};
use migrated_engine::{Compression, Limits, MigrationRecord, MigrationState, Mode, policy_for};
use migrated_pages::{BlockId, PageRun, PageSet, RamBlock, RamLayout};
use migrated_wire::{
    CommitOutcome, GuestIdentity, MAX_OUTSTANDING, PROTOCOL, PageSetPiece, PieceBits, ToSource, VerifyWhen,
};

const EPOCH: u64 = 1;
const NOW: Duration = Duration::ZERO;
const PAGES: u64 = 10_000;

fn layout() -> RamLayout {
    RamLayout::new(vec![RamBlock { name: "ram0".into(), guest_base: 0, pages: PAGES }]).unwrap()
}

fn run(first: u64, count: u64) -> PageRun {
    PageRun { block: BlockId(0), first, count }
}

fn say(source: &mut Source, message: ToSource) {
    source.handle(NOW, SourceEvent::Message(message));
}

/// A source that has asked for post-copy.
fn connected() -> Source {
    let identity = GuestIdentity { layout: layout(), sections: Vec::new(), cpu: Vec::new().into() };
    let config = SourceConfig {
        identity,
        epoch: EPOCH,
        mode: Mode::Postcopy,
        channels: 1,
        verify: VerifyWhen::Off,
        compression: Compression::Auto,
        limits: Limits::default(),
        guest_clock: None,
        peer: "hostile".into(),
    };
    let mut source = Source::new(config, MigrationRecord::default(), policy_for(Mode::Postcopy), NOW);
    source.handle(NOW, SourceEvent::Connected { version: PROTOCOL.min });
    source
}

/// A source whose guest runs at the destination, with every page still to follow.
fn following() -> Source {
    let mut source = connected();
    say(&mut source, ToSource::PreflightOk { rehearsal_us: 0, no_postcopy: None });
    say(&mut source, ToSource::Armed { pages: PAGES });
    source.handle(NOW, SourceEvent::Paused);
    source.handle(NOW, SourceEvent::StateSaved(Vec::new()));
    say(&mut source, ToSource::Ready { import_us: 0, received: 0 });
    assert_eq!(source.state(), MigrationState::Switchover, "{:?}", source.record(NOW).error);
    say(&mut source, ToSource::Running { epoch: EPOCH, resume_us: 0 });
    assert_eq!(source.state(), MigrationState::PostcopyActive);
    while source.poll_action().is_some() {}
    source
}

/// All pages have been handed out.
fn sent(mut source: Source) -> Source {
    while matches!(source.next_batch(NOW, 0, &mut Vec::new()), Next::Pages { .. }) {}
    source
}

fn actions(source: &mut Source) -> Vec<SourceAction> {
    std::iter::from_fn(|| source.poll_action()).collect()
}

/// The link was given up, and nothing else.
fn assert_paused(mut source: Source) -> Source {
    assert_eq!(source.state(), MigrationState::PostcopyPaused);
    let actions = actions(&mut source);
    assert!(actions.contains(&SourceAction::HangUp) && actions.contains(&SourceAction::Reconnect));
    assert!(!actions.contains(&SourceAction::Retire), "{actions:?}");
    assert!(!actions.contains(&SourceAction::Resume), "{actions:?}");
    assert_eq!(source.next_batch(NOW, 0, &mut Vec::new()), Next::Ended);
    assert_eq!(source.next_urgent(&mut Vec::new()), Next::Ended);
    source
}

#[test]
fn ram_is_kept_until_the_count_matches() {
    for count in [0, PAGES - 1, PAGES + 1, u64::MAX] {
        let mut source = sent(following());
        say(&mut source, ToSource::AllPagesReceived { pages: count });
        assert_paused(source);
    }
    let mut early = following();
    say(&mut early, ToSource::AllPagesReceived { pages: PAGES });
    assert_paused(early);

    let mut source = sent(following());
    say(&mut source, ToSource::AllPagesReceived { pages: PAGES });
    assert_eq!(source.state(), MigrationState::Settling);
    say(&mut source, ToSource::Summary { wire_received: 0, guest_gap_us: None });
    assert!(actions(&mut source).contains(&SourceAction::Retire));
    assert_eq!(source.state(), MigrationState::Completed);
}

#[test]
fn requests_that_no_destination_makes_harm_nothing() {
    let request = |epoch, pages| ToSource::PageRequest { epoch, pages };
    for wrong in [
        request(EPOCH + 1, vec![run(0, 1)]),
        request(EPOCH, vec![run(PAGES, 1)]),
        request(EPOCH, vec![run(0, 1), run(u64::MAX, 2)]),
        request(EPOCH, vec![run(0, 0)]),
        request(EPOCH, vec![run(0, u64::MAX); 3]),
        request(EPOCH, vec![run(0, 1); MAX_OUTSTANDING + 1]),
    ] {
        let mut source = following();
        say(&mut source, wrong);
        assert_eq!(assert_paused(source).record(NOW).remaining_pages, PAGES);
    }
}

#[test]
fn a_flood_of_requests_is_bounded_and_repetitions_cost_nothing() {
    let mut source = following();
    let request = |first, count| ToSource::PageRequest { epoch: EPOCH, pages: vec![run(first, count)] };
    for _ in 0..1000 {
        say(&mut source, request(7, 1));
    }
    assert_eq!(source.state(), MigrationState::PostcopyActive);
    let mut out = Vec::new();
    assert!(matches!(source.next_urgent(&mut out), Next::Pages { .. }));
    assert_eq!(out, [run(7, 1)]);
    assert_eq!(source.record(NOW).postcopy.unwrap().requests_duplicate, 999);
    say(&mut source, request(100, MAX_OUTSTANDING as u64));
    assert_eq!(source.state(), MigrationState::PostcopyActive);
    say(&mut source, request(9000, 1));
    assert_paused(source);
}

#[test]
fn a_request_after_completion_is_ignored() {
    let mut source = sent(following());
    say(&mut source, ToSource::AllPagesReceived { pages: PAGES });
    say(&mut source, ToSource::PageRequest { epoch: EPOCH, pages: vec![run(0, 1)] });
    assert_eq!(source.state(), MigrationState::Settling);
    assert_eq!(source.next_urgent(&mut Vec::new()), Next::Wait);
    say(&mut source, ToSource::Summary { wire_received: 0, guest_gap_us: None });
    say(&mut source, ToSource::PageRequest { epoch: EPOCH, pages: vec![run(0, 1)] });
    assert_eq!(source.state(), MigrationState::Completed);
}

#[test]
fn a_received_map_is_checked_and_what_it_lacks_is_sent() {
    let recovering = || {
        let mut source = sent(following());
        source.handle(NOW, SourceEvent::LinkLost("cut".into()));
        let mut source = assert_paused(source);
        source.handle(NOW, SourceEvent::Connected { version: PROTOCOL.min });
        assert_eq!(source.state(), MigrationState::Recovering);
        while source.poll_action().is_some() {}
        source
    };
    let piece = |first, pages, bits: Vec<u8>| {
        let bits = PieceBits::Runs(bits.into());
        ToSource::Received(PageSetPiece { block: BlockId(0), first, pages, bits })
    };
    for wrong in [
        vec![piece(0, PAGES + 1, vec![0, 1])],
        vec![piece(0, 1, vec![0, 2])],
        vec![piece(0, 1, vec![0, 1]), piece(0, 1, vec![0, 1])],
        vec![ToSource::ReceivedSent { pages: 1 }],
        vec![ToSource::AllPagesReceived { pages: PAGES }],
        vec![ToSource::PageRequest { epoch: EPOCH, pages: vec![run(0, 1); MAX_OUTSTANDING + 1] }],
    ] {
        let mut source = recovering();
        wrong.into_iter().for_each(|message| say(&mut source, message));
        assert_paused(source);
    }

    let mut source = recovering();
    let mut received = PageSet::full(&layout());
    received.remove(run(5000, 3));
    for piece in PageSetPiece::cut(&received, &layout()) {
        say(&mut source, ToSource::Received(piece));
    }
    // It overtakes the map's end.
    say(&mut source, ToSource::PageRequest { epoch: EPOCH, pages: vec![run(5001, 1)] });
    say(&mut source, ToSource::ReceivedSent { pages: PAGES - 3 });
    assert_eq!(source.state(), MigrationState::PostcopyActive);
    let mut out = Vec::new();
    assert_eq!(source.next_urgent(&mut out), Next::Pages { iteration: 2 });
    assert_eq!(out, [run(5001, 1)]);
    assert_eq!(source.record(NOW).remaining_pages, 2);
}

#[test]
fn a_paused_source_is_moved_by_no_answer_but_a_matching_count() {
    let mut source = following();
    source.handle(NOW, SourceEvent::LinkLost("cut".into()));
    let mut source = assert_paused(source);
    for outcome in [
        None,
        Some(CommitOutcome::Committed),
        Some(CommitOutcome::NeverRan),
        Some(CommitOutcome::Complete { pages: PAGES - 1 }),
    ] {
        source.handle(NOW, SourceEvent::Outcome(outcome));
        source.handle(NOW, SourceEvent::Cancel);
        assert_eq!(source.state(), MigrationState::PostcopyPaused);
        assert!(actions(&mut source).is_empty());
    }
    source.handle(NOW, SourceEvent::Outcome(Some(CommitOutcome::Complete { pages: PAGES })));
    assert_eq!(source.state(), MigrationState::Completed);
    assert!(actions(&mut source).contains(&SourceAction::Retire));
}

#[test]
fn a_destination_that_cannot_take_faults_is_refused_before_anything_moves() {
    let mut source = connected();
    let why = Some("no /dev/userfaultfd".to_owned());
    say(&mut source, ToSource::PreflightOk { rehearsal_us: 0, no_postcopy: why });
    let error = source.record(NOW).error.unwrap();
    assert_eq!((source.state(), error.code.as_str()), (MigrationState::Failed, "preflight_refused"));
    assert!(error.message.contains("/dev/userfaultfd"), "{}", error.message);
    assert!(!actions(&mut source).contains(&SourceAction::Pause));
}
