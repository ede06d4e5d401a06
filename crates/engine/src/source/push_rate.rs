//! How fast pages are pushed after a guest.
//!
//! A page that a vCPU waits for has a channel of its own, but the bottleneck on the way has one queue for all. What
//! the push keeps in that queue each urgent page waits for, and every sender that probes for the link's rate by
//! filling its queue keeps some there: cubic all that the queue holds, BBR about three segmentation bursts a channel
//! (tcp_bbr.c, `bbr_quantization_budget`), which is 200 KiB or 1.6 ms at 1 Gbit/s. Leaving the link a few percent
//! short of full empties the queue. So while pages follow a guest, the push is held just below the rate at
//! which a queue begins to stand.
//!
//! *When does a queue stand?* Its delay is what round trips take beyond the shortest one (Vegas, Brakmo and Peterson
//! 1995; LEDBAT, RFC 6817), or by Little's law what is in flight ÷ the rate at which it is delivered, less the
//! shortest round trip. Each is wrong at times (a delayed acknowledgement looks like a queue to the one, a burst that
//! a token bucket lets through to the other), so the smaller one counts. Bursts come and go; what stands stays
//! above the target for an interval (CoDel, RFC 8289).
//!
//! *What is the link's rate?* While a queue stands the bottleneck is busy, and then, and only then, what is
//! delivered is its rate (unless the sender sleeps longer than what it gave lasts). A token bucket's burst doesn't count, because no queue stands before the bucket is
//! empty. So a standing queue is both the signal to slow down and the time to measure: the push goes at a share
//! of what is delivered until the queue is gone ([`Phase::Draining`]), then just below what was delivered meanwhile
//! ([`Phase::Steady`]), and after a while slowly faster, and faster the longer nothing stands, in case the link has more
//! to give now. Whoever has no queue is not limited at all ([`Phase::Free`]): an idle 100 Gbit/s link stays that.
//!
//! *Whose queue is it?* A queue of ours gives out more than goes in while it drains. A delay while just that much passes,
//! or one that outlasts the slowing down, is others': their traffic, or a host too busy to answer. It counts as
//! part of the path from then on, as the push would else give way to it without end. And a bottleneck has the same
//! rate each time it is measured: a rate that was measured once, or anew each time, is soon tried to be exceeded.
//!
//! Before the switch, rounds at full rate are watched but not limited: by the switch the link's rate is known.

use std::collections::VecDeque;
use std::time::Duration;

use migrated_pages::PAGE_SIZE;
use migrated_wire::PathSample;

/// A queue with a shorter delay is left alone: about what waking the threads of a fault costs at both ends, and well
/// above the scatter of round trips in a data centre.
const TARGET: Duration = Duration::from_micros(500);
/// A queue that is above the target for this time and so many samples stands. CoDel takes a round trip of a
/// wide-area path; here it's several batches at 1 Gbit/s.
const INTERVAL: Duration = Duration::from_millis(5);
const SAMPLES: u32 = 4;
/// While a queue drains: the share of the link's rate that is used. 2 ms of queue are gone in 8 ms.
const DRAIN_SHARE: f64 = 0.75;
/// The share of the link's rate that is used when no queue stands, as BBRv3 leaves 2 % to others' queues
/// (draft-ietf-ccwg-bbr, `BBRPacingMarginPercent` and `BBRHeadroom`): less is lost than what is judged.
const STEADY_SHARE: f64 = 0.97;
/// Rates over a shorter time are mostly the size of bursts: 25 ms at 1 Gbit/s are 48 bursts of 64 KiB.
const SPAN: Duration = Duration::from_millis(25);
/// A sender that was silent for this long, and longer than what it had given lasts, has left the bottleneck idle.
const IDLE_AFTER: Duration = Duration::from_millis(1);
/// Kept to know what was delivered of late.
const HISTORY: Duration = Duration::from_millis(50);
/// For Little's law, which must not count what passed before the queue built up.
const RECENT: Duration = Duration::from_millis(10);
/// A rate is the one measured before when it is no further from it than this. Else the new one counts alone.
const AGREES: f64 = 0.1;
/// A queue of ours gives out at least so much more than goes in while it drains, less the size of bursts; and if the
/// link carries so much less than goes in, the queue is ours as well.
const DRAINS: f64 = 1.1;
/// By this factor the rate falls at most when a queue is noticed: acknowledgements may have been held up, and a queue
/// that still stands is noticed again.
const FALLS: f64 = 0.25;
/// Share of what was delivered when the queue was noticed that is kept in any case, should the queue have been none.
const KEPT: f64 = 0.9;
/// Growth a second while the rate was not measured twice alike: ten times it is found in 0.3 s.
const GROWTH_UNSURE: f64 = 8.0;
/// How long the rate stays where it is before more is tried: a queue of 0.5 ms now and then costs less than the
/// share of a link that was taken for slow.
const HOLD: Duration = Duration::from_millis(250);
/// Growth a second when more is tried and no queue is there at all; it becomes less in proportion as the delay comes
/// near its target, as LEDBAT's does. 0.5 ms of queue take 70 ms to build up beyond the link's rate.
const GROWTH: f64 = 0.2;
/// The growth doubles each time that so long no queue stood, so that ten times the rate is found within 3 s.
const DOUBLES_AFTER: Duration = Duration::from_millis(250);
const DOUBLINGS_MAX: f64 = 6.0;
/// The push never falls below this: a batch of the smallest size every 100 ms.
const FLOOR: f64 = (BATCH_PAGES_MIN * PAGE_SIZE as u64 * 10) as f64;

