//! Whether the link is one to let a guest run over that lacks pages.
//!
//! After the switch every fault crosses the link twice, and the guest depends on it until the last page is there. A
//! link that loses segments or whose round trips scatter makes each of thousands of faults a wait for a retransmission
//! timeout (RFC 6298: never below 200 ms on Linux), where pre-copy only gets slower. So a switch waits while the
//! last seconds look like that.

use std::collections::VecDeque;
use std::time::Duration;

use migrated_wire::PathSample;

use crate::liveness::Liveness;

/// What counts as "of late": several retransmission timeouts, and two pings.
const WINDOW: Duration = Duration::from_secs(2);
/// The window moves in steps of this.
const STEP: Duration = Duration::from_millis(100);
/// A link is a bad bet when it loses more than this share of its segments: one fault in ten, whose page and request
/// are two to five segments, would then wait for a retransmission. A sender that probes for a shaped link's rate stays
/// below 2 % (Cardwell et al., "BBR", 2017: the loss that BBRv3 and cubic themselves cause).
const LOSS_MAX: f64 = 0.05;
/// With fewer segments than this a lost one says nothing.
const SEGMENTS_MIN: u64 = 200;
/// A link is a bad bet when its round trips scatter by more than this and this many times the shortest of them.
/// Queues of our own making scatter by a few ms, a path that changes or a radio link by far more.
const SCATTER_MAX: Duration = Duration::from_millis(10);
const SCATTER_MAX_RTTS: u32 = 4;
/// With fewer samples than this their scatter says nothing.
const SAMPLES_MIN: u64 = 8;

/// What page channels' transports said of late.
#[derive(Debug)]
pub(super) struct PathWatch {
    lanes: Vec<Counters>,
    slots: VecDeque<Slot>,
    min_rtt: Option<Duration>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    segments: u64,
    retransmitted: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    began: Duration,
    segments: u64,
    retransmitted: u64,
    samples: u64,
    scatter: Duration,
}

impl PathWatch {
    pub(super) fn new(channels: u16) -> Self {
        Self { lanes: vec![Counters::default(); channels.into()], slots: VecDeque::new(), min_rtt: None }
    }

    /// Takes in what a page channel's transport says.
    pub(super) fn see(&mut self, now: Duration, channel: u16, sample: &PathSample) {
        let Some(lane) = self.lanes.get_mut(usize::from(channel)) else { return };
        let PathSample { segments, retransmitted, rtt_variation, min_rtt, .. } = *sample;
        let before = std::mem::replace(lane, Counters { segments, retransmitted });
        if !min_rtt.is_zero() {
            self.min_rtt = Some(self.min_rtt.map_or(min_rtt, |least| least.min(min_rtt)));
        }
        self.forget(now);
        if self.slots.back().is_none_or(|slot| now >= slot.began + STEP) {
            self.slots.push_back(Slot { began: now, ..Slot::default() });
        }
        if let Some(slot) = self.slots.back_mut() {
            slot.segments += segments.saturating_sub(before.segments);
            slot.retransmitted += retransmitted.saturating_sub(before.retransmitted);
            slot.samples += 1;
            slot.scatter += rtt_variation;
        }
    }

    fn forget(&mut self, now: Duration) {
        while self.slots.front().is_some_and(|slot| now.saturating_sub(slot.began) > WINDOW) {
            self.slots.pop_front();
        }
    }

    /// Why it would be a bad bet to switch now, with the numbers. Where no pages flow, pings tell.
    pub(super) fn objection(&mut self, now: Duration, pings: &Liveness) -> Option<String> {
        self.forget(now);
        let sum = |of: fn(&Slot) -> u64| self.slots.iter().map(of).sum::<u64>();
        let (segments, lost, samples) =
            (sum(|slot| slot.segments), sum(|slot| slot.retransmitted), sum(|slot| slot.samples));
        if segments >= SEGMENTS_MIN && lost as f64 > segments as f64 * LOSS_MAX {
            return Some(format!(
                "{lost} of {segments} segments of the last {WINDOW:?} were lost, {:.1} %; the limit is {:.0} %",
                lost as f64 / segments as f64 * 100.0,
                LOSS_MAX * 100.0
            ));
        }
        if samples >= SAMPLES_MIN {
            let scatter: Duration = self.slots.iter().map(|slot| slot.scatter).sum();
            return scatters(scatter.div_f64(samples as f64), self.min_rtt.unwrap_or_default());
        }
        scatters(pings.scatter(now)?, pings.rtt.unwrap_or_default())
    }
}

