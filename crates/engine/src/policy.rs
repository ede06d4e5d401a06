//! When pre-copy goes on, stops, or gives up.
//!
//! Pre-copy converges while the guest writes more slowly than the link drains: with λ = dirty rate ÷ link
//! rate < 1, each round is λ times as long as the one before, and the downtime if the guest were stopped now,
//!
//! > downtime = fixed + residual bytes ÷ link rate,
//!
//! shrinks towards its fixed part (pause, last harvest, state, round trips), which no round can reduce. At
//! λ ≥ 1 rounds are pure waste: the residual stays at the working set. So after every round the policy asks in
//! this order: does the downtime fit? is it still falling so fast that one more short round pays? is it stuck?
//! (Formulas: limits 2 and 3 of Clark et al. 2005, §5.3, and the iteration model of Akoush et al. 2010.)

use std::time::Duration;

use crate::auto::{outruns_the_link, probe_after};
use crate::predict::{WriteFit, WriteSample};
use crate::{AutoPolicy, Limits, Mode, OnTimeout, Prediction, throttle};

/// What is known after a round.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Observation {
    /// Number of the round that ended, from 1.
    pub round: u32,
    /// Since the request.
    pub elapsed: Duration,
    /// Pages dirty now.
    pub residual_pages: u64,
    /// Payload bytes those will need.
    pub residual_bytes: u64,
    /// Payload bytes a second that the link drains.
    pub rate: f64,
    /// Pages the guest dirties a second.
    pub dirty_pages_per_second: f64,
    /// Whether the guest may run at the destination before its pages are there.
    pub can_switch: bool,
    /// The part of the downtime that doesn't depend on the residual.
    pub fixed: Duration,
    /// What a prediction rests on besides.
    pub progress: Progress,
}

/// How far pages have come and what the guest did meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Progress {
    /// Pages of guest RAM.
    pub ram_pages: u64,
    /// Of the residual: pages that were never sent, because the first round was cut short.
    pub unsent_pages: u64,
    /// Share of pages sent for the first time that had payload.
    pub nonzero_share: f64,
    /// Payload bytes sent in all rounds.
    pub sent_bytes: u64,
    /// Pages that the guest wrote between the last two harvests.
    pub dirtied_pages: u64,
    /// Time between the last two harvests.
    pub window: Duration,
    /// Whether the rate was measured or given, not guessed.
    pub rate_known: bool,
    /// What a round costs besides its bytes.
    pub round_overhead: Duration,
    /// Round trip time.
    pub rtt: Duration,
    /// Whether the link was lost in the round: then the guest had more time to write than a round takes.
    pub interrupted: bool,
    /// Whether the guest is held back, and keeps to its budget or could be held back more.
    pub throttle_works: bool,
}

impl Observation {
    /// The downtime if the guest were stopped now.
    #[must_use]
    pub fn expected_downtime(&self) -> Duration {
        self.fixed + self.transfer_time()
    }

    /// Payload bytes that a page comes to on the wire.
    pub(crate) fn page_bytes(&self) -> f64 {
        let bytes = self.residual_bytes as f64 / self.residual_pages.max(1) as f64;
        if bytes > 0.0 { bytes } else { migrated_pages::PAGE_SIZE as f64 }
    }

    /// How long sending the residual takes.
    #[must_use]
    pub fn transfer_time(&self) -> Duration {
        if self.residual_bytes == 0 {
            return Duration::ZERO;
        }
        Duration::try_from_secs_f64(self.residual_bytes as f64 / self.rate).unwrap_or(Duration::MAX / 4)
    }

    /// The downtime expected after one more round: what the guest dirties while the residual is sent.
    #[must_use]
    pub fn after_another_round(&self) -> Duration {
        let round = self.transfer_time().as_secs_f64();
        let bytes_per_page = self.residual_bytes as f64 / self.residual_pages.max(1) as f64;
        let dirtied = (self.dirty_pages_per_second * round).min(self.residual_pages as f64);
        let transfer = Duration::try_from_secs_f64(dirtied * bytes_per_page / self.rate);
        self.fixed + transfer.unwrap_or(Duration::MAX / 4)
    }
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// Send the dirty pages while the guest runs.
    Iterate,
    /// Stop the guest and send the rest.
    Stop,
    /// Stop the guest and run it at the destination; the rest follows it. Only when
    /// [`Observation::can_switch`].
    SwitchToPostcopy,
    /// Leave the guest where it is.
    GiveUp,
}

