//! The model against what must hold of every prediction, and against simulated migrations.

use std::time::Duration;

use migrated_engine::{
    DirtySample, Limits, MigrationState, Mode, ModePrediction, Model, PlanInputs, WriteCurve, plan,
};
use migrated_testkit::pair::{Pair, Scenario};
use migrated_wire::VerifyWhen;
use proptest::prelude::*;

fn number() -> impl Strategy<Value = f64> {
    prop_oneof![
        6 => (0.0f64..16.0).prop_map(|exponent| 10f64.powf(exponent)),
        1 => prop::num::f64::ANY,
        1 => Just(0.0),
    ]
}

fn duration() -> impl Strategy<Value = Duration> {
    prop_oneof![
        8 => (0u64..1_000_000_000).prop_map(Duration::from_micros),
        1 => Just(Duration::ZERO),
        1 => Just(Duration::MAX),
    ]
}

fn limits() -> impl Strategy<Value = Limits> {
    let bandwidth = prop::option::weighted(0.2, any::<u64>());
    let max_total = prop::option::weighted(0.3, duration());
    let rounds = prop_oneof![8 => 0u32..100, 1 => Just(u32::MAX)];
    (duration(), max_total, duration(), rounds, bandwidth, any::<u8>()).prop_map(
        |(max_downtime, max_total, timeout, max_iterations, bandwidth_bps, max_slowdown_percent)| Limits {
            max_downtime,
            max_total,
            timeout,
            max_iterations,
            bandwidth_bps,
            max_slowdown_percent,
            ..Limits::default()
        },
    )
}

fn model() -> impl Strategy<Value = Model> {
    let pages = prop_oneof![4 => 0u64..1 << 30, 1 => any::<u64>()];
    let guest = (number(), number(), number(), number(), pages);
    let times = (duration(), duration(), duration(), duration());
    (guest, times, limits(), number(), any::<u64>(), 0u32..50).prop_map(
        |((left, page, writes, set, ram), (elapsed, rtt, overhead, fixed), limits, rate, sent, rounds)| {
            Model {
                elapsed,
                rounds,
                sent_bytes: sent,
                ram_pages: ram,
                left_bytes: left,
                page_bytes: page,
                rate,
                rtt,
                round_overhead: overhead,
                fixed,
                writes: WriteCurve::new(writes, set),
                samples: 1,
                confidence: writes,
                limits,
                can_switch: true,
            }
        },
    )
}

fn modes(model: &Model) -> [ModePrediction; 4] {
    let predicted = model.predict();
    [predicted.precopy, predicted.precopy_throttled, predicted.hybrid, predicted.postcopy]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_number_is_finite_and_none_is_negative(model in model()) {
        let predicted = model.predict();
        let shared = [predicted.at_ms, predicted.link_bps, predicted.dirty_rate_pps, predicted.confidence];
        let each = modes(&model).into_iter().flat_map(|mode| [mode.total_ms, mode.downtime_ms]);
        for value in shared.into_iter().chain(each) {
            prop_assert!(value.is_finite() && value >= 0.0, "{value} in {predicted:?}");
        }
        prop_assert!(predicted.confidence <= 1.0);
        for mode in modes(&model) {
            prop_assert!(mode.total_ms >= predicted.at_ms && mode.bytes as f64 >= model.sent_bytes as f64);
        }
    }

    #[test]
    fn what_is_within_the_limits_keeps_to_each(model in model()) {
        let ms = |time: Duration| time.as_secs_f64() * 1e3 * (1.0 + 1e-9);
        for mode in modes(&model).iter().filter(|mode| mode.within_limits) {
            prop_assert!(mode.converges && mode.downtime_ms <= ms(model.limits.max_downtime), "{mode:?}");
            prop_assert!(model.limits.max_total.is_none_or(|goal| mode.total_ms <= ms(goal)), "{mode:?}");
        }
    }

    #[test]
    fn a_faster_link_is_never_predicted_to_take_longer(model in model(), factor in 1.0f64..1000.0) {
        let faster = Model { rate: model.rate * factor, ..model };
        for (slow, fast) in modes(&model).iter().zip(modes(&faster)) {
            let margin = 1e-9 * slow.total_ms;
            prop_assert!(fast.total_ms <= slow.total_ms + margin, "{slow:?}, faster: {fast:?}");
            prop_assert!(fast.converges || !slow.converges);
        }
    }

    #[test]
    fn a_guest_that_writes_more_is_never_predicted_to_move_sooner(model in model(), factor in 1.0f64..1000.0) {
        let writes = WriteCurve::new(model.writes.rate() * factor, model.writes.limit());
        let busier = Model { writes, ..model };
        for (calm, busy) in modes(&model).iter().zip(modes(&busier)) {
            prop_assert!(busy.total_ms >= calm.total_ms * (1.0 - 1e-9), "{calm:?}, busier: {busy:?}");
        }
    }
}

