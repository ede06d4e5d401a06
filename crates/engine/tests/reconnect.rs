//! A link that is lost while the guest runs at the source: what has arrived is kept, what was on its way is sent
//! again, and neither end believes the other more than it must. Both ends together are tested in `pair.rs`.

use std::time::Duration;

use migrated_engine::destination::{Destination, DestinationAction, DestinationConfig, DestinationEvent};
use migrated_engine::source::{Next, Source, SourceAction, SourceConfig, SourceEvent};
use migrated_engine::{
    Compression, Limits, MAX_RECONNECT_WINDOW, MigrationRecord, MigrationState, Mode, OnTimeout,
    RECONNECT_GRACE, patience_for, policy_for,
};
use migrated_pages::{BlockId, PageRun, PageSet, RamBlock, RamLayout};
use migrated_wire::{
    FrameHead, FrameKind, GuestIdentity, PROTOCOL, PageSetPiece, PostcopyUse, ToDestination, ToSource,
    VerifyWhen,
};

const EPOCH: u64 = 1;
const NOW: Duration = Duration::ZERO;
const PAGES: u64 = 1000;

fn run(first: u64, count: u64) -> PageRun {
    PageRun { block: BlockId(0), first, count }
}

fn identity() -> GuestIdentity {
    let layout = RamLayout::new(vec![RamBlock { name: "ram0".into(), guest_base: 0, pages: PAGES }]).unwrap();
    GuestIdentity { layout, sections: Vec::new(), cpu: Vec::new().into() }
}

fn set(runs: &[PageRun]) -> PageSet {
    let mut set = PageSet::empty(&identity().layout);
    runs.iter().for_each(|run| _ = set.insert(*run));
    set
}

fn pieces(runs: &[PageRun]) -> Vec<ToSource> {
    PageSetPiece::cut(&set(runs), &identity().layout).into_iter().map(ToSource::Received).collect()
}

mod source {
    use super::*;

    fn say(source: &mut Source, message: ToSource) {
        source.handle(NOW, SourceEvent::Message(message));
    }

    fn actions(source: &mut Source) -> Vec<SourceAction> {
        std::iter::from_fn(|| source.poll_action()).collect()
    }

    /// A source whose channels are being opened.
    fn connecting(limits: Limits) -> Source {
        let config = SourceConfig {
            identity: identity(),
            epoch: EPOCH,
            mode: Mode::Precopy,
            channels: 1,
            verify: VerifyWhen::Off,
            compression: Compression::Auto,
            limits,
            guest_clock: None,
            peer: "b".into(),
        };
        Source::new(config, MigrationRecord::default(), policy_for(Mode::Precopy), NOW)
    }

    /// A source in its first iteration, with nothing sent.
    fn sending(limits: Limits) -> Source {
        let mut source = connecting(limits);
        source.handle(NOW, SourceEvent::Connected { version: PROTOCOL.min });
        say(&mut source, ToSource::PreflightOk { rehearsal_us: 0, no_postcopy: None });
        source.handle(NOW, SourceEvent::TrackingStarted);
        assert_eq!(source.state(), MigrationState::Precopy);
        actions(&mut source);
        source
    }

    /// Takes one batch, which nobody may ever receive.
    fn take(source: &mut Source) -> Vec<PageRun> {
        let mut runs = Vec::new();
        assert!(matches!(source.next_batch(NOW, 0, &mut runs), Next::Pages { .. }));
        runs
    }

    fn lose(source: &mut Source) {
        source.handle(NOW, SourceEvent::LinkLost("cut".into()));
        assert_eq!(source.state(), MigrationState::PrecopyPaused);
        assert_eq!(source.next_batch(NOW, 0, &mut Vec::new()), Next::Ended);
        let at = source.deadline().unwrap();
        source.handle(at, SourceEvent::Tick);
        let actions = actions(source);
        assert!(actions.ends_with(&[SourceAction::HangUp, SourceAction::Reconnect]), "{actions:?}");
        assert!(!actions.contains(&SourceAction::StopTracking), "{actions:?}");
    }