/// A step with its reason, for the record.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// What to do.
    pub step: Step,
    /// With [`Step::Iterate`]: rounds get nowhere unless what the guest writes is held to what the link carries.
    pub slow_down: bool,
    /// Why, with the numbers.
    pub reason: String,
    /// What each mode would cost from here, if the policy predicts.
    pub predicted: Option<Prediction>,
}

impl Verdict {
    fn new(step: Step, reason: String) -> Self {
        Self { step, slow_down: false, reason, predicted: None }
    }
}

/// Decides after every round.
pub trait ConvergencePolicy: Send {
    /// What to do after the round that `seen` describes.
    fn decide(&mut self, limits: &Limits, seen: &Observation) -> Verdict;

    /// After this time the first round is cut short, so that a decision can be made while little was sent; again
    /// until the link's rate is known, four times at most. Asked only where the guest may switch to post-copy.
    fn probe_after(&self, _limits: &Limits) -> Option<Duration> {
        None
    }

    /// Whether the first round is to be cut short once more although the link's rate is known.
    fn probes_again(&self) -> bool {
        false
    }
}

/// Rounds without a new best residual after which another one is waste.
const STALL_ROUNDS: u32 = 3;
/// A residual is a new best only when it is below this share of the old best.
const STALL_MARGIN: f64 = 0.96;

/// Pre-copy with a stall rule.
#[derive(Debug, Default)]
pub struct PrecopyPolicy {
    best_residual: Option<u64>,
    rounds_since_best: u32,
    slowed: bool,
}

impl ConvergencePolicy for PrecopyPolicy {
    fn decide(&mut self, limits: &Limits, seen: &Observation) -> Verdict {
        if seen.progress.interrupted {
            self.best_residual = None;
        }
        // Of a first round that was cut short the residual is not what rounds leave.
        if seen.progress.unsent_pages == 0 {
            self.note(seen.residual_bytes);
        }
        let expected = seen.expected_downtime();
        let numbers = format!(
            "{} dirty pages ({} KiB) at {:.0} MiB/s and {:.2} ms fixed give {:.2} ms of downtime; limit {:.2} ms",
            seen.residual_pages,
            seen.residual_bytes / 1024,
            seen.rate / f64::from(1 << 20),
            seen.fixed.as_secs_f64() * 1e3,
            expected.as_secs_f64() * 1e3,
            limits.max_downtime.as_secs_f64() * 1e3,
        );
        let exhausted = if seen.round >= limits.max_iterations {
            Some(format!("{} iterations are the limit", limits.max_iterations))
        } else if seen.elapsed >= limits.timeout {
            Some(format!("the timeout of {:?} is over", limits.timeout))
        } else {
            None
        };
        if expected <= limits.max_downtime {
            let better = seen.after_another_round();
            let in_time = |goal| seen.elapsed + seen.transfer_time() + better <= goal;
            let may_go_on = exhausted.is_none() && limits.max_total.is_none_or(in_time);
            if may_go_on && self.rounds_since_best == 0 && better * 2 <= expected {
                let better = better.as_secs_f64() * 1e3;
                let reason = format!("{numbers}; another round would bring it to {better:.2} ms");
                return Verdict::new(Step::Iterate, reason);
            }
            return Verdict::new(Step::Stop, numbers);
        }
        // What a guest writes that is held back comes in bursts, so the residual of short rounds scatters. As long as
        // something is left to be done about it, that is no stall.
        let got_nowhere = self.rounds_since_best >= STALL_ROUNDS && !seen.progress.throttle_works;
        let stalled = got_nowhere.then(|| {
            let why = match seen.fixed < limits.max_downtime {
                true => "the guest writes as fast as the link sends",
                false => "what every stop takes is more than the limit, so raise --max-downtime",
            };
            format!("no progress in {STALL_ROUNDS} rounds: {why}")
        });
        let Some(why) = exhausted.or(stalled) else {
            let slow_down = throttle::is_needed(limits, seen);
            if slow_down && !std::mem::replace(&mut self.slowed, true) {
                // Rounds that got nowhere without a throttle say nothing about those with one.
                self.rounds_since_best = 0;
            }
            return Verdict { slow_down, ..Verdict::new(Step::Iterate, numbers) };
        };
        let (step, action) = match limits.on_timeout {
            OnTimeout::Cancel => (Step::GiveUp, "cancel"),
            OnTimeout::Stop => (Step::Stop, "stop"),
        };
        Verdict::new(step, format!("{numbers}; {why}; the declared action is {action}"))
    }
}