/// How long a batch may take at the rate in force: an urgent page is behind half of one on average.
const BATCH_TIME: Duration = Duration::from_micros(250);
/// Pages in a batch of the push where nothing limits it: 256 KiB, so that a page which is asked for while a
/// batch that holds it is being sent does not wait long.
pub(super) const BATCH_PAGES_MAX: u64 = 64;
/// Pages in a batch while somebody waits for a page: its thread needs the same cores and locks.
pub(super) const BATCH_PAGES_BUSY: u64 = 16;
/// Smaller batches cost more than they gain: system calls, wake-ups, heads of frames.
const BATCH_PAGES_MIN: u64 = 4;

/// Pages in a batch of the push at this rate in bytes a second.
pub(super) fn batch_pages(rate: Option<f64>, is_waited_for: bool) -> u64 {
    let most = if is_waited_for { BATCH_PAGES_BUSY } else { BATCH_PAGES_MAX };
    let fit = rate.map_or(f64::MAX, |rate| rate * BATCH_TIME.as_secs_f64() / PAGE_SIZE as f64);
    (fit as u64).clamp(BATCH_PAGES_MIN, most)
}

/// Holds the push below what makes a queue stand on the way.
#[derive(Debug)]
pub(super) struct PushRate {
    governs: bool,
    /// The page channels; the last one is the urgent channel.
    lanes: Vec<Lane>,
    /// Acknowledged on all channels together.
    acked: u64,
    history: VecDeque<Mark>,
    last: Duration,
    /// When the bottleneck has surely nothing to do any more, if nothing new comes.
    busy_until: Duration,
    /// Since when the queue's delay is above the target, and in how many samples.
    above: Option<(Mark, u32)>,
    /// Delay that is not ours.
    foreign: Duration,
    phase: Phase,
    /// Bytes a second that the link was last seen to carry.
    link: Option<f64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Lane {
    acked: u64,
    in_flight: u64,
    unsent: u64,
}

#[derive(Clone, Copy, Debug)]
struct Mark {
    at: Duration,
    acked: u64,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Free,
    Draining {
        rate: f64,
        since: Duration,
        /// Delivered since then, the link's rate.
        mark: Mark,
        /// The link's rate when the queue was noticed.
        entry: f64,
        patience: Duration,
    },
    Steady {
        rate: f64,
        since: Duration,
        /// Whether the link's rate was measured twice alike.
        is_sure: bool,
    },
}

impl PushRate {
    pub(super) fn new(channels: u16) -> Self {
        Self {
            governs: false,
            lanes: vec![Lane::default(); usize::from(channels) + 1],
            acked: 0,
            history: VecDeque::new(),
            last: Duration::ZERO,
            busy_until: Duration::ZERO,
            above: None,
            foreign: Duration::ZERO,
            phase: Phase::Free,
            link: None,
        }
    }

    /// Pages follow the guest from now on.
    pub(super) fn govern(&mut self, now: Duration) {
        self.governs = true;
        self.above = None;
        if let Some(link) = self.link {
            let mark = self.mark(now);
            self.drain_from(mark, link, now, Duration::ZERO);
        }
    }

    /// There are new channels, perhaps on another path.
    pub(super) fn relinked(&mut self) {
        *self = Self { governs: self.governs, ..Self::new(self.lanes.len() as u16 - 1) };
    }

