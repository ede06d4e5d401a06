use std::time::Duration;

use crate::policy::{ConvergencePolicy, Observation, PrecopyPolicy, Step, Verdict};
use crate::predict::{
    Choice, Model, PATIENCE, STICKY_PATIENCE, WriteFit, WriteSample, choose, only_switching_is_in_time,
    slowing_pays, summary,
};
use crate::{Limits, Prediction};

/// When the first round is cut short to see what the guest writes: long enough that a shaped link's queues and
/// the first faults of dirty tracking do not dominate, and 2 % of a round of 300 MiB at 1 Gbit/s.
const PROBE_AFTER: Duration = Duration::from_millis(50);
/// Probes use up rounds; with fewer allowed there are none to spare.
const PROBE_ROUNDS: u32 = 8;

/// Chooses between pre-copy and post-copy by what it measures.
///
/// It begins as pre-copy. A guest that fits is stopped, as by [`PrecopyPolicy`]; else every round's harvest
/// re-fits what the guest writes ([`WriteFit`]) and every way to go on is predicted ([`Model`]). Rounds go on
/// while they are predicted to reach the limits in a time worth it; otherwise the guest switches and the
/// rest follows it. Where post-copy is not allowed or not possible it is [`PrecopyPolicy`], with predictions.
///
/// Where `max_slowdown_percent` allows it, rounds over a guest that is throttled are a third way. They are
/// preferred to a switch where they pay by the same measure as others: whoever allowed the slowdown said what
/// may be paid for a guest that never depends on two hosts.
///
/// The first round is cut short after `PROBE_AFTER`, because what was sent of a guest that overwrites it all
/// is sent twice. One harvest can't tell what a longer window will find, so this early only certainty
/// counts: the n pages that were written in a window t need n ÷ b ≥ t to send. Sending them takes as long as
/// writing them took, so as long as the guest goes on like this no round leaves fewer than n.
#[derive(Debug, Default)]
pub struct AutoPolicy {
    precopy: PrecopyPolicy,
    fit: WriteFit,
    chose_rounds: bool,
    chose_throttle: bool,
}

impl ConvergencePolicy for AutoPolicy {
    fn decide(&mut self, limits: &Limits, seen: &Observation) -> Verdict {
        let predicted = self.predict(limits, seen);
        let plain = self.precopy.decide(limits, seen);
        let needs_it = !predicted.precopy.converges && predicted.precopy_throttled.converges;
        let alone = !seen.can_switch && seen.progress.unsent_pages == 0;
        let (step, why) = self.choose(limits, seen, &predicted, plain.step);
        let slow_down = self.chose_throttle || alone && (plain.slow_down || needs_it);
        let mut reason = format!("{}; {}", plain.reason, summary(&predicted));
        if let Some(why) = why {
            reason = format!("{reason}; {why}");
        }
        Verdict { step, slow_down, reason, predicted: Some(predicted) }
    }

    fn probe_after(&self, limits: &Limits) -> Option<Duration> {
        probe_after(limits)
    }
}

impl AutoPolicy {
    fn predict(&mut self, limits: &Limits, seen: &Observation) -> Prediction {
        let progress = &seen.progress;
        if self.fit.samples() == 0 {
            self.fit = WriteFit::new(progress.ram_pages);
        }
        self.fit.add(WriteSample { window: progress.window, pages: progress.dirtied_pages });
        let (writes, confidence) = self.fit.curve();
        let page_bytes = seen.residual_bytes as f64 / seen.residual_pages.max(1) as f64;
        let again = seen.residual_pages.saturating_sub(progress.unsent_pages) as f64;
        let first = progress.unsent_pages as f64 * progress.nonzero_share;
        Model {
            elapsed: seen.elapsed,
            rounds: seen.round,
            sent_bytes: progress.sent_bytes,
            ram_pages: progress.ram_pages,
            left_bytes: (again + first) * page_bytes,
            page_bytes: if seen.residual_pages > 0 { page_bytes } else { migrated_pages::PAGE_SIZE as f64 },
            rate: seen.rate,
            rtt: progress.rtt,
            round_overhead: progress.round_overhead,
            fixed: seen.fixed,
            writes,
            samples: self.fit.samples(),
            confidence,
            limits: *limits,
            can_switch: seen.can_switch,
        }
        .predict()
    }