/// Mean time between two ticks of the simulated guest.
const TICK: f64 = 600e-6;

/// A pre-copy migration of the simulated guest, which writes at random, against its prediction: total time within
/// a fifth, bytes within a tenth, and one round at most apart. The simulation adds delays at random, paces
/// in bursts, and a round that betters a downtime which fits already.
#[test]
fn simulated_rounds_are_as_predicted() {
    let (pages, bandwidth_bps) = (4_000, 200_000_000);
    let link_pages = bandwidth_bps as f64 / 8.0 / 4096.0;
    for writes_per_tick in [0, 1, 2] {
        let lambda = writes_per_tick as f64 / TICK / link_pages;
        let limits = Limits {
            max_downtime: Duration::from_millis(10),
            bandwidth_bps: Some(bandwidth_bps),
            ..Limits::default()
        };
        let scenario = Scenario {
            seed: 5,
            mode: Mode::Precopy,
            reconnects: true,
            pages,
            channels: 2,
            writes_per_tick,
            verify: VerifyWhen::Off,
            limits,
            faults: Vec::new(),
        };
        let ending = Pair::new(scenario).run().unwrap();
        let record = ending.record;
        assert_eq!(ending.state, MigrationState::Completed);
        // Half of the guest's pages are zero at first; the engine can't know before it looks.
        let nonzero = record.iterations[0].bytes / 4096;
        let predicted = Model {
            elapsed: Duration::from_secs_f64(record.setup_ms / 1e3),
            rounds: 0,
            sent_bytes: 0,
            ram_pages: pages,
            left_bytes: nonzero as f64 * 4096.0,
            page_bytes: 4096.0,
            rate: 1e12,
            rtt: Duration::from_millis(1),
            round_overhead: Duration::from_millis(1),
            fixed: Duration::from_millis(2),
            writes: WriteCurve::new(writes_per_tick as f64 / TICK, pages as f64),
            samples: 1,
            confidence: 1.0,
            limits,
            can_switch: false,
        }
        .predict()
        .precopy;
        let bytes: u64 = record.iterations.iter().map(|iteration| iteration.bytes).sum();
        let rounds = record.iterations.len() as u32;
        let near = |is: f64, should: f64, tolerance: f64| (is / should - 1.0).abs() < tolerance;
        let seen = format!("λ = {lambda:.2}: {} ms, {bytes} bytes, {rounds} rounds", record.total_ms);
        assert!(predicted.converges, "{seen}; {predicted:?}");
        assert!(near(record.total_ms, predicted.total_ms, 0.2), "{seen}; {predicted:?}");
        assert!(near(bytes as f64, predicted.bytes as f64, 0.1), "{seen}; {predicted:?}");
        assert!(rounds.abs_diff(predicted.rounds) <= 1, "{seen}; {predicted:?}");
    }
}

fn inputs(pages_per_second: u64) -> PlanInputs {
    PlanInputs {
        ram_pages: 1 << 17,
        nonzero_pages: Some(80_000),
        link_bps: Some(940_000_000),
        rtt: Duration::from_micros(200),
        state: Duration::from_millis(5),
        state_bytes: 50_000,
        writes: vec![DirtySample { window: Duration::from_secs(1), pages: pages_per_second, tracked: true }],
        ..PlanInputs::default()
    }
}

