use std::time::Duration;

use migrated_pages::PageSet;
use migrated_wire::ToSource;

use super::common::Common;
use super::interrupted::Interrupted;
use super::postcopy_setup::PostcopySetup;
use super::precopy_paused::PrecopyPaused;
use super::stop_and_copy::StopAndCopy;
use super::{FailureCode, SourceAction, SourceEvent, State};
use crate::limits::Limits;
use crate::policy::{Observation, Progress, Step};
use crate::predict::{KICKS, RATE_GUESS, ROUND_TRIPS};
use crate::record::OnTimeout;
use crate::round::{Round, RoundKind};

/// A round with less payload says nothing about the link's rate.
const RATE_SAMPLE_MIN: u64 = 1 << 20;
/// Finding that a page is zero, about. A round that spent more than half of its time so measured something
/// other than the link.
const ZERO_PAGE: Duration = Duration::from_micros(1);
/// Rounds that are cut short at most until one has measured the link.
const PROBES: u32 = 4;

/// Rounds over RAM while the guest runs.
pub(super) struct Precopy {
    round: Round,
    /// All pages of the round: what it is about when its link is lost.
    pages: PageSet,
    doing: Doing,
    /// When the destination acknowledged the round.
    acked_at: Duration,
    /// When dirty pages were harvested last.
    harvested_at: Duration,
    /// What the last harvest took.
    harvest: Duration,
    /// What handling the state will take the destination.
    rehearsal: Duration,
    rate: f64,
    /// Whether `rate` is more than a guess.
    rate_known: bool,
    /// Whether the round has pages that were never sent, whose zero pages say nothing about the dirty ones.
    is_first_pass: bool,
    /// When the first round is cut short to decide with what was seen so far.
    probe_at: Option<Duration>,
    /// Pages of a round that was cut short.
    leftover: Option<PageSet>,
    /// Whether the link was lost since the last harvest.
    interrupted: bool,
}

enum Doing {
    Sending,
    Harvesting,
    Pausing { residual: PageSet, called_at: Duration },
}

impl Precopy {
    pub(super) fn begin(common: &mut Common, pages: PageSet, rehearsal: Duration) -> Self {
        common.act(SourceAction::Wake);
        let limits = &common.config.limits;
        Self {
            pages: pages.clone(),
            round: Round::new(RoundKind::Pages, 1, pages, common.config.channels, common.now),
            doing: Doing::Sending,
            acked_at: common.now,
            harvested_at: common.now,
            harvest: Duration::ZERO,
            rehearsal,
            rate: limits.bandwidth_bps.map_or(RATE_GUESS, |bits| bits as f64 / 8.0),
            rate_known: limits.bandwidth_bps.is_some(),
            is_first_pass: true,
            probe_at: probe_at(common),
            leftover: None,
            interrupted: false,
        }
    }

    pub(super) fn round_mut(&mut self) -> Option<&mut Round> {
        matches!(self.doing, Doing::Sending).then_some(&mut self.round)
    }

    pub(super) fn on(mut self: Box<Self>, common: &mut Common, event: SourceEvent) -> State {
        match (event, std::mem::replace(&mut self.doing, Doing::Sending)) {
            (SourceEvent::Message(ToSource::IterationDone { iteration, pages }), Doing::Sending)
                if iteration == self.round.n =>
            {
                if pages != self.round.handed_out() || !self.round.all_marked() {
                    return common.miscounted(&self.round, pages);
                }
                self.acked_at = common.now;
                self.probe_at = None;
                self.doing = Doing::Harvesting;
                common.read_throttle();
                common.act(SourceAction::Harvest);
                State::Precopy(self)
            }
            (SourceEvent::Harvested { dirty, took }, Doing::Harvesting) => {
                self.harvest = took;
                self.decide(common, dirty)
            }
            (SourceEvent::Paused, Doing::Pausing { residual, called_at }) => {
                common.released();
                StopAndCopy::begin(common, self, residual, called_at)
            }
            (SourceEvent::Tick, Doing::Sending) if self.is_overdue(common) => self.time_out(common),
            (SourceEvent::Tick, Doing::Sending) if self.probe_is_due(common) => {
                self.cut_short(common, "to decide by what the guest has written so far".into())
            }
            (SourceEvent::Tick, Doing::Sending) => self.watch(common),
            (SourceEvent::LinkLost(reason), Doing::Sending) => {
                PrecopyPaused::begin(common, Interrupted::Round(self), FailureCode::LinkLost, &reason)
            }
            (event, doing) => match common.common_failure(&event) {
                Some(failure) => common.fail_running(failure),
                None => {
                    self.doing = doing;
                    State::Precopy(self)
                }
            },
        }
    }

    /// When the round will have to be cut short.
    pub(super) fn deadline(&self, common: &Common) -> Option<Duration> {
        let timeout = common.config.limits.timeout;
        self.leftover.is_none().then(|| self.probe_at.map_or(timeout, |at| at.min(timeout)))
    }

