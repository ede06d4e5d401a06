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
//! measurement half of one in the budget; the bounds keep what rounds can't explain from winding up. A short round
//! shows single rests, or none: short rounds are taken together until they show their mean.
//!
//! For the same reason a residual that is larger than an earlier one is no failure while the guest is held back. Rounds
//! are in vain only when nothing is left to be done about it: the most throttled vCPU is at its limit, or
//! the budget is the lowest there is. Until then the limits of rounds and time are what ends it.

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
/// Rounds that are shorter together are nothing to correct by: rests take some 50 ms, and they show some of
/// those, not their mean.
const WINDOW_MIN: Duration = Duration::from_millis(100);
/// Bounds of the correction.
const CORRECTION: (f64, f64) = (0.25, 2.0);
/// A budget that changes by less than this share stays.
const TOLERANCE: f64 = 0.05;
/// A vCPU that slept this share of what it may was held back no less than possible, ...
const AT_LIMIT: f64 = 0.9;
/// ... unless it could run by more than this factor less: of 99 %, 90 % is ten times as much running as need be.
const LESS_RUNNING: f64 = 2.0;

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
    (seen.rate / seen.page_bytes()).max(1.0)
}

/// What a guest that was held back did in a time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Outcome {
    seconds: f64,
    pages: f64,
    /// How long the most throttled vCPU slept, in seconds.
    slept: f64,
}

impl Outcome {
    fn add(&mut self, seen: &Observation, percent: f64) {
        let seconds = seen.progress.window.as_secs_f64();
        self.seconds += seconds;
        self.pages += seen.dirty_pages_per_second * seconds;
        self.slept += percent / 100.0 * seconds;
    }

    fn pages_per_second(&self) -> f64 {
        self.pages / self.seconds
    }

    fn percent(&self) -> f64 {
        100.0 * self.slept / self.seconds
    }
}

/// Finds the budget, round by round.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Controller {
    share: f64,
    correction: f64,
    /// As last set.
    budget: Option<f64>,
    /// Rounds that are too short together to be an outcome.
    short: Outcome,
    /// The last outcome, which may be of rounds before the last.
    outcome: Option<Outcome>,
    /// Whether nothing was corrected by it yet.
    is_new: bool,
}

impl Default for Controller {
    fn default() -> Self {
        let short = Outcome::default();
        Self { share: SHARE, correction: 1.0, budget: None, short, outcome: None, is_new: false }
    }
}

impl Controller {
    /// Takes in a round in all of which the guest was held back, and the most throttled vCPU slept `percent` of the
    /// time, or in which it was not.
    pub(crate) fn note(&mut self, seen: &Observation, percent: Option<f64>) {
        let Some(percent) = percent else {
            (self.short, self.outcome, self.is_new) = (Outcome::default(), None, false);
            return;
        };
        self.short.add(seen, percent);
        // In which nothing was written is part of a rest, and the slice that it pays for belongs to it.
        if self.short.seconds >= WINDOW_MIN.as_secs_f64() && self.short.pages > 0.0 {
            self.outcome = Some(std::mem::take(&mut self.short));
            self.is_new = true;
        }
    }

    /// Whether a guest that is held back keeps to its budget or could be made to: until rounds have shown that they
    /// get nowhere in spite of it, they are worth going on with.
    pub(crate) fn has_room(&self, limits: &Limits, seen: &Observation) -> bool {
        let is_lowest = self.share <= SHARES[SHARES.len() - 1] && self.correction <= CORRECTION.0;
        self.outcome.is_none_or(|outcome| {
            outcome.pages_per_second() <= self.share * link(seen)
                || !is_lowest && !at_limit(limits, outcome.percent())
        })
    }

    /// After a round that was [noted](Self::note): a new budget with its reason, or `None` where the present one stays.
    pub(crate) fn after_round(&mut self, limits: &Limits, seen: &Observation) -> Option<(u64, String)> {
        let link = link(seen);
        self.share = SHARES
            .into_iter()
            .find(|share| *share <= self.share && converges(limits, seen, *share))
            .unwrap_or(SHARES[SHARES.len() - 1]);
        let target = self.share * link;
        let correcting = self
            .outcome
            .filter(|outcome| std::mem::take(&mut self.is_new) && !at_limit(limits, outcome.percent()));
        // A guest that is not held back writes less by itself, which is nobody's error.
        if let Some(outcome) = correcting
            && (outcome.pages_per_second() > target || outcome.slept > 0.0)
        {
            let error = target / outcome.pages_per_second();
            self.correction = (self.correction * error.sqrt()).clamp(CORRECTION.0, CORRECTION.1);
        }
        let budget = (target * self.correction).max(1.0);
        let stays = self.budget.is_some_and(|old| (budget / old - 1.0).abs() < TOLERANCE);
        if stays {
            return None;
        }
        self.budget = Some(budget);
        let measured = self.writes(seen);
        let reason = format!(
            "the guest wrote {measured:.0} pages/s, the link carries {link:.0}: it may write {budget:.0}, {:.0} % of that{}; \
             its vCPUs slept {:.0} % of the time, {} % is the limit",
            self.share * 100.0,
            if self.correction == 1.0 { String::new() } else { format!(" times {:.2}", self.correction) },
            self.outcome.map_or(0.0, |outcome| outcome.percent()),
            limits.max_slowdown_percent,
        );
        Some((budget as u64, reason))
    }

    /// Pages a second that the guest wrote, as far as known.
    fn writes(&self, seen: &Observation) -> f64 {
        self.outcome.map_or(seen.dirty_pages_per_second, |outcome| outcome.pages_per_second())
    }