    /// Bytes a second that may be sent, if there is a limit.
    pub(super) fn rate(&self) -> Option<f64> {
        match self.phase {
            Phase::Draining { rate, .. } | Phase::Steady { rate, .. } if self.governs => {
                Some(rate.max(FLOOR))
            }
            _ => None,
        }
    }

    /// Bytes a second that the link was last seen to carry, once a queue stood.
    pub(super) const fn link(&self) -> Option<f64> {
        self.link
    }

    /// Takes in what a page channel's transport says.
    pub(super) fn see(&mut self, now: Duration, channel: u16, sample: &PathSample) {
        self.account(channel.into(), sample);
        let since_last = now.saturating_sub(std::mem::replace(&mut self.last, now));
        self.remember(now);
        let all = self.delay(now, sample);
        self.foreign = self.foreign.min(all);
        let (delay, target) = (all - self.foreign, self.target(now));
        if now > self.busy_until {
            self.measure_anew(now);
        }
        self.busy_until = now.saturating_add(all.max(self.lasts(now)).max(IDLE_AFTER));
        self.above = match (self.above, delay > target) {
            (Some((mark, samples)), true) => Some((mark, samples + 1)),
            (None, true) => Some((self.mark(now), 1)),
            (_, false) => None,
        };
        match self.phase {
            _ if !self.governs => self.learn(now),
            Phase::Draining { .. } if delay <= target / 2 => self.drained(now),
            Phase::Draining { .. } => self.drain_on(now, all),
            Phase::Free => self.drain_when_standing(now, delay),
            Phase::Steady { .. } => {
                let room = 1.0 - delay.as_secs_f64() / target.as_secs_f64();
                self.try_more(now, since_last.mul_f64(room.max(0.0)));
                self.drain_when_standing(now, delay);
            }
        }
    }

    /// Takes in what the urgent channel's transport says: it has its part of the link. Its round trips say little,
    /// as the end of a lone page is acknowledged late.
    pub(super) fn see_urgent(&mut self, sample: &PathSample) {
        self.account(self.lanes.len() - 1, sample);
    }

    fn account(&mut self, lane: usize, sample: &PathSample) {
        let Some(lane) = self.lanes.get_mut(lane) else { return };
        self.acked += sample.acked.saturating_sub(lane.acked);
        *lane = Lane { acked: sample.acked, in_flight: sample.in_flight, unsent: sample.unsent };
    }

    /// The sender slept for longer than what it had given lasts, so what was delivered meanwhile is not the link's
    /// rate.
    fn measure_anew(&mut self, now: Duration) {
        self.above = None;
        let start = self.mark(now);
        if let Phase::Draining { mark, .. } = &mut self.phase {
            *mark = start;
        }
    }

    /// Measures the link while rounds fill its queue.
    fn learn(&mut self, now: Duration) {
        if let Some((mark, samples)) = self.above
            && now.saturating_sub(mark.at) >= SPAN
            && samples >= SAMPLES
        {
            self.link = Some(self.delivered(mark, now).max(FLOOR));
            self.above = Some((self.mark(now), 0));
        }
    }

    fn drain_when_standing(&mut self, now: Duration, delay: Duration) {
        if let Some((mark, samples)) = self.above
            && now.saturating_sub(mark.at) >= INTERVAL
            && samples >= SAMPLES
        {
            let before = self.rate().or_else(|| self.recent(now, HISTORY)).unwrap_or(FLOOR);
            let entry = self.delivered(mark, now).max(before * FALLS);
            self.drain_from(mark, entry, now, delay);
        }
    }

    fn drain_from(&mut self, mark: Mark, entry: f64, now: Duration, delay: Duration) {
        // Twice the time in which what is left free of the link takes up the queue.
        let drains = delay.mul_f64(2.0 / (1.0 - DRAIN_SHARE));
        let patience = 4 * SPAN + drains;
        self.phase = Phase::Draining { rate: entry * DRAIN_SHARE, since: now, mark, entry, patience };
    }

    /// The queue still stands.
    fn drain_on(&mut self, now: Duration, delay: Duration) {
        let Phase::Draining { rate, since, mark, entry, patience } = self.phase else { return };
        if now.saturating_sub(mark.at) < SPAN {
            return;
        }
        let delivered = self.delivered(mark, now);
        let link = delivered.max(rate * FALLS);
        let passes = (rate / DRAINS..rate * DRAINS).contains(&delivered);
        if passes || now.saturating_sub(since) >= patience {
            self.foreign = delay;
            self.above = None;
            self.settle(now, entry, false);
            return;
        }
        self.link = Some(link);
        let mark = self.mark(now);
        self.phase = Phase::Draining { rate: link * DRAIN_SHARE, since, mark, entry, patience };
    }

