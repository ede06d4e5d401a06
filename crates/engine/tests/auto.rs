//! What `auto` chooses, for guests of every kind over a 1 Gbit/s link, and in simulated migrations.

use std::time::Duration;

use migrated_engine::source::{Next, Sent, Source, SourceAction, SourceConfig, SourceEvent};
use migrated_engine::{
    AutoPolicy, Compression, ConvergencePolicy, Limits, MigrationRecord, MigrationState, Mode, Observation,
    OnTimeout, Progress, Step, WriteCurve, policy_for,
};
use migrated_pages::{BlockId, PageRun, PageSet, RamBlock, RamLayout};
use migrated_testkit::pair::{Pair, Scenario};
use migrated_wire::{GuestIdentity, PROTOCOL, ToDestination, ToSource, VerifyWhen};

/// Pages a second of 1 Gbit/s less headers.
const LINK: f64 = 28_700.0;
/// 512 MiB.
const RAM: u64 = 1 << 17;

/// Rounds by the formula: a virtual clock, a link, and a guest whose writes are `written(now, window)`.
struct Rounds {
    policy: AutoPolicy,
    limits: Limits,
    can_switch: bool,
}

#[derive(Debug)]
struct Ended {
    step: Step,
    rounds: u32,
    at: f64,
    sent: f64,
    reasons: Vec<String>,
}

impl Rounds {
    fn new() -> Self {
        Self { policy: AutoPolicy::default(), limits: Limits::default(), can_switch: true }
    }

    fn run(mut self, mut written: impl FnMut(f64, f64) -> f64) -> Ended {
        let (mut now, mut sent, mut unsent, mut residual) = (0.0, 0.0, RAM as f64, 0.0);
        let mut reasons = Vec::new();
        for round in 1.. {
            let probe = self.policy.probe_after(&self.limits).filter(|_| round == 1 && self.can_switch);
            let whole = (unsent + residual) / LINK;
            let window = probe.map_or(whole, |probe| probe.as_secs_f64()) + 1e-3;
            sent += (window - 1e-3) * LINK;
            unsent = if probe.is_some() { RAM as f64 - sent } else { 0.0 };
            let dirtied = written(now, window).round();
            now += window;
            residual = if probe.is_some() { dirtied * (sent / RAM as f64) } else { dirtied };
            let pages = (unsent + residual) as u64;
            let seen = Observation {
                round,
                elapsed: Duration::from_secs_f64(now),
                residual_pages: pages,
                residual_bytes: pages * 4096,
                rate: LINK * 4096.0,
                dirty_pages_per_second: dirtied / window,
                can_switch: self.can_switch,
                fixed: Duration::from_millis(6),
                progress: Progress {
                    ram_pages: RAM,
                    unsent_pages: unsent as u64,
                    nonzero_share: 1.0,
                    sent_bytes: (sent * 4096.0) as u64,
                    dirtied_pages: dirtied as u64,
                    window: Duration::from_secs_f64(window),
                    rate_known: true,
                    round_overhead: Duration::from_millis(1),
                    rtt: Duration::from_micros(200),
                    ..Progress::default()
                },
            };
            let verdict = self.policy.decide(&self.limits, &seen);
            assert!(verdict.predicted.is_some());
            reasons.push(verdict.reason);
            if verdict.step != Step::Iterate {
                return Ended { step: verdict.step, rounds: round, at: now, sent, reasons };
            }
        }
        unreachable!("rounds are limited")
    }

    /// A guest that writes `share` × the link among `pages` pages, at random.
    fn steady(self, share: f64, pages: f64) -> Ended {
        let curve = WriteCurve::new(share * LINK, pages);
        self.run(move |_, window| curve.pages_in(window))
    }
}

