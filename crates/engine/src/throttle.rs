//! How much a guest may write so that pre-copy keeps up with it.
//!
//! Rounds converge when the guest writes at λ < 1 times the rate of the link, and then take Σ λⁿ times as
//! long as the first. A throttle makes λ what is wanted. Lower is not better: at a share ρ of the link, total time
//! is at most V ÷ b · 1/(1 − ρ), which ρ → 0 can't improve by more than that factor, but what the guest
//! loses grows as d − ρb. So ρ is the largest of a few shares with which the limits of time and rounds are
//! kept, and it is never raised again within a migration.
//!
//! The order to the guest's side is a budget in pages a second, not a percentage of sleep: how much a vCPU must
//! sleep for it is found there, vCPU by vCPU, within milliseconds, and a guest that writes less than
//! the budget loses nothing. What is controlled here, once a round, is the error that remains: pages attributed in
//! the meantime are estimates, and harvests tell the truth. So the budget is ρb · c with
//!
//! > c ← c · √(ρb ÷ measured dirty rate), within bounds
//!
//! in rounds in which vCPUs were held back and none at its limit. The square root makes an error of the
//! measurement half of one in the budget; the bounds keep what rounds can't explain from winding up.

use std::time::Duration;

use crate::Limits;
use crate::policy::Observation;
use crate::record::WriteAttribution;

/// What vCPUs are held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThrottleOrder {
    /// Pages that all together may dirty a second.
    pub pages_per_second: u64,
    /// Largest share of its time that any of them may be made to sleep, in percent.
    pub max_slowdown_percent: u8,
}

/// What throttling did since dirty tracking was started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ThrottleCounts {
    /// How pages are attributed to vCPUs.
    pub attribution: WriteAttribution,
    /// How long each vCPU was made to sleep, and how many pages it dirtied.
    pub vcpus: Vec<(Duration, u64)>,
}

/// Shares of the link's rate that the guest may be held to, the gentlest first.
const SHARES: [f64; 5] = [0.6, 0.45, 0.3, 0.2, 0.1];
/// The share that a prediction reckons with.
pub(crate) const SHARE: f64 = SHARES[0];
/// At a larger share rounds shrink too slowly to count on: the error of one measurement makes it 1.
const STALLS: f64 = 0.9;
/// A shorter window between two harvests is nothing to correct by: rests take up to 50 ms, and it shows some of
/// them, not their mean.
const WINDOW_MIN: Duration = Duration::from_millis(100);
/// Bounds of the correction.
const CORRECTION: (f64, f64) = (0.25, 2.0);
/// A budget that changes by less than this share stays.
const TOLERANCE: f64 = 0.05;
/// A vCPU that slept this share of what it may was held back no less than possible.
const AT_LIMIT: f64 = 0.9;

/// Whether rounds get nowhere within the limits unless the guest is slowed, and may be.
pub(crate) fn is_needed(limits: &Limits, seen: &Observation) -> bool {
    limits.max_slowdown_percent > 0
        && seen.progress.unsent_pages == 0
        && seen.fixed < limits.max_downtime
        && !converges(limits, seen, seen.dirty_pages_per_second / link(seen))
}

/// Whether rounds keep to the limits when the guest writes this share of what the link carries.
fn converges(limits: &Limits, seen: &Observation, share: f64) -> bool {
    let (fixed, most) = (seen.fixed.as_secs_f64(), limits.max_downtime.as_secs_f64());
    let mut sending = seen.transfer_time().as_secs_f64();
    let mut spent = seen.elapsed.as_secs_f64();
    let goal = limits.max_total.map_or(limits.timeout, |goal| goal.min(limits.timeout)).as_secs_f64();
    if share >= STALLS {
        return false;
    }
    for _ in seen.round..limits.max_iterations {
        let round = sending + seen.progress.round_overhead.as_secs_f64();
        spent += round;
        sending = share * round;
        if spent > goal {
            return false;
        }
        if fixed + sending <= most {
            return true;
        }
    }
    false
}

/// Pages a second that the link carries.
fn link(seen: &Observation) -> f64 {
    let bytes = seen.residual_bytes as f64 / seen.residual_pages.max(1) as f64;
    let bytes = if bytes > 0.0 { bytes } else { migrated_pages::PAGE_SIZE as f64 };
    (seen.rate / bytes).max(1.0)
}