fn scatters(scatter: Duration, shortest: Duration) -> Option<String> {
    let most = SCATTER_MAX.max(shortest * SCATTER_MAX_RTTS);
    (scatter > most).then(|| {
        format!("round trips of late scatter by {scatter:.1?} around {shortest:.1?} or more; the limit is {most:.1?}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn ms(n: u32) -> Duration {
        MS * n
    }

    fn sample(segments: u64, retransmitted: u64, scatter: Duration) -> PathSample {
        PathSample {
            segments,
            retransmitted,
            rtt_variation: scatter,
            min_rtt: MS / 10,
            ..PathSample::default()
        }
    }

    /// Samples of both channels every 10 ms for a second, from a moment on.
    fn watch(path: &mut PathWatch, from: u32, counters: &mut (u64, u64), lost: u64, scatter: Duration) {
        for tick in 0..100 {
            counters.0 += 20;
            counters.1 += lost;
            for channel in 0..2 {
                path.see(ms(from + tick * 10), channel, &sample(counters.0, counters.1, scatter));
            }
        }
    }

    #[test]
    fn loss_of_late_is_a_bad_bet_and_loss_long_ago_is_not() {
        let (mut path, pings) = (PathWatch::new(2), Liveness::new(Duration::ZERO));
        assert_eq!(path.objection(Duration::ZERO, &pings), None, "who knows nothing has no objection");
        let mut counters = (0, 0);
        watch(&mut path, 0, &mut counters, 2, MS);
        let why = path.objection(ms(1000), &pings).unwrap();
        assert!(why.contains("400 of 4000 segments") && why.contains("10.0 %"), "{why}");
        watch(&mut path, 1000, &mut counters, 0, MS);
        watch(&mut path, 2000, &mut counters, 0, MS);
        assert_eq!(path.objection(ms(3100), &pings), None);
        let mut few = PathWatch::new(1);
        few.see(Duration::ZERO, 0, &sample(10, 2, MS));
        assert_eq!(few.objection(Duration::ZERO, &pings), None);
    }

    #[test]
    fn scatter_of_late_is_a_bad_bet() {
        let (mut path, pings) = (PathWatch::new(2), Liveness::new(Duration::ZERO));
        watch(&mut path, 0, &mut (0, 0), 0, ms(8));
        assert_eq!(path.objection(ms(1000), &pings), None);
        watch(&mut path, 5000, &mut (0, 0), 0, ms(40));
        let why = path.objection(ms(6000), &pings).unwrap();
        assert!(why.contains("40.0ms"), "{why}");
    }

    #[test]
    fn pings_tell_where_no_pages_flow() {
        let mut path = PathWatch::new(1);
        let mut pings = Liveness::new(Duration::ZERO);
        let mut now = Duration::ZERO;
        for round_trip in [1, 1, 1, 2, 1, 1] {
            let nonce = pings.ping_due(now).unwrap();
            pings.pong(now + ms(round_trip), nonce);
            now += ms(10);
        }
        assert_eq!(path.objection(now, &pings), None);
        let mut asked = Vec::new();
        while let Some(nonce) = pings.ping_due(now) {
            asked.push((nonce, now));
            now += ms(10);
        }
        // A lost segment held all of them up.
        asked.iter().for_each(|(nonce, _)| pings.pong(now + ms(200), *nonce));
        assert!(path.objection(now + ms(200), &pings).is_some());
    }
}