#[test]
fn every_guest_gets_what_suits_it() {
    let ram = RAM as f64;
    // Share of the link, pages written among, step, rounds at most. A first round of all RAM takes 4.6 s.
    let table = [
        ("nothing", 0.0, ram, Step::Stop, 2),
        ("next to nothing", 0.001, ram, Step::Stop, 3),
        ("a tenth", 0.1, ram, Step::Stop, 4),
        ("half, small set", 0.5, 2_000.0, Step::Stop, 4),
        ("as fast again, tiny set", 1.5, 500.0, Step::Stop, 3),
        ("0.9, small set", 0.9, 4_000.0, Step::Stop, 30),
        ("0.9 everywhere", 0.9, ram, Step::SwitchToPostcopy, 2),
        ("1.5 everywhere", 1.5, ram, Step::SwitchToPostcopy, 1),
        ("1.5, small set", 1.5, 16_384.0, Step::SwitchToPostcopy, 2),
        ("260,000 pages/s among 64 MiB", 9.0, 16_384.0, Step::SwitchToPostcopy, 1),
        ("flat out among 256 MiB", 30.0, 65_536.0, Step::SwitchToPostcopy, 1),
    ];
    for (name, share, pages, step, rounds) in table {
        let ended = Rounds::new().steady(share, pages);
        assert_eq!(ended.step, step, "{name}: {ended:?}");
        assert!(ended.rounds <= rounds, "{name}: {ended:?}");
    }
}

#[test]
fn a_guest_that_outruns_the_link_is_switched_before_much_was_sent_twice() {
    let ended = Rounds::new().steady(30.0, 65_536.0);
    assert!(ended.at < 0.1 && ended.sent < 0.02 * RAM as f64, "{ended:?}");
    let reason = ended.reasons.last().unwrap();
    assert!(reason.contains("would take") && reason.contains("post-copy now"), "{reason}");
}

#[test]
fn without_post_copy_it_is_pre_copy_and_says_why() {
    for (on_timeout, step) in [(OnTimeout::Cancel, Step::GiveUp), (OnTimeout::Stop, Step::Stop)] {
        let limits = Limits { on_timeout, ..Limits::default() };
        let ended = Rounds { can_switch: false, limits, ..Rounds::new() }.steady(1.5, 65_536.0);
        assert_eq!(ended.step, step, "{ended:?}");
        assert!(ended.reasons.iter().all(|reason| reason.contains("post-copy is not possible")), "{ended:?}");
    }
    let ended = Rounds { can_switch: false, ..Rounds::new() }.steady(0.1, 65_536.0);
    assert_eq!(ended.step, Step::Stop, "{ended:?}");
}

#[test]
fn limits_of_time_and_rounds_end_in_a_switch() {
    let slow = |limits| Rounds { limits, ..Rounds::new() }.steady(0.3, RAM as f64);
    assert_eq!(slow(Limits::default()).step, Step::Stop);
    let short = slow(Limits { timeout: Duration::from_secs(5), ..Limits::default() });
    assert_eq!((short.step, short.rounds), (Step::SwitchToPostcopy, 2), "not predicted to end in time");
    let few = slow(Limits { max_iterations: 2, ..Limits::default() });
    assert_eq!(few.step, Step::SwitchToPostcopy);
}

#[test]
fn a_stated_total_time_is_what_it_chooses_by() {
    let ended = |share, seconds: f64| {
        let limits = Limits { max_total: Some(Duration::from_secs_f64(seconds)), ..Limits::default() };
        Rounds { limits, ..Rounds::new() }.steady(share, RAM as f64)
    };
    // Rounds take 4.6 s ÷ (1 − share), switching at once 4.6 s.
    for (share, seconds, step, rounds, why) in [
        (0.6, 20.0, Step::Stop, 30, "within the 20.00 s"),
        (0.6, 9.0, Step::SwitchToPostcopy, 2, "not within the 9.00 s"),
        (0.6, 6.0, Step::SwitchToPostcopy, 1, "only switching now"),
        (0.1, 20.0, Step::Stop, 4, "within the 20.00 s"),
        (0.1, 4.8, Step::SwitchToPostcopy, 1, "only switching now"),
        (0.6, 2.0, Step::SwitchToPostcopy, 2, "exceeds them least"),
    ] {
        let ended = ended(share, seconds);
        assert_eq!(ended.step, step, "{share} {seconds}: {ended:?}");
        assert!(ended.rounds <= rounds, "{share} {seconds}: {ended:?}");
        assert!(ended.reasons.iter().any(|reason| reason.contains(why)), "{share} {seconds}: {ended:?}");
    }
    // Without one, 0.6 is not worth it.
    assert_eq!(Rounds::new().steady(0.6, RAM as f64).step, Step::SwitchToPostcopy);
}