    /// The step, and why it is not plain pre-copy's or why rounds go on.
    fn choose(
        &mut self,
        limits: &Limits,
        seen: &Observation,
        predicted: &Prediction,
        plain: Step,
    ) -> (Step, Option<String>) {
        if seen.expected_downtime() <= limits.max_downtime {
            return (plain, None);
        }
        if !seen.can_switch {
            return (
                plain,
                Some("post-copy is not possible or not allowed, so pre-copy's limits decide".into()),
            );
        }
        if seen.residual_pages == 0 {
            return (Step::Stop, Some("nothing is left that could follow the guest".into()));
        }
        let follow = |why: String| {
            let pages = seen.residual_pages;
            (Step::SwitchToPostcopy, Some(format!("{why}: {pages} pages follow the guest")))
        };
        if plain != Step::Iterate {
            return follow("pre-copy ends here".into());
        }
        if seen.progress.unsent_pages > 0 {
            let in_time =
                || only_switching_is_in_time(predicted, limits).filter(|_| seen.progress.rate_known);
            return match outruns_the_link(limits, seen).or_else(in_time) {
                Some(why) if slowing_pays(predicted, limits, PATIENCE) => {
                    self.chose_throttle = true;
                    (Step::Iterate, Some(format!("{why}, so the guest is slowed")))
                }
                Some(why) => follow(why),
                None => (Step::Iterate, Some("the first round goes on: the guest may yet be outrun".into())),
            };
        }
        if !seen.progress.rate_known {
            return (Step::Iterate, Some("the link's rate is not known yet".into()));
        }
        let patience = if self.chose_rounds { STICKY_PATIENCE } else { PATIENCE };
        match choose(predicted, limits, patience) {
            Choice { rounds: true, slowed, why } => {
                self.chose_rounds = true;
                self.chose_throttle |= slowed;
                (Step::Iterate, Some(why))
            }
            Choice { rounds: false, why, .. } => follow(why),
        }
    }
}

/// When to cut the first round short.
pub(crate) fn probe_after(limits: &Limits) -> Option<Duration> {
    (limits.max_iterations >= PROBE_ROUNDS).then_some(PROBE_AFTER)
}