impl PrecopyPolicy {
    fn note(&mut self, residual: u64) {
        let is_best = self.best_residual.is_none_or(|best| (residual as f64) < best as f64 * STALL_MARGIN);
        if is_best {
            self.best_residual = Some(residual);
            self.rounds_since_best = 0;
        } else {
            self.rounds_since_best += 1;
        }
    }
}

/// A round is waste when it leaves more than this share of what it sent to be sent again: by then post-copy
/// sends each page once more and is done, where rounds would go on for ever.
const WASTE: f64 = 0.5;

/// Pre-copy while it pays, then post-copy for the rest. A guest that pre-copy can stop within the limit of
/// its downtime is stopped: it need not run on a host that lacks pages.
///
/// The first round is waste when the guest writes everywhere meanwhile. It is cut short as by [`AutoPolicy`], and when
/// the guest is seen to outrun the link, once more: one harvest can't tell a small working set, beside which a first
/// round is worth it, from a guest that overwrites all; two windows of different length can.
#[derive(Debug, Default)]
pub struct HybridPolicy {
    precopy: PrecopyPolicy,
    fit: WriteFit,
    probes_again: bool,
}

impl ConvergencePolicy for HybridPolicy {
    fn decide(&mut self, limits: &Limits, seen: &Observation) -> Verdict {
        let verdict = self.precopy.decide(limits, seen);
        let fits = seen.expected_downtime() <= limits.max_downtime;
        if fits || !seen.can_switch {
            return verdict;
        }
        let first_round = match seen.progress.unsent_pages {
            0 => None,
            _ => Some(self.first_round(limits, seen)),
        };
        let round = seen.transfer_time().as_secs_f64();
        let again = (seen.dirty_pages_per_second * round).min(seen.residual_pages as f64);
        if seen.residual_pages == 0 {
            let reason = format!("{}; nothing is left that could follow the guest", verdict.reason);
            return Verdict::new(Step::Stop, reason);
        }
        let why = if verdict.step != Step::Iterate {
            "pre-copy ends here".to_owned()
        } else if let Some(first_round) = first_round {
            match first_round {
                Err(goes_on) => {
                    return Verdict::new(Step::Iterate, format!("{}; {goes_on}", verdict.reason));
                }
                Ok(is_waste) => is_waste,
            }
        } else if again > WASTE * seen.residual_pages as f64 {
            format!("another round of {:.0} ms would leave {again:.0} pages", round * 1e3)
        } else {
            return verdict;
        };
        let reason = format!("{}; {why}: {} pages follow the guest", verdict.reason, seen.residual_pages);
        Verdict::new(Step::SwitchToPostcopy, reason)
    }

    fn probe_after(&self, limits: &Limits) -> Option<Duration> {
        let after = probe_after(limits)?;
        Some(if self.probes_again { after * 2 } else { after })
    }

    fn probes_again(&self) -> bool {
        self.probes_again
    }
}

impl HybridPolicy {
    /// Why the rest of a first round that was cut short is waste, or why it goes on.
    fn first_round(&mut self, limits: &Limits, seen: &Observation) -> Result<String, String> {
        let progress = &seen.progress;
        if self.fit.samples() == 0 {
            self.fit = WriteFit::new(progress.ram_pages);
        }
        self.fit.add(WriteSample { window: progress.window, pages: progress.dirtied_pages });
        let Some(outruns) = outruns_the_link(limits, seen) else {
            self.probes_again = false;
            return Err("the first round goes on: the guest may yet be outrun".into());
        };
        if self.fit.samples() < 2 {
            self.probes_again = true;
            return Err(format!("{outruns}; another look tells where the guest writes"));
        }
        self.probes_again = false;
        let worth = progress.ram_pages as f64 * progress.nonzero_share;
        let bytes = progress.unsent_pages as f64 * progress.nonzero_share * seen.page_bytes();
        let written = self.fit.curve().0.pages_in(bytes / seen.rate).min(worth);
        let numbers =
            format!("the guest would write {written:.0} of {worth:.0} pages until all were sent once");
        match written > WASTE * worth {
            true => Ok(format!("{outruns}, and {numbers}")),
            false => Err(format!("the first round goes on: {numbers}")),
        }
    }
}