#[test]
fn a_burst_while_little_has_been_sent_is_outlived_unless_it_outruns_the_link() {
    // A second of writing, then nearly nothing.
    let burst = |share: f64| {
        let writing = WriteCurve::new(share * LINK, RAM as f64);
        Rounds::new().run(move |now, window| writing.pages_in((1.0 - now).clamp(0.0, window)) + 10.0 * window)
    };
    let mild = burst(0.4);
    assert_eq!(mild.step, Step::Stop, "{mild:?}");
    assert_eq!(burst(1.5).step, Step::SwitchToPostcopy);
    // Now and then a second of writing, too short to keep rounds from converging.
    let ended = Rounds::new().run(|now, window| {
        let writing = ((now + window) / 10.0).floor() - (now / 10.0).floor();
        writing * 0.5 * LINK + 10.0 * window
    });
    assert_eq!(ended.step, Step::Stop, "{ended:?}");
}

#[test]
fn at_the_border_noise_does_not_make_the_choice_alternate() {
    for seed in 0..200u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut noise = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            0.95 + 0.1 * (state >> 33) as f64 / (1u64 << 31) as f64
        };
        // Rounds at this rate take twice what switching takes.
        let curve = WriteCurve::new(0.5 * LINK, 10.0 * RAM as f64);
        let ended = Rounds::new().run(move |_, window| curve.pages_in(window) * noise());
        let chosen = |reason: &String| reason.contains("rounds reach the limits");
        let switched_late = ended.step == Step::SwitchToPostcopy && ended.reasons.iter().any(chosen);
        assert!(!switched_late, "{ended:?}");
    }
}

fn scenario(writes_per_tick: u64, limits: Limits) -> Scenario {
    Scenario {
        seed: 3,
        mode: Mode::Auto,
        reconnects: true,
        pages: 4_000,
        channels: 2,
        writes_per_tick,
        verify: VerifyWhen::After,
        limits: Limits { bandwidth_bps: Some(200_000_000), ..limits },
        faults: Vec::new(),
    }
}

#[test]
fn whole_migrations_end_as_predicted_and_the_record_shows_both() {
    let switched = |writes, limits| {
        let ending = Pair::new(scenario(writes, limits)).run().unwrap();
        let record = ending.record;
        assert_eq!(ending.state, MigrationState::Completed, "{:?}", record.error);
        assert_eq!((record.mode, record.verified.map(|v| v.mismatches)), (Mode::Auto, Some(0)));
        let predicted = record.predicted.unwrap();
        let decision = predicted.decision.unwrap();
        assert!(predicted.start.postcopy.possible == limits.allow_postcopy && decision.samples > 0);
        let switched = record.decisions.iter().any(|decision| decision.decision == "switch_to_postcopy");
        let last = if switched { decision.postcopy } else { decision.precopy };
        let off = (record.total_ms / last.total_ms - 1.0).abs();
        assert!(off < 0.25 || !last.converges, "{} ms, {last:?}", record.total_ms);
        (switched, last.converges)
    };
    assert_eq!(switched(0, Limits::default()), (false, true));
    assert_eq!(switched(1, Limits::default()), (false, true));
    assert_eq!(switched(20, Limits::default()), (true, true));
    let forbidden = Limits { allow_postcopy: false, on_timeout: OnTimeout::Stop, ..Limits::default() };
    assert_eq!(switched(20, forbidden), (false, false));
}

const MS: Duration = Duration::from_millis(1);