/// Finds the budget, round by round.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Controller {
    share: f64,
    correction: f64,
    /// As last set.
    budget: Option<f64>,
}

impl Default for Controller {
    fn default() -> Self {
        Self { share: SHARE, correction: 1.0, budget: None }
    }
}

impl Controller {
    /// After a round in all of which the guest was held back, and the most throttled vCPU slept `percent` of the time,
    /// or in which it was not: a new budget with its reason, or `None` where the present one stays.
    pub(crate) fn after_round(
        &mut self,
        limits: &Limits,
        seen: &Observation,
        percent: Option<f64>,
    ) -> Option<(u64, String)> {
        let link = link(seen);
        let measured = seen.dirty_pages_per_second;
        self.share = SHARES
            .into_iter()
            .find(|share| *share <= self.share && converges(limits, seen, *share))
            .unwrap_or(SHARES[SHARES.len() - 1]);
        let target = self.share * link;
        let correcting = percent.filter(|percent| {
            seen.progress.window >= WINDOW_MIN && measured > 0.0 && !at_limit(limits, *percent)
        });
        // A guest that is not held back writes less by itself, which is nobody's error.
        if correcting.is_some_and(|percent| measured > target || percent > 0.0) {
            self.correction =
                (self.correction * (target / measured).sqrt()).clamp(CORRECTION.0, CORRECTION.1);
        }
        let budget = (target * self.correction).max(1.0);
        let stays = self.budget.is_some_and(|old| (budget / old - 1.0).abs() < TOLERANCE);
        if stays {
            return None;
        }
        self.budget = Some(budget);
        let reason = format!(
            "the guest wrote {measured:.0} pages/s, the link carries {link:.0}: it may write {budget:.0}, {:.0} % of that{}; \
             its vCPUs slept {:.0} % of the time, {} % is the limit",
            self.share * 100.0,
            if self.correction == 1.0 { String::new() } else { format!(" times {:.2}", self.correction) },
            percent.unwrap_or_default(),
            limits.max_slowdown_percent,
        );
        Some((budget as u64, reason))
    }

    /// Why rounds got nowhere in spite of it.
    pub(crate) fn was_in_vain(&self, limits: &Limits, seen: &Observation, percent: f64) -> String {
        let (writes, link) = (seen.dirty_pages_per_second, link(seen));
        if at_limit(limits, percent) {
            return format!(
                "vCPUs slept {percent:.0} % of the time, {} % is the limit, and the guest still wrote {writes:.0} pages/s \
                 where the link carries {link:.0}: raise --max-slowdown, or let it use post-copy",
                limits.max_slowdown_percent
            );
        }
        let budget = self.budget.unwrap_or_default();
        format!("the guest was held to {budget:.0} pages/s and wrote {writes:.0}, the link carries {link:.0}")
    }
}

