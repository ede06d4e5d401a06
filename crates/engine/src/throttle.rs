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
/// A shorter window between two harvests has too few pages to correct by.
const WINDOW_MIN: Duration = Duration::from_millis(20);
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
    /// After a round in which the most throttled vCPU slept `percent` of the time: a new budget with its reason,
    /// or `None` where the present one stays.
    pub(crate) fn after_round(
        &mut self,
        limits: &Limits,
        seen: &Observation,
        percent: f64,
    ) -> Option<(u64, String)> {
        let link = link(seen);
        let measured = seen.dirty_pages_per_second;
        self.share = SHARES
            .into_iter()
            .find(|share| *share <= self.share && converges(limits, seen, *share))
            .unwrap_or(SHARES[SHARES.len() - 1]);
        let target = self.share * link;
        let free_to_correct = self.budget.is_some()
            && seen.progress.window >= WINDOW_MIN
            && measured > 0.0
            && !at_limit(limits, percent);
        // A guest that is not held back writes less by itself, which is nobody's error.
        if free_to_correct && (measured > target || percent > 0.0) {
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
             its vCPUs slept {percent:.0} % of the time, {} % is the limit",
            self.share * 100.0,
            if self.correction == 1.0 { String::new() } else { format!(" times {:.2}", self.correction) },
            limits.max_slowdown_percent,
        );
        Some((budget as u64, reason))
    }

    /// Nothing is held back any more: the next budget is news, whatever it is.
    pub(crate) const fn released(&mut self) {
        self.budget = None;
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
