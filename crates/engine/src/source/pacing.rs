//! How the background push keeps to its rate and leaves room for pages that are asked for.

use std::time::Duration;

use migrated_pages::{PAGE_SIZE, PageRun};
use migrated_wire::{PathSample, SendPace};

use super::Source;
use super::common::Common;
use super::drain::Drain;
use super::push_rate::batch_pages;

/// The push gets at least every such part of the rate, however much is asked for: a guest that faults all the
/// time would else never be done.
const PUSH_AT_LEAST: u32 = 10;
/// What a limited page channel's transport holds unsent: a page that is asked for while it is in there crosses twice.
/// Enough for its thread to sleep meanwhile.
const UNSENT: Duration = Duration::from_millis(2);
const UNSENT_MIN: f64 = (128 << 10) as f64;

impl Source {
    /// Whether pages are asked for that the urgent channel has not taken yet: page channels should let it go first.
    #[must_use]
    pub fn has_urgent(&self) -> bool {
        self.state.drain().is_some_and(Drain::has_urgent)
    }

    /// What the transport of a page channel, or of the urgent one (`None`), knows of its way to the destination,
    /// after a batch.
    pub fn path_seen(&mut self, now: Duration, channel: Option<u16>, sample: &PathSample) {
        match channel {
            Some(channel) => {
                self.common.path.see(now, channel, sample);
                self.common.push.see(now, channel, sample);
            }
            None => self.common.push.see_urgent(sample),
        }
        if self.state.drain().is_some() {
            self.common.limit_push(now);
        }
    }

    /// How the transport of each page channel is to send from now on.
    #[must_use]
    pub fn lane_pace(&self) -> SendPace {
        match self.state.drain() {
            Some(_) => self.common.lane_pace(),
            None => SendPace::default(),
        }
    }
}

impl Common {
    /// Pages that follow the guest, for a page channel: whether there are some, or the moment to ask again.
    pub(super) fn next_push(
        &mut self,
        now: Duration,
        drain: &mut Drain,
        out: &mut Vec<PageRun>,
    ) -> Result<bool, Duration> {
        let rate = self.pace.rate();
        let most = batch_pages(rate, drain.is_waited_for());
        if let (Some(at), Some(rate)) = (self.pace.not_before(now), rate) {
            let batch = Duration::try_from_secs_f64((most * PAGE_SIZE as u64) as f64 / rate);
            let at_the_latest =
                drain.pushed_at.saturating_add(batch.unwrap_or(Duration::MAX).saturating_mul(PUSH_AT_LEAST));
            if now < at_the_latest {
                return Err(at.min(at_the_latest));
            }
        }
        let pages = drain.take_push(most, self.counts(), out);
        drain.pushed_at = now;
        // Before they are sent, as another channel may ask meanwhile.
        self.pace.spend(pages * PAGE_SIZE as u64);
        Ok(pages > 0)
    }

    /// Pages that are asked for or soon will be: nothing holds them back, but the push makes up for them.
    pub(super) fn next_urgent(&mut self, drain: &mut Drain, out: &mut Vec<PageRun>) -> bool {
        let any = drain.take_urgent(self.counts(), out);
        self.pace.spend(out.iter().map(|run| run.count).sum::<u64>() * PAGE_SIZE as u64);
        any
    }

    /// Takes over the rate that leaves no queue on the way.
    pub(super) fn limit_push(&mut self, now: Duration) {
        self.pace.limit_to(now, self.push.rate());
        let (push, link) = (self.pace.rate(), self.push.link());
        let counts = self.counts();
        counts.push_bps = push.map(|rate| rate * 8.0);
        counts.link_bps = link.map(|rate| rate * 8.0);
    }

    /// Each page channel's share of the rate, rounded up so that the channels' own limits never are the limit, and
    /// that it seldom changes.
    pub(super) fn lane_pace(&self) -> SendPace {
        let Some(rate) = self.pace.rate() else { return SendPace::default() };
        let share = (rate / f64::from(self.config.channels.max(1))).ceil() as u64;
        let unsent = (rate * UNSENT.as_secs_f64()).max(UNSENT_MIN) as u64;
        let unsent = u32::try_from(round_up(unsent)).unwrap_or(u32::MAX);
        SendPace { bytes_per_second: Some(round_up(share)), unsent: Some(unsent) }
    }
}

/// Rounds up to a number with five significant bits: by 6 % at most.
fn round_up(n: u64) -> u64 {
    let step = 1u64 << (u64::BITS - n.leading_zeros()).saturating_sub(5);
    n.div_ceil(step).saturating_mul(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_rounded_up_a_little() {
        for n in [0, 1, 31, 33, 1_000_000, 15_625_000, u64::MAX / 2] {
            let rounded = round_up(n);
            assert!(rounded >= n && rounded - n <= n / 16, "{n}: {rounded}");
            assert_eq!(round_up(rounded), rounded);
        }
    }
}