/// Whether a vCPU could not be held back more.
fn at_limit(limits: &Limits, percent: f64) -> bool {
    percent >= AT_LIMIT * f64::from(limits.max_slowdown_percent)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::Progress;

    /// Pages a second of the link.
    const LINK: f64 = 28_700.0;

    fn seen(round: u32, pages: u64, dirty: f64) -> Observation {
        let progress = Progress { window: Duration::from_millis(500), ..Progress::default() };
        Observation {
            round,
            elapsed: Duration::from_secs(round.into()),
            residual_pages: pages,
            residual_bytes: pages * 4096,
            rate: LINK * 4096.0,
            dirty_pages_per_second: dirty,
            can_switch: false,
            fixed: Duration::from_millis(6),
            progress,
        }
    }

    fn slowing(max_slowdown_percent: u8) -> Limits {
        Limits { max_slowdown_percent, ..Limits::default() }
    }

    #[test]
    fn only_a_guest_that_gets_nowhere_by_itself_is_slowed() {
        let limits = slowing(99);
        assert!(is_needed(&limits, &seen(1, 100_000, LINK)));
        assert!(is_needed(&limits, &seen(1, 100_000, 0.95 * LINK)));
        assert!(!is_needed(&limits, &seen(1, 100_000, 0.5 * LINK)), "rounds get there");
        assert!(!is_needed(&slowing(0), &seen(1, 100_000, LINK)), "it may not be");
        let hopeless = Observation { fixed: Duration::from_millis(80), ..seen(1, 100_000, LINK) };
        assert!(!is_needed(&limits, &hopeless), "no round makes the fixed costs less");
        let late = Limits { timeout: Duration::from_secs(8), ..limits };
        assert!(is_needed(&late, &seen(1, 100_000, 0.6 * LINK)), "not in this time");
        let few = Limits { max_iterations: 4, ..limits };
        assert!(is_needed(&few, &seen(1, 100_000, 0.6 * LINK)), "not in so few rounds");
    }

    #[test]
    fn the_share_is_the_gentlest_that_keeps_to_the_limits_and_is_never_raised_again() {
        let budget = |limits: &Limits, seen: &Observation| {
            Controller::default().after_round(limits, seen, None).unwrap().0 as f64 / LINK
        };
        let about = |share: f64, wanted: f64| assert!((share - wanted).abs() < 0.01, "{share} {wanted}");
        about(budget(&slowing(99), &seen(1, 100_000, 2.0 * LINK)), 0.6);
        let late = Limits { timeout: Duration::from_millis(7_500), ..slowing(99) };
        about(budget(&late, &seen(1, 100_000, 2.0 * LINK)), 0.45);
        let too_late = Limits { timeout: Duration::from_secs(2), ..slowing(99) };
        about(budget(&too_late, &seen(1, 100_000, 2.0 * LINK)), 0.1);
        let mut controller = Controller::default();
        controller.after_round(&late, &seen(1, 100_000, 2.0 * LINK), None);
        controller.after_round(&slowing(99), &seen(2, 1_000, 0.45 * LINK), Some(50.0));
        assert_eq!(controller.share, 0.45);
    }

    #[test]
    fn a_limit_that_is_reached_winds_nothing_up() {
        let mut controller = Controller::default();
        for round in 1..20 {
            controller.after_round(&slowing(50), &seen(round, 100_000, 4.0 * LINK), Some(50.0));
        }
        assert_eq!(controller.correction, 1.0);
        let why = controller.was_in_vain(&slowing(50), &seen(20, 100_000, 4.0 * LINK), 50.0);
        assert!(why.contains("50 % is the limit") && why.contains("--max-slowdown"), "{why}");
    }

    #[test]
    fn a_guest_that_writes_less_by_itself_changes_nothing() {
        let mut controller = Controller::default();
        controller.after_round(&slowing(99), &seen(1, 100_000, 2.0 * LINK), None);
        let before = controller.clone();
        assert_eq!(controller.after_round(&slowing(99), &seen(2, 60_000, 0.01 * LINK), Some(0.0)), None);
        assert_eq!(controller, before);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever the attribution's error and however a link's measurements scatter, the measured rate comes
        /// to what it should be, and the budget takes no wild steps on the way.
        #[test]
        fn the_measured_rate_is_held_near_the_target(
            error in 0.4f64..2.5,
            scatter in prop::collection::vec((0.9f64..1.1, 0.9f64..1.1), 24),
            demand in 1.2f64..20.0,
        ) {
            let limits = Limits { timeout: Duration::from_secs(3600), max_iterations: 1000, ..slowing(99) };
            let mut controller = Controller::default();
            let mut budget = None::<f64>;
            let mut measured = demand * LINK;
            for (round, (link, writes)) in (1u32..).zip(scatter) {
                let mut seen = seen(round, 100_000, measured);
                seen.rate *= link;
                let percent = budget.map(|_| (100.0 * (1.0 - 1.0 / demand)).min(80.0));
                if let Some((new, _)) = controller.after_round(&limits, &seen, percent) {
                    let new = new as f64;
                    if let Some(old) = budget {
                        prop_assert!(new / old < 2.2 && old / new < 2.2, "{} to {}", old, new);
                    }
                    budget = Some(new);
                }
                measured = (budget.unwrap() * error * writes).min(demand * LINK);
                if round > 8 {
                    let share = measured / LINK;
                    prop_assert!(share > 0.35 && share < 0.95, "{} in round {}", share, round);
                }
            }
        }
    }
}