    /// Why rounds got nowhere in spite of it.
    pub(crate) fn was_in_vain(&self, limits: &Limits, seen: &Observation) -> String {
        let (writes, link) = (self.writes(seen), link(seen));
        if let Some(percent) = self.outcome.map(|outcome| outcome.percent())
            && at_limit(limits, percent)
        {
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
    let most = f64::from(limits.max_slowdown_percent);
    percent >= AT_LIMIT * most && 100.0 - percent <= LESS_RUNNING * (100.0 - most)
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

    /// A round and what comes of it.
    fn after(
        controller: &mut Controller,
        limits: &Limits,
        seen: &Observation,
        percent: Option<f64>,
    ) -> Option<(u64, String)> {
        controller.note(seen, percent);
        controller.after_round(limits, seen)
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
            after(&mut Controller::default(), limits, seen, None).unwrap().0 as f64 / LINK
        };
        let about = |share: f64, wanted: f64| assert!((share - wanted).abs() < 0.01, "{share} {wanted}");
        about(budget(&slowing(99), &seen(1, 100_000, 2.0 * LINK)), 0.6);
        let late = Limits { timeout: Duration::from_millis(7_500), ..slowing(99) };
        about(budget(&late, &seen(1, 100_000, 2.0 * LINK)), 0.45);
        let too_late = Limits { timeout: Duration::from_secs(2), ..slowing(99) };
        about(budget(&too_late, &seen(1, 100_000, 2.0 * LINK)), 0.1);
        let mut controller = Controller::default();
        after(&mut controller, &late, &seen(1, 100_000, 2.0 * LINK), None);
        after(&mut controller, &slowing(99), &seen(2, 1_000, 0.45 * LINK), Some(50.0));
        assert_eq!(controller.share, 0.45);
    }

    #[test]
    fn a_limit_that_is_reached_winds_nothing_up() {
        let mut controller = Controller::default();
        for round in 1..20 {
            after(&mut controller, &slowing(50), &seen(round, 100_000, 4.0 * LINK), Some(50.0));
        }
        assert_eq!(controller.correction, 1.0);
        let why = controller.was_in_vain(&slowing(50), &seen(20, 100_000, 4.0 * LINK));
        assert!(why.contains("50 % is the limit") && why.contains("--max-slowdown"), "{why}");
    }

    #[test]
    fn a_limit_is_reached_when_there_is_next_to_nothing_left_to_slow() {
        for (most, percent, is_reached) in [
            (99, 99.0, true),
            (99, 98.0, true),
            (99, 96.0, false),
            (50, 45.0, true),
            (50, 40.0, false),
            (20, 19.0, true),
        ] {
            assert_eq!(at_limit(&slowing(most), percent), is_reached, "{percent} of {most}");
        }
    }

    #[test]
    fn rounds_that_are_short_correct_the_budget_by_their_mean() {
        // Rounds of 40 ms see a slice of running, or the rest behind it.
        let short = |writes: f64| {
            let mut seen = seen(2, 100_000, writes);
            seen.progress.window = Duration::from_millis(40);
            seen
        };
        let rest = short(0.0);
        let limits = slowing(99);
        let mut controller = Controller::default();
        let (first, _) = after(&mut controller, &limits, &seen(1, 100_000, 4.0 * LINK), None).unwrap();
        assert_eq!(after(&mut controller, &limits, &rest, Some(100.0)), None);
        assert_eq!(after(&mut controller, &limits, &short(3.0 * LINK), Some(85.0)), None);
        let (budget, _) = after(&mut controller, &limits, &rest, Some(100.0)).unwrap();
        assert!((budget as f64 / first as f64 - 0.6f64.sqrt()).abs() < 0.01, "{first} to {budget}");
        assert_eq!(after(&mut controller, &limits, &rest, Some(100.0)), None, "corrected once");
    }

    #[test]
    fn there_is_room_until_the_limit_or_the_lowest_budget_is_reached() {
        let limits = Limits { timeout: Duration::from_secs(600), max_iterations: 1000, ..slowing(99) };
        let outwrites = seen(3, 100_000, 2.0 * LINK);
        let mut controller = Controller::default();
        assert!(controller.has_room(&limits, &outwrites), "nothing was seen yet");
        after(&mut controller, &limits, &outwrites, Some(96.0));
        assert!(controller.has_room(&limits, &outwrites));
        controller.note(&outwrites, Some(98.5));
        assert!(!controller.has_room(&limits, &outwrites));
        controller.note(&seen(3, 100_000, 0.5 * LINK), Some(98.5));
        assert!(controller.has_room(&limits, &outwrites), "it keeps to its budget");
        let late = Limits { timeout: Duration::from_millis(1), ..limits };
        for _ in 0..20 {
            after(&mut controller, &late, &outwrites, Some(96.0));
        }
        assert!(!controller.has_room(&late, &outwrites), "no budget is lower");
    }

    #[test]
    fn a_guest_that_writes_less_by_itself_changes_nothing() {
        let mut controller = Controller::default();
        after(&mut controller, &slowing(99), &seen(1, 100_000, 2.0 * LINK), None);
        let before = (controller.share, controller.correction, controller.budget);
        assert_eq!(after(&mut controller, &slowing(99), &seen(2, 60_000, 0.01 * LINK), Some(0.0)), None);
        assert_eq!((controller.share, controller.correction, controller.budget), before);
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
                if let Some((new, _)) = after(&mut controller, &limits, &seen, percent) {
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