    fn drained(&mut self, now: Duration) {
        let Phase::Draining { mark, entry, .. } = self.phase else { return };
        let measured = match now.saturating_sub(mark.at) >= INTERVAL {
            true => self.delivered(mark, now).max(entry * KEPT),
            false => entry,
        };
        match self.link.filter(|link| (measured - link).abs() <= link * AGREES) {
            Some(link) => self.settle(now, (link + measured) / 2.0, true),
            None => self.settle(now, measured, false),
        }
    }

    fn settle(&mut self, now: Duration, link: f64, is_sure: bool) {
        let link = link.max(FLOOR);
        self.link = Some(link);
        self.phase = Phase::Steady { rate: link * STEADY_SHARE, since: now, is_sure };
    }

    fn try_more(&mut self, now: Duration, time: Duration) {
        let Phase::Steady { rate, since, is_sure } = self.phase else { return };
        let hold = if is_sure { HOLD } else { Duration::ZERO };
        let Some(tried) = now.saturating_sub(since).checked_sub(hold) else { return };
        // Who doesn't use what there is need not have more.
        if self.recent(now, HISTORY).is_none_or(|recent| recent < rate / 2.0) {
            return;
        }
        let doublings = (tried.as_secs_f64() / DOUBLES_AFTER.as_secs_f64()).floor().min(DOUBLINGS_MAX);
        let growth = if is_sure { GROWTH * doublings.exp2() } else { GROWTH_UNSURE };
        let rate = rate * (1.0 + growth * time.min(SPAN).as_secs_f64());
        self.phase = Phase::Steady { rate, since, is_sure };
    }

    fn mark(&self, now: Duration) -> Mark {
        Mark { at: now, acked: self.acked }
    }

    fn delivered(&self, since: Mark, now: Duration) -> f64 {
        let seconds = now.saturating_sub(since.at).as_secs_f64().max(1e-6);
        (self.acked - since.acked) as f64 / seconds
    }

    fn remember(&mut self, now: Duration) {
        let is_due = self.history.back().is_none_or(|mark| now.saturating_sub(mark.at) >= HISTORY / 50);
        if is_due {
            self.history.push_back(self.mark(now));
        }
        while self.history.get(1).is_some_and(|mark| now.saturating_sub(mark.at) >= HISTORY) {
            self.history.pop_front();
        }
    }

    /// What was delivered over the last `time` or, where samples are rare, since the one before.
    fn recent(&self, now: Duration, time: Duration) -> Option<f64> {
        let is_past = |mark: &&Mark| now.saturating_sub(mark.at) >= time;
        let mark = self.history.iter().rev().find(is_past).or_else(|| self.history.front())?;
        (mark.at < now && mark.acked < self.acked).then(|| self.delivered(*mark, now))
    }

    fn delay(&self, now: Duration, sample: &PathSample) -> Duration {
        let by_time = sample.rtt.saturating_sub(sample.min_rtt);
        let in_flight: u64 = self.lanes.iter().map(|lane| lane.in_flight).sum();
        let by_bytes = self.recent(now, RECENT).map(|rate| {
            let stays = Duration::try_from_secs_f64(in_flight as f64 / rate).unwrap_or(Duration::MAX);
            stays.saturating_sub(sample.min_rtt)
        });
        by_bytes.map_or(by_time, |by_bytes| by_time.min(by_bytes))
    }

    /// How long what the transports have keeps the bottleneck busy.
    fn lasts(&self, now: Duration) -> Duration {
        let held: u64 = self.lanes.iter().map(|lane| lane.in_flight + lane.unsent).sum();
        let rate = self.recent(now, RECENT).unwrap_or(f64::INFINITY);
        Duration::try_from_secs_f64(held as f64 / rate).unwrap_or(Duration::MAX)
    }

    /// Two batches are no queue: one leaves while the next one comes.
    fn target(&self, now: Duration) -> Duration {
        let (rate, batch) = match self.rate() {
            Some(rate) => (Some(rate), batch_pages(Some(rate), true)),
            None => (self.recent(now, RECENT), BATCH_PAGES_BUSY),
        };
        let bytes = 2.0 * (batch * PAGE_SIZE as u64) as f64;
        let batches = rate.and_then(|rate| Duration::try_from_secs_f64(bytes / rate).ok());
        batches.map_or(TARGET, |batches| batches.max(TARGET))
    }
}

#[cfg(test)]
mod tests;
