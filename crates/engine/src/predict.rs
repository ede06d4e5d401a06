//! What a migration will cost: a pure model of rounds over a link and of a guest that writes meanwhile.
//!
//! With V bytes left, b bytes a second of link and W(t) the bytes that the guest writes in a time t
//! ([`WriteCurve`]), a round takes V ÷ b and leaves W(V ÷ b). So
//!
//! > pre-copy: V₀, Vᵢ₊₁ = W(Vᵢ ÷ b + o) until fixed + Vₙ ÷ b ≤ `max_downtime`; total = Σ (Vᵢ ÷ b + o)
//! > post-copy: total = arm + fixed + V₀ ÷ b, downtime = fixed + missing set ÷ b, whatever the guest writes
//! > hybrid: one such round, then post-copy of what it leaves
//! > throttled pre-copy: as pre-copy, with W(t) at most t times what the guest is held to
//!
//! where o is what a round costs besides its bytes. The recursion is the iteration model of Akoush et al. 2010
//! with Clark et al.'s (2005) working set in place of a constant rate; post-copy's totals are Hines and
//! Gopalan's (2009). What it leaves out: zero pages' scan, slow starts of connections, the bonus round
//! by which a policy betters a downtime that fits already, and what post-copy costs the guest.

mod choice;
mod curve;

use std::time::Duration;

pub(crate) use choice::{
    Choice, PATIENCE, STICKY_PATIENCE, choose, only_switching_is_in_time, slowing_pays, summary,
};
pub use curve::{WriteCurve, WriteFit, WriteSample};

use crate::Limits;
use crate::record::{ModePrediction, Prediction};
use crate::throttle;

/// Assumed before anything was measured: 1 Gbit/s, in bytes a second.
pub(crate) const RATE_GUESS: f64 = 125e6;
/// Stopping and starting vCPU threads, on both hosts together.
pub(crate) const KICKS: Duration = Duration::from_micros(500);
/// Round trips of a downtime: the last pages and state until ready, the commit until its ack.
pub(crate) const ROUND_TRIPS: u32 = 2;
/// Rounds that a simulation follows at most. A guest that needs more does not converge in practice.
const ROUNDS_MAX: u32 = 1000;
/// Bytes of a run in the announcement of missing pages, about.
const RUN_BYTES: f64 = 8.0;

/// A migration at some moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Model {
    /// Since the request.
    pub elapsed: Duration,
    /// Rounds made.
    pub rounds: u32,
    /// Payload bytes sent.
    pub sent_bytes: u64,
    /// Pages of guest RAM.
    pub ram_pages: u64,
    /// Payload bytes left to send if the guest wrote nothing more.
    pub left_bytes: f64,
    /// Payload bytes of a page that the guest writes, on average.
    pub page_bytes: f64,
    /// Payload bytes a second that the link carries; the limits' bandwidth is applied to it.
    pub rate: f64,
    /// Round trip time.
    pub rtt: Duration,
    /// What a round costs besides its bytes: its acknowledgement and the harvest.
    pub round_overhead: Duration,
    /// The part of a downtime that doesn't depend on pages.
    pub fixed: Duration,
    /// What the guest writes.
    pub writes: WriteCurve,
    /// Samples that `writes` rests on.
    pub samples: u32,
    /// How far `writes` is to be trusted, see [`WriteFit::curve`].
    pub confidence: f64,
    /// What the migration may cost.
    pub limits: Limits,
    /// Whether the guest may run at the destination before its pages are there.
    pub can_switch: bool,
}

impl Model {
    /// What each mode costs from here on. All numbers are finite and none is negative, whatever the model says;
    /// a faster link makes no total longer.
    #[must_use]
    pub fn predict(&self) -> Prediction {
        Prediction {
            at_ms: self.elapsed.as_secs_f64() * 1e3,
            link_bps: self.link() * 8.0,
            dirty_rate_pps: self.writes.rate(),
            working_set_pages: self.writes.limit() as u64,
            samples: self.samples,
            confidence: share(self.confidence),
            precopy: self.precopy(f64::INFINITY),
            precopy_throttled: self.precopy_throttled(),
            hybrid: self.hybrid(),
            postcopy: self.postcopy(),
        }
    }

    /// Where vCPUs may sleep, the guest writes no more than the throttle's share of the link, or as much as they
    /// write in the time that they must be left.
    fn precopy_throttled(&self) -> ModePrediction {
        let slowdown = f64::from(self.limits.max_slowdown_percent.min(100)) / 100.0;
        let share = throttle::SHARE * self.link() / bytes(self.page_bytes).clamp(1.0, PAGE);
        let most = share.max(self.writes.rate() * (1.0 - slowdown));
        ModePrediction { possible: slowdown > 0.0, ..self.precopy(most) }
    }

