//! Whole migrations of guests that write faster than the link, and are slowed.

use std::time::Duration;

use migrated_engine::{Limits, MigrationState, Mode};
use migrated_testkit::pair::{Fault, GuestOperation, Pair, Scenario};
use migrated_wire::VerifyWhen;

/// A guest that writes twice as fast as its link sends, which is shaped.
fn outwriting(max_slowdown_percent: u8) -> Scenario {
    // 24,000 pages a second; writes come every 0.6 ms or so, to random pages.
    let limits = Limits {
        bandwidth_bps: Some(24_000 * 4096 * 8),
        max_downtime: Duration::from_millis(20),
        max_slowdown_percent,
        ..Limits::default()
    };
    Scenario {
        seed: 1,
        mode: Mode::Precopy,
        reconnects: true,
        pages: 20_000,
        channels: 2,
        writes_per_tick: 30,
        verify: VerifyWhen::After,
        limits,
        faults: Vec::new(),
    }
}

#[test]
fn a_guest_that_writes_twice_as_fast_as_the_link_converges_when_it_is_slowed() {
    let ending = Pair::new(outwriting(0)).run().unwrap();
    assert_eq!(ending.record.error.unwrap().code, "not_converged");
    for mode in [Mode::Precopy, Mode::Auto] {
        let mut scenario = Scenario { mode, ..outwriting(99) };
        scenario.limits.allow_postcopy = false;
        let ending = Pair::new(scenario).run().unwrap();
        let record = ending.record;
        assert_eq!(ending.state, MigrationState::Completed, "{:?}", record.error);
        let throttled = record.throttle.unwrap();
        assert!(
            throttled.released_ms >= Some(throttled.began_ms) && throttled.percent == 0.0,
            "{throttled:?}"
        );
        let slept = throttled.vcpus[0];
        assert!(slept.slept_ms > 0.0 && slept.slept_ms == throttled.lost_ms, "{throttled:?}");
        assert!(throttled.max_percent > 40.0 && throttled.max_percent < 99.0, "{throttled:?}");
        let orders: Vec<_> = record.decisions.iter().filter(|d| d.decision == "throttle").collect();
        assert!(!orders.is_empty() && orders.len() <= 4, "the budget does not swing: {orders:#?}");
        // From the order on no round leaves more than the budget allows.
        let first = record.iterations.iter().position(|iteration| iteration.throttle_percent > 0.0).unwrap();
        let held = &record.iterations[first..record.iterations.len() - 1];
        for round in held.iter().filter(|round| round.duration_ms > 50.0) {
            assert!(round.dirty_rate_pps < 0.8 * 24_000.0, "{round:?}");
        }
        assert_eq!(record.iterations.last().unwrap().throttle_percent, 0.0, "nothing runs in stop-and-copy");
    }
}

#[test]
fn a_limit_that_is_too_low_is_named_as_the_reason() {
    let ending = Pair::new(Scenario { writes_per_tick: 120, ..outwriting(20) }).run().unwrap();
    assert_eq!(ending.state, MigrationState::Failed);
    let error = ending.record.error.unwrap();
    assert_eq!(error.code, "not_converged");
    assert!(
        error.message.contains("20 % is the limit") && error.message.contains("--max-slowdown"),
        "{error:?}"
    );
    assert!(ending.record.throttle.unwrap().released_ms.is_some());
}

#[test]
fn a_guest_that_can_not_be_throttled_goes_on_without() {
    let faults = vec![Fault::Fails(GuestOperation::Throttle)];
    let ending = Pair::new(Scenario { faults, ..outwriting(99) }).run().unwrap();
    assert_eq!(ending.record.error.unwrap().code, "not_converged");
    let unavailable = ending.record.decisions.iter().filter(|d| d.decision == "throttle_unavailable").count();
    assert_eq!((unavailable, ending.record.throttle), (1, None));
}

#[test]
fn cancelling_a_throttled_migration_lets_the_guest_go() {
    let mut while_throttled = 0;
    for ms in (100..2_000).step_by(100) {
        let faults = vec![Fault::CancelAt(Duration::from_millis(ms))];
        let ending = Pair::new(Scenario { faults, ..outwriting(99) }).run().unwrap();
        let cancelled = ending.state == MigrationState::Cancelled;
        if let Some(throttled) = ending.record.throttle.filter(|_| cancelled) {
            while_throttled += 1;
            assert!(throttled.released_ms.is_some(), "{throttled:?}");
        }
    }
    assert!(while_throttled > 0, "none was cancelled while it was throttled");
}

#[test]
fn a_lost_link_lets_the_guest_go_until_rounds_go_on() {
    let mut again = 0;
    for ms in (1_200..2_400).step_by(100) {
        let faults = vec![Fault::CutAt(Duration::from_millis(ms))];
        let ending = Pair::new(Scenario { faults, ..outwriting(99) }).run().unwrap();
        let record = ending.record;
        assert_eq!(ending.state, MigrationState::Completed, "at {ms} ms: {:?}", record.error);
        let at = |what: &str| record.decisions.iter().position(|decision| decision.decision == what);
        if let (Some(first), Some(lost)) = (at("throttle"), at("link_lost"))
            && lost > first
        {
            again += 1;
            let throttled = record.throttle.unwrap();
            assert!(throttled.released_ms.is_some() && throttled.vcpus[0].percent <= 100.0, "{throttled:?}");
            let interrupted = record.iterations.iter().position(|round| round.dirty_rate_pps == 0.0).unwrap();
            // A round may be too short for a vCPU to rest in it.
            let later = record.iterations[interrupted + 1..].iter().find(|round| round.duration_ms > 50.0);
            assert!(later.unwrap().throttle_percent > 0.0, "{:#?}", record.iterations);
        }
    }
    assert!(again > 0, "no link was lost while the guest was throttled");
}