    /// Everything that is left, in the iteration that it is sent in.
    fn rest(source: &mut Source) -> (u32, PageSet) {
        let (mut all, mut runs) = (set(&[]), Vec::new());
        loop {
            runs.clear();
            match source.next_batch(NOW, 0, &mut runs) {
                Next::Pages { .. } => runs.iter().for_each(|run| assert_eq!(all.insert(*run), run.count)),
                Next::Marker { iteration, pages } => {
                    assert_eq!(pages, all.len());
                    return (iteration, all);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn what_is_not_there_is_sent_again_and_nothing_else() {
        let mut source = sending(Limits::default());
        assert_eq!((take(&mut source), take(&mut source)), (vec![run(0, 256)], vec![run(256, 256)]));
        lose(&mut source);
        source.handle(NOW, SourceEvent::Connected { version: PROTOCOL.min });
        assert_eq!(
            actions(&mut source),
            [SourceAction::Send(ToDestination::Recover { epoch: EPOCH, iteration: 2 })]
        );
        assert_eq!(source.next_batch(NOW, 0, &mut Vec::new()), Next::Wait, "the answer comes first");
        // A loss before the answer is the same loss.
        lose(&mut source);
        source.handle(NOW, SourceEvent::Connected { version: PROTOCOL.min });
        pieces(&[run(0, 256), run(300, 10)]).into_iter().for_each(|piece| say(&mut source, piece));
        say(&mut source, ToSource::ReceivedSent { pages: 266 });
        assert_eq!(source.state(), MigrationState::Precopy);
        assert_eq!(rest(&mut source), (2, set(&[run(256, 44), run(310, PAGES - 310)])));
        let record = source.record(NOW);
        assert_eq!((record.reconnects.len(), record.error), (1, None));
        assert_eq!(record.reconnects[0].missing_pages, PAGES - 266);
        // An iteration of which everything arrived but the end has nothing left.
        lose(&mut source);
        source.handle(NOW, SourceEvent::Connected { version: PROTOCOL.min });
        pieces(&[run(256, 44), run(310, PAGES - 310)]).into_iter().for_each(|p| say(&mut source, p));
        say(&mut source, ToSource::ReceivedSent { pages: PAGES - 266 });
        assert_eq!(rest(&mut source), (3, set(&[])));
        say(&mut source, ToSource::IterationDone { iteration: 3, pages: 0 });
        assert!(actions(&mut source).contains(&SourceAction::Harvest));
    }

    #[test]
    fn a_link_that_fails_before_anything_moved_is_opened_again() {
        let mut source = connecting(Limits::default());
        for event in [SourceEvent::ConnectFailed("no route".into()), SourceEvent::LinkLost("cut".into())] {
            source.handle(NOW, event);
            assert_eq!(source.state(), MigrationState::Negotiating);
            let at = source.deadline().unwrap();
            source.handle(at, SourceEvent::Tick);
            assert!(actions(&mut source).ends_with(&[SourceAction::HangUp, SourceAction::Reconnect]));
            // What the old link still brings is not about the new one.
            say(&mut source, ToSource::PreflightOk { rehearsal_us: 0, no_postcopy: None });
            source.handle(NOW, SourceEvent::Connected { version: PROTOCOL.min });
            assert_eq!(source.state(), MigrationState::Preflight);
            let sent = actions(&mut source);
            assert!(matches!(sent[..], [SourceAction::Send(ToDestination::Preflight { .. })]), "{sent:?}");
        }
        source.handle(NOW, SourceEvent::LinkLost("cut".into()));
        let window = Limits::default().reconnect_window;
        source.handle(window, SourceEvent::Tick);
        assert_eq!(source.record(window).error.unwrap().code, "peer_unreachable");

        let mut refused = connecting(Limits::default());
        refused.handle(NOW, SourceEvent::ConnectRefused("another token".into()));
        assert_eq!(refused.state(), MigrationState::Failed);
    }

    #[test]
    fn a_round_that_was_cut_short_loses_nothing_with_its_link() {
        let timeout = Duration::from_secs(1);
        let mut source = sending(Limits { timeout, on_timeout: OnTimeout::Stop, ..Limits::default() });
        take(&mut source);
        source.handle(timeout, SourceEvent::Tick);
        assert_eq!(source.record(timeout).decisions.last().unwrap().decision, "cut_round_short");
        lose(&mut source);
        source.handle(NOW, SourceEvent::Connected { version: PROTOCOL.min });
        pieces(&[run(0, 200)]).into_iter().for_each(|piece| say(&mut source, piece));
        say(&mut source, ToSource::ReceivedSent { pages: 200 });
        assert_eq!(rest(&mut source), (2, set(&[run(200, PAGES - 200)])));
    }

    #[test]
    fn an_answer_that_cannot_be_true_ends_it_and_the_guest_runs_on() {
        let whole = |pages| ToSource::ReceivedSent { pages };
        for answer in [
            [pieces(&[run(0, 10)]), vec![whole(11)]].concat(),
            [pieces(&[run(0, 10)]), pieces(&[run(9, 2)]), vec![whole(11)]].concat(),
            // It was never sent.
            [pieces(&[run(255, 2)]), vec![whole(2)]].concat(),
            vec![ToSource::IterationDone { iteration: 1, pages: 0 }],
        ] {
            let mut source = sending(Limits::default());
            take(&mut source);
            lose(&mut source);
            source.handle(NOW, SourceEvent::Connected { version: PROTOCOL.min });
            answer.into_iter().for_each(|message| say(&mut source, message));
            assert_eq!(source.state(), MigrationState::Failed);
            assert_eq!(source.record(NOW).error.unwrap().code, "protocol");
            let actions = actions(&mut source);
            assert!(actions.contains(&SourceAction::StopTracking), "{actions:?}");
            assert!(!actions.contains(&SourceAction::Pause), "{actions:?}");
        }
    }

    #[test]
    fn the_window_ends_it_and_no_window_at_once() {
        let mut source = sending(Limits { reconnect_window: Duration::ZERO, ..Limits::default() });
        source.handle(NOW, SourceEvent::LinkLost("cut".into()));
        assert_eq!(source.state(), MigrationState::Failed);

        let window = Duration::from_secs(7);
        let mut source = sending(Limits { reconnect_window: window, ..Limits::default() });
        lose(&mut source);
        let (mut attempts, mut now) = (0, NOW);
        while source.outcome().is_none() {
            source.handle(now, SourceEvent::ConnectFailed("no route".into()));
            now = source.deadline().unwrap();
            assert!(now <= window);
            source.handle(now, SourceEvent::Tick);
            attempts += usize::from(actions(&mut source).contains(&SourceAction::Reconnect));
        }
        assert!(attempts > 1, "{attempts}");
        assert_eq!(source.state(), MigrationState::Failed);
        let error = source.record(window).error.unwrap();
        assert_eq!(error.code, "link_lost");
        assert!(error.message.contains("no route"), "{error:?}");
    }

    #[test]
    fn what_ends_a_migration_ends_it_without_a_link_too() {
        let failed = ToSource::Failed { reason: "out of memory".into() };
        for (event, code) in [
            (SourceEvent::Cancel, "cancelled"),
            (SourceEvent::GuestFailed("it".into()), "guest_failed"),
            // Its last words come behind the news that a page channel broke.
            (SourceEvent::Message(failed), "destination_failed"),
        ] {
            let mut source = sending(Limits::default());
            source.handle(NOW, SourceEvent::LinkLost("cut".into()));
            assert!(source.cancellable());
            source.handle(NOW, event);
            assert_eq!(source.record(NOW).error.unwrap().code, code);
            assert!(actions(&mut source).contains(&SourceAction::StopTracking));
        }
    }
}

mod destination {
    use super::*;

    fn say(destination: &mut Destination, message: ToDestination) {
        destination.handle(NOW, DestinationEvent::Message(message));
    }

    fn actions(destination: &mut Destination) -> Vec<DestinationAction> {
        std::iter::from_fn(|| destination.poll_action()).collect()
    }

    fn preflight(reconnect_window_ms: u64) -> ToDestination {
        ToDestination::Preflight {
            identity: identity(),
            epoch: EPOCH,
            channels: 1,
            verify: VerifyWhen::Off,
            postcopy: PostcopyUse::Never,
            guest_clock: None,
            reconnect_window_ms,
        }
    }

    fn config(patience: Duration) -> DestinationConfig {
        DestinationConfig {
            identity: identity(),
            epoch: EPOCH,
            rehearsal: NOW,
            postcopy: Ok(()),
            patience,
            peer: "a".into(),
        }
    }

    fn receiving(window_ms: u64) -> Destination {
        let config = config(Duration::from_secs(1));
        let mut destination = Destination::new(config, MigrationRecord::default(), NOW);
        destination.handle(NOW, DestinationEvent::Connected { version: PROTOCOL.min });
        say(&mut destination, preflight(window_ms));
        assert_eq!(destination.state(), MigrationState::Receiving);
        actions(&mut destination);
        destination
    }

    fn place(destination: &mut Destination, run: PageRun) {
        destination.begin_placing();
        assert!(!destination.placed(NOW, 0, [run]));
    }

    /// Loses the link, and gets a new one.
    fn relink(destination: &mut Destination) {
        destination.handle(NOW, DestinationEvent::PagesLost("cut".into()));
        assert_eq!(destination.state(), MigrationState::PrecopyPaused);
        assert_eq!(actions(destination), [DestinationAction::HangUp]);
        destination.handle(NOW, DestinationEvent::LinkLost("so is this one".into()));
        destination.handle(NOW, DestinationEvent::Reconnected { version: PROTOCOL.min });
        assert_eq!(actions(destination), [], "the new channels stay");
    }

    fn recover(epoch: u64, iteration: u32) -> ToDestination {
        ToDestination::Recover { epoch, iteration }
    }

    fn told(runs: &[PageRun]) -> Vec<DestinationAction> {
        let pages = runs.iter().map(|run| run.count).sum();
        let whole = [ToSource::ReceivedSent { pages }];
        pieces(runs).into_iter().chain(whole).map(DestinationAction::Send).collect()
    }

    fn assert_failed(destination: &mut Destination, code: &str) {
        assert_eq!(destination.state(), MigrationState::Failed);
        assert_eq!(destination.record(NOW).error.unwrap().code, code);
        assert!(actions(destination).contains(&DestinationAction::Destroy));
    }

    #[test]
    fn what_came_of_the_interrupted_iteration_is_told_and_no_more() {
        let mut destination = receiving(1000);
        place(&mut destination, run(0, PAGES));
        destination.handle(NOW, DestinationEvent::Marker { channel: 0, iteration: 1, pages: PAGES });
        actions(&mut destination);
        // The source was in the second iteration, of which nothing came: all that is here may be stale.
        relink(&mut destination);
        say(&mut destination, recover(EPOCH, 3));
        assert_eq!(actions(&mut destination), told(&[]));
        assert_eq!(destination.state(), MigrationState::Receiving);
        place(&mut destination, run(5, 3));
        relink(&mut destination);
        say(&mut destination, recover(EPOCH, 4));
        assert_eq!(actions(&mut destination), told(&[run(5, 3)]));
    }

    #[test]
    fn an_answer_that_was_lost_is_given_again() {
        let mut destination = receiving(1000);
        place(&mut destination, run(5, 3));
        for _ in 0..2 {
            relink(&mut destination);
            say(&mut destination, recover(EPOCH, 2));
            assert_eq!(actions(&mut destination), told(&[run(5, 3)]));
        }
        place(&mut destination, run(8, 1));
        relink(&mut destination);
        say(&mut destination, recover(EPOCH, 3));
        assert_eq!(actions(&mut destination), told(&[run(8, 1)]));
    }

    #[test]
    fn nothing_is_told_while_frames_of_the_old_link_are_placed() {
        let mut destination = receiving(1000);
        destination.begin_placing();
        destination.begin_placing();
        relink(&mut destination);
        let head = FrameHead { kind: FrameKind::Pages, iteration: 1, runs: 1, pages: 0 };
        assert!(destination.admit(0, &head).is_err(), "the source has yet to ask");
        say(&mut destination, recover(EPOCH, 2));
        assert_eq!(actions(&mut destination), []);
        assert!(!destination.placed(NOW, 0, [run(0, 4)]));
        assert!(destination.broke_off(NOW, [run(4, 4)]));
        assert_eq!(actions(&mut destination), told(&[run(0, 4)]));
        assert!(destination.has(BlockId(0), 3) && !destination.has(BlockId(0), 4));
    }

    #[test]
    fn a_page_that_came_in_part_is_not_there_any_more() {
        let mut destination = receiving(1000);
        place(&mut destination, run(0, PAGES));
        destination.handle(NOW, DestinationEvent::Marker { channel: 0, iteration: 1, pages: PAGES });
        actions(&mut destination);
        destination.begin_placing();
        assert!(destination.has(BlockId(0), 7));
        let _ = destination.broke_off(NOW, [run(7, 1)]);
        assert!(!destination.has(BlockId(0), 7) && destination.has(BlockId(0), 8));
        // A source that does not send it again has not sent everything.
        relink(&mut destination);
        say(&mut destination, recover(EPOCH, 3));
        destination.handle(NOW, DestinationEvent::Marker { channel: 0, iteration: 3, pages: 0 });
        actions(&mut destination);
        say(&mut destination, ToDestination::Finish { iteration: 3, sections: 0 });
        assert_failed(&mut destination, "protocol");
    }

    #[test]
    fn a_source_that_asks_what_it_may_not_is_not_waited_for() {
        for (epoch, iteration) in [(EPOCH + 1, 2), (EPOCH, 0), (EPOCH, 1), (EPOCH, 3), (EPOCH, u32::MAX)] {
            let mut destination = receiving(1000);
            relink(&mut destination);
            say(&mut destination, recover(epoch, iteration));
            assert_failed(&mut destination, "protocol");
        }
        let mut asked_on_a_whole_link = receiving(1000);
        say(&mut asked_on_a_whole_link, recover(EPOCH, 2));
        assert_failed(&mut asked_on_a_whole_link, "protocol");
        let mut asks_twice = receiving(1000);
        asks_twice.begin_placing();
        relink(&mut asks_twice);
        say(&mut asks_twice, recover(EPOCH, 2));
        say(&mut asks_twice, recover(EPOCH, 2));
        assert_failed(&mut asks_twice, "protocol");
    }

    #[test]
    fn a_source_that_never_heard_that_its_guest_fits_asks_again() {
        let mut destination = receiving(1000);
        relink(&mut destination);
        say(&mut destination, preflight(2000));
        let ok = ToSource::PreflightOk { rehearsal_us: 0, no_postcopy: None };
        assert_eq!(actions(&mut destination), [DestinationAction::Send(ok)]);
        assert_eq!(destination.state(), MigrationState::Receiving);
        place(&mut destination, run(0, 1));
        relink(&mut destination);
        say(&mut destination, preflight(1000));
        assert_failed(&mut destination, "protocol");
    }

    #[test]
    fn a_source_whose_offer_is_lost_is_waited_for_as_long_as_it_tries() {
        let window = Duration::from_secs(120);
        let config = config(patience_for(window));
        let mut destination = Destination::new(config, MigrationRecord::default(), NOW);
        let come = Duration::from_secs(20);
        destination.handle(come, DestinationEvent::Connected { version: PROTOCOL.min });
        destination.handle(come, DestinationEvent::LinkLost("cut".into()));
        // A source that opens channels and says nothing gains no time.
        destination.handle(come * 2, DestinationEvent::Reconnected { version: PROTOCOL.min });
        destination.handle(come * 2, DestinationEvent::LinkLost("again".into()));
        let until = destination.deadline().unwrap();
        assert_eq!(until, come + window + RECONNECT_GRACE);
        destination.handle(until - Duration::from_secs(1), DestinationEvent::Tick);
        assert_eq!(destination.state(), MigrationState::Negotiating);
        destination.handle(until, DestinationEvent::Tick);
        assert_failed(&mut destination, "phase_timeout");
        // No window makes it wait for ever, or not at all.
        assert_eq!(patience_for(Duration::MAX), MAX_RECONNECT_WINDOW + RECONNECT_GRACE);
        assert_eq!(patience_for(Duration::ZERO), Duration::from_secs(30));
    }

    #[test]
    fn a_destination_waits_as_long_as_it_was_told_and_no_longer_than_it_sees_fit() {
        for (window_ms, longest) in [(7000, Duration::from_secs(7)), (u64::MAX, MAX_RECONNECT_WINDOW)] {
            let mut destination = receiving(window_ms);
            relink(&mut destination);
            // A source that opens channels and says nothing gains no time.
            destination.handle(NOW, DestinationEvent::LinkLost("again".into()));
            let until = destination.deadline().unwrap();
            assert_eq!(until, longest + RECONNECT_GRACE);
            destination.handle(until, DestinationEvent::Tick);
            assert_failed(&mut destination, "link_lost");
        }
        let mut impatient = receiving(0);
        impatient.handle(NOW, DestinationEvent::LinkLost("cut".into()));
        assert_failed(&mut impatient, "link_lost");
    }

    #[test]
    fn a_source_whose_guest_was_paused_comes_back_and_its_state_comes_again() {
        let section = migrated_wire::Section {
            name: migrated_wire::SectionName { kind: "cpu".into(), instance: 0, version: 1 },
            data: Vec::new().into(),
        };
        let state = ToDestination::State(section.clone());
        for said in
            [vec![state.clone()], vec![state.clone(), ToDestination::Finish { iteration: 1, sections: 1 }]]
        {
            let mut destination = receiving(1000);
            place(&mut destination, run(0, PAGES));
            said.into_iter().for_each(|message| say(&mut destination, message));
            relink(&mut destination);
            say(&mut destination, recover(EPOCH, 2));
            assert_eq!(actions(&mut destination), told(&[run(0, PAGES)]));
            destination.handle(NOW, DestinationEvent::Marker { channel: 0, iteration: 2, pages: 0 });
            say(&mut destination, state.clone());
            actions(&mut destination);
            say(&mut destination, ToDestination::Finish { iteration: 2, sections: 1 });
            assert_eq!(actions(&mut destination), [DestinationAction::Restore(vec![section.clone()])]);
        }
    }

    #[test]
    fn whoever_asks_for_the_commit_while_the_link_is_lost_gets_the_guest() {
        let mut destination = receiving(1000);
        destination.handle(NOW, DestinationEvent::LinkLost("cut".into()));
        destination.handle(NOW, DestinationEvent::Resolve { epoch: EPOCH });
        let answer = DestinationAction::Answer(Some(migrated_wire::CommitOutcome::NeverRan));
        assert_eq!(destination.state(), MigrationState::Failed);
        let actions = actions(&mut destination);
        let at = |what: &DestinationAction| actions.iter().position(|action| action == what);
        assert!(at(&DestinationAction::Destroy) < at(&answer) && at(&answer).is_some(), "{actions:?}");
    }
}