    fn is_overdue(&self, common: &Common) -> bool {
        common.now >= common.config.limits.timeout && self.leftover.is_none()
    }

    fn probe_is_due(&mut self, common: &Common) -> bool {
        let due = self.probe_at.is_some_and(|at| common.now >= at);
        if due {
            self.probe_at = None;
        }
        due && self.round.remaining() > 0
    }

    /// The timeout came in the middle of a round. `cancel` ends here, unless the guest may switch to
    /// post-copy; `stop` ends the round as it is and keeps what it did not send.
    fn time_out(self: Box<Self>, common: &mut Common) -> State {
        let timeout = common.config.limits.timeout;
        match common.config.limits.on_timeout {
            OnTimeout::Cancel if !common.can_switch => {
                let text = format!(
                    "pre-copy did not finish within {timeout:?}; raise --timeout or use --on-timeout stop"
                );
                let failure = common.failure(FailureCode::NotConverged, text);
                common.fail_running(failure)
            }
            OnTimeout::Cancel | OnTimeout::Stop => {
                self.cut_short(common, format!("the timeout of {timeout:?} is over"))
            }
        }
    }

    fn cut_short(mut self: Box<Self>, common: &mut Common, why: String) -> State {
        common.decide("cut_round_short", why);
        let leftover = self.round.cut_short(common.no_pages());
        leftover.runs().for_each(|run| _ = self.pages.remove(run));
        self.leftover = Some(leftover);
        common.act(SourceAction::Wake);
        self.watch(common)
    }

    fn watch(self: Box<Self>, common: &mut Common) -> State {
        match common.watch() {
            Some(silence) => {
                PrecopyPaused::begin(common, Interrupted::Round(self), FailureCode::PeerDead, &silence)
            }
            None => State::Precopy(self),
        }
    }

    /// Notes the pages of stop-and-copy's round, in case its link is lost.
    pub(super) fn keep(&mut self, pages: &PageSet) {
        self.pages.clone_from(pages);
    }

    /// Takes stop-and-copy's round, whose pages were kept, for one of these: the guest runs again.
    pub(super) fn take_back(&mut self, round: Round) {
        self.round = round;
        self.doing = Doing::Sending;
    }

    /// Payload bytes a second that the link was last seen to carry.
    pub(super) const fn rate(&self) -> f64 {
        self.rate
    }

    /// Number of the round.
    pub(super) const fn iteration(&self) -> u32 {
        self.round.n
    }

    /// Pages that are to be sent before the round is over, as far as is known without asking the destination.
    pub(super) fn remaining(&self) -> u64 {
        self.round.remaining() + self.leftover.as_ref().map_or(0, PageSet::len)
    }

    /// Notes in the record how far the round got before its link was lost.
    pub(super) fn note_interrupted(&self, common: &mut Common) {
        common.note_iteration(&self.round, 0, self.round.started);
    }

    /// Goes on, on a new link, with what the interrupted round has left: a round of its own, as its pages are new
    /// versions. `received` is what the destination has of it. Gives how many pages are left.
    pub(super) fn resume(&mut self, common: &mut Common, received: &PageSet) -> Result<u64, String> {
        let waiting = self.round.cut_short(common.no_pages());
        waiting.runs().for_each(|run| _ = self.pages.remove(run));
        let mut left = std::mem::replace(&mut self.pages, common.no_pages());
        if let Some(run) = received.runs().find(|run| left.remove(*run) != run.count) {
            return Err(format!("the destination has {run:?}, of which something was not sent"));
        }
        left.union(&waiting);
        if let Some(leftover) = self.leftover.take() {
            left.union(&leftover);
        }
        let pages = left.len();
        self.interrupted = true;
        common.resume_throttle();
        self.begin_round(common, left);
        Ok(pages)
    }

    fn begin_round(&mut self, common: &mut Common, pages: PageSet) {
        common.act(SourceAction::Wake);
        let n = self.round.n + 1;
        let looks = !self.rate_known || common.policy.probes_again();
        self.probe_at = match self.is_first_pass && looks && n <= PROBES {
            true => probe_at(common),
            false => None,
        };
        self.pages.clone_from(&pages);
        self.round = Round::new(RoundKind::Pages, n, pages, common.config.channels, common.now);
        self.doing = Doing::Sending;
    }