/// Whether the latest harvest alone proves that rounds lead nowhere.
pub(crate) fn outruns_the_link(limits: &Limits, seen: &Observation) -> Option<String> {
    let progress = &seen.progress;
    let bytes = progress.dirtied_pages as f64 * seen.page_bytes();
    let (sending, window) = (bytes / seen.rate, progress.window.as_secs_f64());
    let fits = seen.fixed.as_secs_f64() + sending <= limits.max_downtime.as_secs_f64();
    (progress.rate_known && sending >= window && !fits).then(|| {
        format!(
            "sending the {} pages written in {:.0} ms would take {:.0} ms",
            progress.dirtied_pages,
            window * 1e3,
            sending * 1e3
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Progress;

    /// Pages a second of the link.
    const LINK: f64 = 28_700.0;

    /// After a round of a second in which the guest wrote `share` × what the link sends.
    fn seen(round: u32, pages: u64, share: f64) -> Observation {
        let dirtied = LINK * share;
        let progress = Progress {
            ram_pages: 1 << 24,
            nonzero_share: 1.0,
            dirtied_pages: dirtied as u64,
            window: Duration::from_secs(1),
            rate_known: true,
            ..Progress::default()
        };
        Observation {
            round,
            elapsed: Duration::from_secs(round.into()),
            residual_pages: pages,
            residual_bytes: pages * 4096,
            rate: LINK * 4096.0,
            dirty_pages_per_second: dirtied,
            can_switch: true,
            fixed: Duration::from_millis(6),
            progress,
        }
    }

    fn cut_short(seen: Observation) -> Observation {
        Observation { progress: Progress { unsent_pages: seen.residual_pages, ..seen.progress }, ..seen }
    }

    fn last_step(seen: &[Observation]) -> Step {
        let mut policy = AutoPolicy::default();
        let steps = seen.iter().map(|seen| policy.decide(&Limits::default(), seen).step);
        steps.last().unwrap()
    }

    #[test]
    fn what_was_chosen_at_the_border_is_kept_until_it_is_clearly_wrong() {
        let then = |share| [seen(1, 200_000, 0.48), seen(2, 190_000, share), seen(3, 180_000, share)];
        assert_eq!(last_step(&[seen(1, 200_000, 0.55)]), Step::SwitchToPostcopy);
        assert_eq!(last_step(&then(0.55)), Step::Iterate);
        assert_eq!(last_step(&then(0.75)), Step::SwitchToPostcopy);
    }

    #[test]
    fn rounds_that_cost_less_than_a_second_are_worth_it() {
        assert_eq!(last_step(&[seen(1, 2_000, 0.8)]), Step::Iterate);
        assert_eq!(last_step(&[seen(1, 100_000, 0.8)]), Step::SwitchToPostcopy);
        assert_eq!(last_step(&[seen(1, 2_000, 1.1)]), Step::SwitchToPostcopy);
    }

    #[test]
    fn a_rate_that_is_a_guess_proves_nothing_and_probes_are_no_stall() {
        let blind = |seen: Observation| Observation {
            progress: Progress { rate_known: false, ..seen.progress },
            ..seen
        };
        assert_eq!(last_step(&[blind(seen(1, 100_000, 2.0))]), Step::Iterate);
        assert_eq!(last_step(&[cut_short(seen(1, 1 << 24, 2.0))]), Step::SwitchToPostcopy);
        let probes: Vec<_> = (1..=6).map(|n| blind(cut_short(seen(n, 1 << 24, 2.0)))).collect();
        assert_eq!(last_step(&probes), Step::Iterate);
    }

    #[test]
    fn a_working_set_that_fits_the_downtime_outruns_nothing() {
        let limits = Limits { max_downtime: Duration::from_millis(300), ..Limits::default() };
        let mut seen = cut_short(seen(1, 1 << 24, 0.2));
        seen.progress.window = Duration::from_millis(50);
        assert_eq!(AutoPolicy::default().decide(&limits, &seen).step, Step::Iterate);
        assert_eq!(AutoPolicy::default().decide(&Limits::default(), &seen).step, Step::SwitchToPostcopy);
    }

    #[test]
    fn zero_pages_that_were_not_sent_yet_are_predicted_to_cost_nothing() {
        let mut seen = cut_short(seen(1, 1_000_000, 0.0));
        seen.progress.nonzero_share = 0.25;
        let predicted = AutoPolicy::default().decide(&Limits::default(), &seen).predicted.unwrap();
        assert_eq!(predicted.postcopy.bytes, 250_000 * 4096);
    }

    #[test]
    fn a_guest_with_nothing_left_is_stopped_though_its_fixed_costs_exceed_the_limit() {
        let late = Observation { fixed: Duration::from_millis(80), ..seen(2, 0, 0.0) };
        assert_eq!(last_step(&[late]), Step::Stop);
    }

    fn verdicts(limits: Limits, seen: &[Observation]) -> Vec<(Step, bool)> {
        let mut policy = AutoPolicy::default();
        seen.iter().map(|seen| policy.decide(&limits, seen)).map(|is| (is.step, is.slow_down)).collect()
    }

    fn slowing(max_slowdown_percent: u8) -> Limits {
        Limits { max_slowdown_percent, ..Limits::default() }
    }

    #[test]
    fn a_guest_that_may_be_slowed_is_slowed_before_it_is_switched() {
        let outrun = |percent| verdicts(slowing(percent), &[seen(1, 5_000, 2.0)]);
        assert_eq!(outrun(0), [(Step::SwitchToPostcopy, false)]);
        assert_eq!(outrun(80), [(Step::Iterate, true)]);
        assert_eq!(outrun(20), [(Step::SwitchToPostcopy, false)], "that little does not help");
        let cut = |percent| verdicts(slowing(percent), &[cut_short(seen(1, 20_000, 2.0))]);
        assert_eq!((cut(0), cut(80)), (vec![(Step::SwitchToPostcopy, false)], vec![(Step::Iterate, true)]));
    }

    #[test]
    fn a_guest_that_is_slowed_in_vain_is_switched() {
        let mut then: Vec<_> = (1..6).map(|round| seen(round, 5_000, 2.0)).collect();
        then.insert(0, seen(1, 5_000, 1.2));
        let last = verdicts(slowing(60), &then).pop().unwrap();
        assert_eq!(last.0, Step::SwitchToPostcopy);
    }

    #[test]
    fn without_post_copy_what_rounds_can_not_do_needs_a_slowdown() {
        let alone = |share| Observation { can_switch: false, ..seen(1, 100_000, share) };
        assert_eq!(verdicts(slowing(80), &[alone(2.0)]), [(Step::Iterate, true)]);
        assert_eq!(verdicts(slowing(0), &[alone(2.0)]), [(Step::Iterate, false)]);
        assert_eq!(verdicts(slowing(80), &[alone(0.3)]), [(Step::Iterate, false)]);
    }
}