    /// The guest writes `most` pages a second at most.
    fn precopy(&self, most: f64) -> ModePrediction {
        let (limit, timeout) = (self.limits.max_downtime.as_secs_f64(), self.limits.timeout.as_secs_f64());
        let mut left = self.left();
        let mut spent = self.elapsed.as_secs_f64();
        let mut sent = self.sent_bytes as f64;
        let mut late = false;
        let more = self.limits.max_iterations.saturating_sub(self.rounds).min(ROUNDS_MAX);
        for round in 0..=more {
            let downtime = self.downtime(left);
            // No guest is stopped before a round: nobody knows before what it has.
            if downtime <= limit && !late && self.rounds.saturating_add(round) > 0 {
                let total = spent + downtime;
                return ModePrediction {
                    possible: true,
                    converges: true,
                    within_limits: self.is_in_time(total),
                    total_ms: total * 1e3,
                    downtime_ms: downtime * 1e3,
                    bytes: (sent + left) as u64,
                    rounds: self.rounds.saturating_add(round + 1),
                };
            }
            if round == more {
                break;
            }
            let seconds = self.round(left);
            if !late {
                sent += left;
                spent += seconds;
            }
            late |= spent > timeout;
            left = self.written(seconds, most);
        }
        let downtime = self.downtime(left);
        ModePrediction {
            possible: true,
            converges: false,
            within_limits: false,
            total_ms: (self.elapsed.as_secs_f64().max(timeout) + downtime.max(limit)) * 1e3,
            downtime_ms: downtime * 1e3,
            bytes: (sent + left) as u64,
            rounds: self.rounds.saturating_add(more + 1),
        }
    }

    fn hybrid(&self) -> ModePrediction {
        let left = self.left();
        let seconds = self.round(left);
        self.follow(seconds, left, self.written(seconds, f64::INFINITY), 2)
    }

    fn postcopy(&self) -> ModePrediction {
        self.follow(0.0, 0.0, self.left(), 1)
    }

    /// The guest switches after `seconds` and `sent` bytes more, and `left` bytes follow it.
    fn follow(&self, seconds: f64, sent: f64, left: f64, rounds: u32) -> ModePrediction {
        let rtt = self.rtt.as_secs_f64();
        // What was missing before the pause was announced while the guest ran; the downtime has the rest.
        let announced = (self.writes.pages_in(rtt) * RUN_BYTES).min(self.ram_pages as f64 / 8.0);
        let downtime = self.downtime(announced);
        let total = self.elapsed.as_secs_f64() + seconds + rtt + downtime + left / self.link();
        let limits = &self.limits;
        ModePrediction {
            possible: self.can_switch,
            converges: true,
            within_limits: downtime <= limits.max_downtime.as_secs_f64()
                && total <= limits.timeout.as_secs_f64()
                && self.is_in_time(total),
            total_ms: total * 1e3,
            downtime_ms: downtime * 1e3,
            bytes: (self.sent_bytes as f64 + sent + left) as u64,
            rounds: self.rounds.saturating_add(rounds),
        }
    }

    /// Whether so many seconds in all keep to `max_total`.
    fn is_in_time(&self, total: f64) -> bool {
        self.limits.max_total.is_none_or(|goal| total <= goal.as_secs_f64())
    }

    fn downtime(&self, left: f64) -> f64 {
        self.fixed.as_secs_f64() + left / self.link()
    }

    fn round(&self, left: f64) -> f64 {
        left / self.link() + self.round_overhead.as_secs_f64()
    }

    /// Bytes that the guest writes in a time, at `most` pages a second.
    fn written(&self, seconds: f64, most: f64) -> f64 {
        // Of no time at an infinite rate there is no product.
        let most = if most.is_finite() { most * seconds } else { f64::INFINITY };
        self.writes.pages_in(seconds).min(most) * bytes(self.page_bytes).min(PAGE)
    }

    fn left(&self) -> f64 {
        bytes(self.left_bytes)
    }

    /// Payload bytes a second.
    fn link(&self) -> f64 {
        let limit = self.limits.bandwidth_bps.map_or(f64::INFINITY, |bits| bits as f64 / 8.0);
        bytes(self.rate).min(limit).clamp(1.0, 1e15)
    }
}

const PAGE: f64 = migrated_pages::PAGE_SIZE as f64;

/// A number of bytes, of whatever was computed.
fn bytes(value: f64) -> f64 {
    if value.is_nan() { 0.0 } else { value.clamp(0.0, u64::MAX as f64) }
}

fn share(value: f64) -> f64 {
    if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) }
}
