//! A switch before the pages over a link that is not fit for it: delayed, then made, or refused.

use std::time::Duration;

use migrated_engine::source::{Next, Sent, Source, SourceAction, SourceConfig, SourceEvent};
use migrated_engine::{
    Compression, FailureCode, Limits, MigrationRecord, MigrationState, Mode, OnTimeout, policy_for,
};
use migrated_pages::{BlockId, PageRun, PageSet, RamBlock, RamLayout};
use migrated_wire::{GuestIdentity, PROTOCOL, PathSample, ToDestination, ToSource, VerifyWhen};

const MS: Duration = Duration::from_millis(1);
/// Pages of the guest, which overwrites all of them in each round.
const RAM: u64 = 2_560;

/// A source and the network under it.
struct Bench {
    source: Source,
    layout: RamLayout,
    now: Duration,
    segments: u64,
    retransmitted: u64,
    iteration: u32,
}

impl Bench {
    fn new(mode: Mode, limits: Limits) -> Self {
        let block = RamBlock { name: "ram0".into(), guest_base: 0, pages: RAM };
        let layout = RamLayout::new(vec![block]).unwrap();
        let config = SourceConfig {
            identity: GuestIdentity { layout: layout.clone(), sections: Vec::new(), cpu: Vec::new().into() },
            epoch: 1,
            mode,
            channels: 1,
            verify: VerifyWhen::Off,
            compression: Compression::Auto,
            limits,
            guest_clock: None,
            peer: "there".into(),
        };
        let mut source = Source::new(config, MigrationRecord::default(), policy_for(mode), Duration::ZERO);
        source.handle(Duration::ZERO, SourceEvent::Connected { version: PROTOCOL.min });
        Self { source, layout, now: Duration::ZERO, segments: 0, retransmitted: 0, iteration: 1 }
    }

    fn handle(&mut self, event: SourceEvent) {
        self.source.handle(self.now, event);
    }

    fn accept(&mut self) {
        self.handle(SourceEvent::Message(ToSource::PreflightOk { rehearsal_us: 1_000, no_postcopy: None }));
        if self.actions().contains(&SourceAction::StartTracking) {
            self.handle(SourceEvent::TrackingStarted);
        }
    }

    fn actions(&mut self) -> Vec<SourceAction> {
        std::iter::from_fn(|| self.source.poll_action()).collect()
    }

    /// A round of 100 ms over a link that loses such a part of its segments.
    fn round(&mut self, loss_percent: u64) {
        let mut runs = Vec::new();
        let mut pages = 0;
        while let Next::Pages { .. } = self.source.next_batch(self.now, 0, &mut runs) {
            let data_pages: u64 = runs.drain(..).map(|run| run.count).sum();
            pages += data_pages;
            self.now += MS * 10;
            self.segments += 100;
            self.retransmitted += loss_percent;
            self.source.batch_sent(
                self.now,
                Sent { data_pages, zero_pages: 0, bytes: data_pages * 4096, ..Sent::default() },
            );
            let sample = PathSample {
                rtt: MS,
                rtt_variation: MS / 10,
                min_rtt: MS,
                segments: self.segments,
                retransmitted: self.retransmitted,
                ..PathSample::default()
            };
            self.source.path_seen(self.now, Some(0), &sample);
        }
        self.source.marker_sent(self.now);
        self.handle(SourceEvent::Message(ToSource::IterationDone { iteration: self.iteration, pages }));
        let mut dirty = PageSet::empty(&self.layout);
        dirty.insert(PageRun { block: BlockId(0), first: 0, count: RAM });
        self.handle(SourceEvent::Harvested { dirty, took: MS });
        self.iteration += 1;
    }

    /// Pings for a while, each answered after its turn of these times.
    fn ping(&mut self, time: Duration, round_trips: &[Duration]) {
        let until = self.now + time;
        let mut under_way = Vec::new();
        let mut turn = 0;
        while self.now < until && self.source.outcome().is_none() {
            for action in self.actions() {
                if let SourceAction::Send(ToDestination::Ping { nonce }) = action {
                    under_way.push((self.now + round_trips[turn % round_trips.len()], nonce));
                    turn += 1;
                }
            }
            let now = self.now;
            for (_, nonce) in under_way.extract_if(.., |(at, _)| *at <= now) {
                self.handle(SourceEvent::Message(ToSource::Pong { nonce }));
            }
            self.handle(SourceEvent::Tick);
            self.now += MS;
        }
    }