#[test]
fn a_plan_recommends_what_auto_would_end_up_with() {
    let idle = plan(&inputs(10));
    assert_eq!(idle.recommended, Mode::Precopy, "{}", idle.reason);
    assert!(idle.prediction.precopy.converges && idle.risk.is_none());
    // 80,000 pages at 28,690 pages/s.
    assert!((2_780.0..2_900.0).contains(&idle.prediction.precopy.total_ms), "{:?}", idle.prediction);
    let busy = plan(&inputs(50_000));
    assert_eq!(busy.recommended, Mode::Postcopy, "{}", busy.reason);
    assert!(!busy.prediction.precopy.converges && busy.risk.is_some());
    assert!((2_780.0..2_900.0).contains(&busy.prediction.postcopy.total_ms), "{:?}", busy.prediction);
    assert!(busy.prediction.postcopy.downtime_ms < 10.0);
    let half = plan(&inputs(22_000));
    assert_eq!(half.recommended, Mode::Hybrid, "{}", half.reason);
    let limits = Limits { allow_postcopy: false, ..Limits::default() };
    let forbidden = plan(&PlanInputs { limits, ..inputs(50_000) });
    assert_eq!(forbidden.recommended, Mode::Precopy);
    assert!(forbidden.reason.contains("not allowed") && !forbidden.prediction.postcopy.possible);
    let unable = plan(&PlanInputs { no_postcopy: Some("no userfaultfd".into()), ..inputs(50_000) });
    assert!(unable.reason.contains("no userfaultfd"), "{}", unable.reason);
}

#[test]
fn a_plan_keeps_to_a_stated_total_time_or_says_that_nothing_does() {
    let planned = |pages, seconds: f64| {
        let limits = Limits { max_total: Some(Duration::from_secs_f64(seconds)), ..Limits::default() };
        plan(&PlanInputs { limits, ..inputs(pages) })
    };
    // 80,000 pages take 2.8 s; at 22,000 pages/s rounds take 12 s and a round before the switch makes it 5 s.
    let long = planned(22_000, 20.0);
    assert_eq!(long.recommended, Mode::Precopy, "{}", long.reason);
    assert!(long.prediction.precopy.within_limits && long.reason.contains("within the 20.00 s"));
    let middle = planned(22_000, 6.0);
    assert_eq!(middle.recommended, Mode::Hybrid, "{}", middle.reason);
    let short = planned(22_000, 3.0);
    assert_eq!(short.recommended, Mode::Postcopy, "{}", short.reason);
    let none = planned(22_000, 1.0);
    assert!(none.reason.contains("no mode is predicted to keep to all limits"), "{}", none.reason);
    let idle = planned(10, 1.0);
    assert!(idle.prediction.precopy.converges && !idle.prediction.precopy.within_limits);
}

#[test]
fn no_guest_is_planned_to_be_stopped_before_a_round() {
    let limits = Limits { max_downtime: Duration::from_secs(10), ..Limits::default() };
    let planned = plan(&PlanInputs { limits, ..inputs(100) });
    assert!(planned.prediction.precopy.rounds == 2, "{planned:?}");
    assert!(planned.prediction.precopy.downtime_ms < 50.0, "{planned:?}");
}

#[test]
fn an_untracked_sample_counts_more_and_a_missing_one_is_named() {
    let sample = |tracked| DirtySample { window: Duration::from_secs(1), pages: 1000, tracked };
    let rate =
        |tracked| plan(&PlanInputs { writes: vec![sample(tracked)], ..inputs(0) }).prediction.dirty_rate_pps;
    assert!((rate(false) / rate(true) / migrated_engine::TRACKING_FACTOR - 1.0).abs() < 0.02);
    let blind = plan(&PlanInputs { writes: Vec::new(), link_bps: None, ..inputs(0) });
    assert_eq!(blind.prediction.confidence, 0.0);
    assert!(blind.reason.contains("is a guess") && blind.reason.contains("not known"), "{}", blind.reason);
}