/// The policy of a mode.
#[must_use]
pub fn policy_for(mode: Mode) -> Box<dyn ConvergencePolicy> {
    match mode {
        Mode::Precopy | Mode::Postcopy => Box::<PrecopyPolicy>::default(),
        Mode::Hybrid => Box::<HybridPolicy>::default(),
        Mode::Auto => Box::<AutoPolicy>::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::WriteCurve;

    const MIB: f64 = 1048576.0;

    fn seen(round: u32, pages: u64, dirty: f64) -> Observation {
        Observation {
            round,
            elapsed: Duration::from_secs(round.into()),
            residual_pages: pages,
            residual_bytes: pages * 4096,
            rate: 100.0 * MIB,
            dirty_pages_per_second: dirty,
            can_switch: false,
            fixed: Duration::from_millis(1),
            progress: Progress::default(),
        }
    }

    #[test]
    fn stops_when_the_residual_and_the_fixed_costs_fit() {
        // 1024 pages at 100 MiB/s are 40 ms, and one more round would dirty as many.
        let verdict = PrecopyPolicy::default().decide(&Limits::default(), &seen(1, 1024, 1e9));
        assert_eq!(verdict.step, Step::Stop);
        let tight = Limits { max_downtime: Duration::from_millis(40), ..Limits::default() };
        assert_eq!(PrecopyPolicy::default().decide(&tight, &seen(1, 1024, 1e9)).step, Step::Iterate);
    }

    #[test]
    fn goes_on_below_the_limit_while_a_round_halves_the_downtime() {
        let verdict = PrecopyPolicy::default().decide(&Limits::default(), &seen(1, 1024, 1000.0));
        assert_eq!(verdict.step, Step::Iterate, "{}", verdict.reason);
        let verdict = PrecopyPolicy::default().decide(&Limits::default(), &seen(1, 3, 1000.0));
        assert_eq!(verdict.step, Step::Stop, "{}", verdict.reason);
    }

    #[test]
    fn a_stall_ends_by_the_declared_action() {
        for (on_timeout, step) in [(OnTimeout::Cancel, Step::GiveUp), (OnTimeout::Stop, Step::Stop)] {
            let limits = Limits { on_timeout, ..Limits::default() };
            let mut policy = PrecopyPolicy::default();
            let steps: Vec<Step> =
                (1..=4).map(|n| policy.decide(&limits, &seen(n, 100_000 - u64::from(n), 1e6)).step).collect();
            assert_eq!(steps, [Step::Iterate, Step::Iterate, Step::Iterate, step]);
        }
    }

    #[test]
    fn a_limit_below_the_fixed_costs_is_named_as_the_reason() {
        let reason = |fixed| {
            let mut policy = PrecopyPolicy::default();
            let seen = |n| Observation { fixed: Duration::from_millis(fixed), ..seen(n, 100_000, 1e6) };
            (1..=4).map(|n| policy.decide(&Limits::default(), &seen(n)).reason).last().unwrap()
        };
        assert!(reason(60).contains("raise --max-downtime"), "{}", reason(60));
        assert!(reason(40).contains("as fast as the link"), "{}", reason(40));
    }

    #[test]
    fn rounds_before_the_guest_was_slowed_are_no_stall() {
        let limits = Limits { max_slowdown_percent: 90, ..Limits::default() };
        let mut policy = PrecopyPolicy::default();
        // Round 1 took long, so it does not show yet that later ones get nowhere.
        let rates = [100.0, 1e6, 1e6, 1e6, 1e6];
        let steps: Vec<_> =
            (1..).zip(rates).map(|(n, rate)| policy.decide(&limits, &seen(n, 100_000, rate))).collect();
        let steps: Vec<_> = steps.iter().map(|is| (is.step, is.slow_down)).collect();
        let slowed = (Step::Iterate, true);
        assert_eq!(steps, [(Step::Iterate, false), slowed, slowed, slowed, (Step::GiveUp, false)]);
    }

    #[test]
    fn a_guest_whose_throttle_works_is_not_given_up_before_its_limits() {
        let limits = Limits { max_slowdown_percent: 99, max_iterations: 12, ..Limits::default() };
        // What rounds left, one after another, when the guest slept 96 % of the time, of 99 %: no best after 7,000.
        let residuals =
            [82_120, 62_730, 45_970, 18_000, 11_820, 14_860, 17_970, 7_070, 12_130, 12_300, 9_870];
        let steps = |throttle_works| {
            let mut policy = PrecopyPolicy::default();
            let round = |(n, pages)| {
                let seen = seen(n, pages, 20_000.0);
                let progress = Progress { throttle_works, ..Progress::default() };
                policy.decide(&limits, &Observation { progress, ..seen }).step
            };
            (1..).zip(residuals).map(round).collect::<Vec<_>>()
        };
        assert_eq!(steps(true), [Step::Iterate; 11]);
        assert_eq!(steps(false)[10], Step::GiveUp);
        let mut policy = PrecopyPolicy::default();
        let progress = Progress { throttle_works: true, ..Progress::default() };
        let last = Observation { progress, ..seen(12, 10_000, 20_000.0) };
        assert_eq!(policy.decide(&limits, &last).step, Step::GiveUp, "rounds are limited all the same");
    }

    #[test]
    fn hybrid_switches_when_a_round_would_not_halve_the_rest_and_stops_when_it_fits() {
        let steps = |pages, dirty, can_switch| {
            let seen = Observation { can_switch, ..seen(1, pages, dirty) };
            HybridPolicy::default().decide(&Limits::default(), &seen).step
        };
        // 100,000 pages take 3.9 s, in which the guest writes 39,000 or all of them again.
        assert_eq!(steps(100_000, 10_000.0, true), Step::Iterate);
        assert_eq!(steps(100_000, 1e6, true), Step::SwitchToPostcopy);
        assert_eq!(steps(100_000, 1e6, false), Step::Iterate, "as pre-copy");
        assert_eq!(steps(1024, 1e9, true), Step::Stop);
        let limits = Limits { max_iterations: 1, ..Limits::default() };
        let seen = Observation { can_switch: true, ..seen(1, 100_000, 1.0) };
        assert_eq!(HybridPolicy::default().decide(&limits, &seen).step, Step::SwitchToPostcopy);
    }

    /// A first round of 256 MiB cut short at 1 Gbit/s, after a window in which a guest wrote at 390,000 pages a second
    /// among so many pages.
    fn cut_short(working_set: f64, window_ms: u64) -> Observation {
        const RAM: u64 = 65_536;
        let window = Duration::from_millis(window_ms);
        let dirtied = WriteCurve::new(390_000.0, working_set).pages_in(window.as_secs_f64());
        let progress = Progress {
            ram_pages: RAM,
            unsent_pages: RAM - 1_500,
            nonzero_share: 1.0,
            dirtied_pages: dirtied as u64,
            window,
            rate_known: true,
            ..Progress::default()
        };
        let rate = 125e6;
        let dirty = dirtied / window.as_secs_f64();
        Observation { can_switch: true, rate, progress, ..seen(1, RAM, dirty) }
    }

    #[test]
    fn hybrid_sees_early_that_its_first_round_is_waste() {
        let steps = |working_set| {
            let mut policy = HybridPolicy::default();
            let first = policy.decide(&Limits::default(), &cut_short(working_set, 50));
            let again = policy.probes_again();
            let second = policy.decide(&Limits::default(), &cut_short(working_set, 100));
            assert!(!policy.probes_again());
            (first.step, again, second.step)
        };
        // Everything is overwritten, an eighth of it, or so little that the link may outrun the guest.
        assert_eq!(steps(65_536.0), (Step::Iterate, true, Step::SwitchToPostcopy));
        assert_eq!(steps(8_192.0), (Step::Iterate, true, Step::Iterate));
        assert_eq!(steps(1_000.0), (Step::Iterate, false, Step::Iterate));
    }

    #[test]
    fn limits_of_time_and_rounds_end_it() {
        let limits = Limits { max_iterations: 2, ..Limits::default() };
        assert_eq!(PrecopyPolicy::default().decide(&limits, &seen(2, 100_000, 1e6)).step, Step::GiveUp);
        let limits = Limits { timeout: Duration::from_secs(5), ..Limits::default() };
        assert_eq!(PrecopyPolicy::default().decide(&limits, &seen(5, 100_000, 1e6)).step, Step::GiveUp);
    }
}