/// A source in its first round, after 50 ms in which it sent 5,120 pages and the guest wrote 10,000.
fn probed(no_postcopy: Option<String>, limits: Limits) -> Source {
    let block = RamBlock { name: "ram0".into(), guest_base: 0, pages: RAM };
    let layout = RamLayout::new(vec![block]).unwrap();
    let config = SourceConfig {
        identity: GuestIdentity { layout: layout.clone(), sections: Vec::new(), cpu: Vec::new().into() },
        epoch: 1,
        mode: Mode::Auto,
        channels: 1,
        verify: VerifyWhen::Off,
        compression: Compression::Auto,
        limits,
        guest_clock: None,
        peer: "there".into(),
    };
    let mut source = Source::new(config, MigrationRecord::default(), policy_for(Mode::Auto), Duration::ZERO);
    source.handle(Duration::ZERO, SourceEvent::Connected { version: PROTOCOL.min });
    let accepted = ToSource::PreflightOk { rehearsal_us: 1_000, no_postcopy };
    source.handle(Duration::ZERO, SourceEvent::Message(accepted));
    source.handle(Duration::ZERO, SourceEvent::TrackingStarted);
    let mut pages = 0;
    for _ in 0..20 {
        let mut runs = Vec::new();
        assert_eq!(source.next_batch(MS, 0, &mut runs), Next::Pages { iteration: 1 });
        let data_pages: u64 = runs.iter().map(|run| run.count).sum();
        source
            .batch_sent(MS, Sent { data_pages, zero_pages: 0, bytes: data_pages * 4096, ..Sent::default() });
        pages += data_pages;
    }
    assert_eq!(pages, 5_120);
    source.handle(50 * MS, SourceEvent::Tick);
    if source.next_batch(50 * MS, 0, &mut Vec::new()) == (Next::Marker { iteration: 1, pages }) {
        source.marker_sent(50 * MS);
        source.handle(50 * MS, SourceEvent::Message(ToSource::IterationDone { iteration: 1, pages }));
        let mut dirty = PageSet::empty(&layout);
        dirty.insert(PageRun { block: BlockId(0), first: 2_000, count: 10_000 });
        source.handle(51 * MS, SourceEvent::Harvested { dirty, took: MS });
    }
    source
}

#[test]
fn a_source_probes_switches_and_announces_what_was_never_sent_and_what_was_written_again() {
    let mut source = probed(None, Limits::default());
    assert_eq!(source.state(), MigrationState::PostcopySetup, "{:?}", source.record(51 * MS).decisions);
    let announced = std::iter::from_fn(|| source.poll_action()).find_map(|action| match action {
        SourceAction::Send(ToDestination::MissingSent { pages }) => Some(pages),
        _ => None,
    });
    assert_eq!(announced, Some(RAM - 2_000));
    let record = source.record(51 * MS);
    let decision = record.predicted.unwrap().decision.unwrap();
    assert!(!decision.precopy.converges && decision.postcopy.possible, "{decision:?}");
    // 129,072 pages at 102,400 pages/s.
    assert!((1_300.0..1_330.0).contains(&decision.postcopy.total_ms), "{decision:?}");
}

#[test]
fn a_destination_without_userfaultfd_or_a_limit_means_pre_copy_with_the_reason_in_words() {
    let forbidden = Limits { allow_postcopy: false, ..Limits::default() };
    let cases = [
        (Some("no /dev/userfaultfd".to_owned()), Limits::default(), "no /dev/userfaultfd"),
        (None, forbidden, "not allowed"),
    ];
    for (no_postcopy, limits, why) in cases {
        let mut source = probed(no_postcopy, limits);
        assert_eq!(source.state(), MigrationState::Precopy);
        let record = source.record(50 * MS);
        let reasons: Vec<&str> = record.decisions.iter().map(|decision| decision.reason.as_str()).collect();
        assert!(reasons.len() == 1 && reasons[0].contains(why), "nothing was cut short: {reasons:?}");
        assert!(!record.predicted.unwrap().start.postcopy.possible);
    }
}