    fn decided(&mut self, what: &str) -> Option<String> {
        let decisions = self.source.record(self.now).decisions;
        decisions.into_iter().find(|decision| decision.decision == what).map(|decision| decision.reason)
    }
}

/// No probes, so that rounds are whole.
fn limits(on_timeout: OnTimeout) -> Limits {
    Limits {
        max_downtime: Duration::from_micros(1),
        max_iterations: 7,
        timeout: Duration::from_secs(3),
        on_timeout,
        ..Limits::default()
    }
}

#[test]
fn a_switch_waits_in_rounds_until_the_link_has_been_good_for_a_while() {
    for mode in [Mode::Hybrid, Mode::Auto] {
        let mut bench = Bench::new(mode, limits(OnTimeout::Cancel));
        bench.accept();
        for _ in 0..4 {
            bench.round(10);
        }
        assert_eq!(bench.source.state(), MigrationState::Precopy);
        let why = bench.decided("switch_delayed").unwrap();
        assert!(why.contains("10.0 %"), "{why}");
        while bench.source.state() == MigrationState::Precopy {
            bench.round(0);
        }
        assert_eq!(bench.source.state(), MigrationState::PostcopySetup);
        assert!(bench.now < Duration::from_secs(3) && bench.decided("switch_to_postcopy").is_some());
    }
}

#[test]
fn a_link_that_stays_bad_means_what_was_declared_for_the_timeout() {
    for mode in [Mode::Hybrid, Mode::Auto] {
        for on_timeout in [OnTimeout::Cancel, OnTimeout::Stop] {
            let mut bench = Bench::new(mode, limits(on_timeout));
            bench.accept();
            while bench.decided("switch_refused").is_none() {
                assert_eq!(bench.source.state(), MigrationState::Precopy);
                bench.round(10);
            }
            assert!(bench.now >= Duration::from_secs(3));
            match on_timeout {
                OnTimeout::Cancel => {
                    let failure = bench.source.outcome().unwrap().unwrap_err();
                    assert_eq!(failure.code, FailureCode::LinkUnfit);
                    assert!(failure.message.contains("10.0 %"), "{failure:?}");
                }
                OnTimeout::Stop => assert!(bench.actions().contains(&SourceAction::Pause)),
            }
        }
    }
}

#[test]
fn pure_post_copy_waits_for_the_link_before_it_begins() {
    let (lost, good) = (MS * 210, MS);
    let mut bench = Bench::new(Mode::Postcopy, limits(OnTimeout::Cancel));
    bench.ping(MS * 400, &[good, lost]);
    bench.accept();
    assert_eq!(bench.source.state(), MigrationState::Preflight);
    assert!(bench.decided("switch_delayed").unwrap().contains("scatter"));
    bench.ping(MS * 1500, &[good]);
    assert_eq!(bench.source.state(), MigrationState::PostcopySetup, "it is good now");
}

#[test]
fn pure_post_copy_over_a_link_that_stays_bad_is_refused_or_becomes_pre_copy() {
    for on_timeout in [OnTimeout::Cancel, OnTimeout::Stop] {
        let mut bench = Bench::new(Mode::Postcopy, limits(on_timeout));
        bench.ping(MS * 400, &[MS, MS * 210]);
        bench.accept();
        bench.ping(MS * 6000, &[MS, MS * 210]);
        assert!(bench.decided("switch_refused").is_some(), "{:?}", bench.source.record(bench.now).decisions);
        match on_timeout {
            OnTimeout::Cancel => {
                let failure = bench.source.outcome().unwrap().unwrap_err();
                assert_eq!(failure.code, FailureCode::LinkUnfit);
            }
            OnTimeout::Stop => {
                bench.handle(SourceEvent::TrackingStarted);
                assert_eq!(bench.source.state(), MigrationState::Precopy);
            }
        }
    }
}