    fn decide(mut self: Box<Self>, common: &mut Common, mut dirty: PageSet) -> State {
        let seconds = self.acked_at.saturating_sub(self.round.started).as_secs_f64();
        if self.round.bytes >= RATE_SAMPLE_MIN && seconds > 0.0 {
            self.rate = self.round.bytes as f64 / seconds;
            let looking = self.round.zero_pages as f64 * ZERO_PAGE.as_secs_f64();
            self.rate_known |= looking <= seconds / 2.0;
        }
        let dirtied = dirty.len();
        let since = std::mem::replace(&mut self.harvested_at, common.now);
        common.note_iteration(&self.round, dirtied, since);
        let leftover = self.leftover.take().unwrap_or_else(|| common.no_pages());
        dirty.union(&leftover);
        let unsent = if self.is_first_pass { leftover.len() } else { 0 };
        let mut seen = self.observe(common, &dirty, dirtied, since);
        seen.progress.unsent_pages = unsent;
        seen.progress.interrupted = std::mem::take(&mut self.interrupted);
        common.observe_throttle(&mut seen);
        self.is_first_pass = unsent > 0;
        common.record.expected_downtime_us = Some(seen.expected_downtime().as_secs_f64() * 1e6);
        let mut verdict = common.policy.decide(&common.config.limits, &seen);
        common.record.predicted.get_or_insert_default().decision = verdict.predicted;
        let step = match verdict.step {
            Step::SwitchToPostcopy if dirty.is_empty() => Step::Stop,
            step => step,
        };
        match step {
            Step::Iterate => {
                common.decide("iterate", verdict.reason);
                common.throttle(&seen, verdict.slow_down);
                self.iterate(common, dirty)
            }
            Step::Stop => {
                common.decide("stop_and_copy", verdict.reason);
                self.stop(common, dirty)
            }
            Step::SwitchToPostcopy if common.can_switch => match common.objection() {
                None => {
                    common.decide("switch_to_postcopy", verdict.reason);
                    common.release_throttle();
                    PostcopySetup::begin(common, self.round.n + 1, dirty)
                }
                Some(objection) => self.switch_later(common, dirty, objection),
            },
            Step::GiveUp | Step::SwitchToPostcopy => {
                verdict.reason = common.in_spite_of_throttle(verdict.reason, &seen);
                common.decide("give_up", verdict.reason.clone());
                let failure = common.failure(FailureCode::NotConverged, verdict.reason);
                common.fail_running(failure)
            }
        }
    }

    fn iterate(mut self: Box<Self>, common: &mut Common, dirty: PageSet) -> State {
        self.begin_round(common, dirty);
        State::Precopy(self)
    }

    fn stop(mut self: Box<Self>, common: &mut Common, residual: PageSet) -> State {
        // What rests is stopped already and must not write once more: pausing is what lets go of it.
        common.act(SourceAction::Pause);
        self.doing = Doing::Pausing { residual, called_at: common.now };
        State::Precopy(self)
    }

    /// The guest is to switch, but the link is not fit for it: rounds go on until it is, or the time is over.
    fn switch_later(self: Box<Self>, common: &mut Common, dirty: PageSet, objection: String) -> State {
        let Limits { timeout, on_timeout, .. } = common.config.limits;
        if common.now < timeout {
            common.decide("switch_delayed", objection);
            return self.iterate(common, dirty);
        }
        common.decide("switch_refused", format!("{objection}; the timeout of {timeout:?} is over"));
        match on_timeout {
            OnTimeout::Stop => self.stop(common, dirty),
            OnTimeout::Cancel => common.fail_unfit(&objection),
        }
    }

    fn observe(&self, common: &Common, dirty: &PageSet, dirtied: u64, since: Duration) -> Observation {
        let bytes_per_page = match self.round.pages {
            pages if !self.is_first_pass && pages > 0 => self.round.bytes as f64 / pages as f64,
            _ => common.payload_per_page(),
        };
        let window = common.now.saturating_sub(since);
        let seconds = window.as_secs_f64();
        let rtt = common.link.rtt.unwrap_or_default();
        let ram = &common.record.ram;
        let progress = Progress {
            ram_pages: ram.pages,
            nonzero_share: ram.pages_sent as f64 / (ram.pages_sent + ram.pages_zero).max(1) as f64,
            sent_bytes: common.record.iterations.iter().map(|iteration| iteration.bytes).sum(),
            dirtied_pages: dirtied,
            window,
            rate_known: self.rate_known,
            round_overhead: rtt + self.harvest,
            rtt,
            ..Progress::default()
        };
        Observation {
            round: self.round.n,
            elapsed: common.now,
            residual_pages: dirty.len(),
            residual_bytes: (dirty.len() as f64 * bytes_per_page) as u64,
            rate: self.rate,
            dirty_pages_per_second: if seconds > 0.0 { dirtied as f64 / seconds } else { 0.0 },
            can_switch: common.can_switch,
            fixed: KICKS + self.harvest + self.rehearsal + rtt * ROUND_TRIPS,
            progress,
        }
    }
}

fn probe_at(common: &Common) -> Option<Duration> {
    let after = common.policy.probe_after(&common.config.limits).filter(|_| common.can_switch)?;
    Some(common.now.saturating_add(after))
}
