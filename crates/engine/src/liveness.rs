use std::collections::VecDeque;
use std::time::Duration;

use crate::limits::{PEER_DEAD_AFTER, PING_EVERY};

/// So many pings go out early and fast: the shortest of several round trips is the link's, a single one may have
/// waited for a CPU.
const FIRST_PINGS: u64 = 8;
const FIRST_PINGS_EVERY: Duration = Duration::from_millis(10);
/// Pings that may be under way at a time; an older one is given up.
const UNDER_WAY: usize = 16;
/// Round trips kept to see how they scatter, and for how long.
const ROUND_TRIPS: usize = 8;
const ROUND_TRIPS_FOR: Duration = Duration::from_secs(8);
/// With fewer, their scatter says nothing.
const ROUND_TRIPS_MIN: usize = 3;

/// Knows when the peer was last heard, and the round-trip time.
#[derive(Debug)]
pub(crate) struct Liveness {
    last_heard: Duration,
    pings: VecDeque<(u64, Duration)>,
    next_ping: Duration,
    nonce: u64,
    /// Pings that are still to go out fast.
    fast: u64,
    /// When they ended and what they took.
    round_trips: VecDeque<(Duration, Duration)>,
    /// Shortest round trip seen.
    pub(crate) rtt: Option<Duration>,
}

impl Liveness {
    pub(crate) const fn new(now: Duration) -> Self {
        Self {
            last_heard: now,
            pings: VecDeque::new(),
            next_ping: now,
            nonce: 0,
            fast: FIRST_PINGS,
            round_trips: VecDeque::new(),
            rtt: None,
        }
    }

    pub(crate) fn heard(&mut self, now: Duration) {
        self.last_heard = now;
    }

    /// There is a new link: what was sent on the old one is not waited for.
    pub(crate) fn relinked(&mut self, now: Duration) {
        self.last_heard = now;
        self.pings.clear();
        self.next_ping = now;
    }

    /// Measures the link anew with some pings in a row.
    pub(crate) fn look_closely(&mut self, now: Duration) {
        self.fast = FIRST_PINGS;
        self.next_ping = now;
    }

    /// The nonce of a ping that is due.
    pub(crate) fn ping_due(&mut self, now: Duration) -> Option<u64> {
        if now < self.next_ping {
            return None;
        }
        self.nonce += 1;
        if self.pings.len() == UNDER_WAY {
            self.pings.pop_front();
        }
        self.pings.push_back((self.nonce, now));
        self.fast = self.fast.saturating_sub(1);
        self.next_ping = now + if self.fast > 0 { FIRST_PINGS_EVERY } else { PING_EVERY };
        Some(self.nonce)
    }

    pub(crate) fn pong(&mut self, now: Duration, nonce: u64) {
        let Some(at) = self.pings.iter().position(|(sent, _)| *sent == nonce) else { return };
        let Some((_, sent)) = self.pings.remove(at) else { return };
        let rtt = now.saturating_sub(sent);
        self.rtt = Some(self.rtt.map_or(rtt, |best| best.min(rtt)));
        if self.round_trips.len() == ROUND_TRIPS {
            self.round_trips.pop_front();
        }
        self.round_trips.push_back((now, rtt));
    }

    /// Mean deviation of the latest round trips, if there were enough.
    pub(crate) fn scatter(&self, now: Duration) -> Option<Duration> {
        let is_recent = |(at, _): &&(Duration, Duration)| now.saturating_sub(*at) <= ROUND_TRIPS_FOR;
        let recent = || self.round_trips.iter().filter(is_recent).map(|(_, rtt)| *rtt);
        let count = recent().count();
        if count < ROUND_TRIPS_MIN {
            return None;
        }
        let mean = recent().sum::<Duration>() / count as u32;
        Some(recent().map(|rtt| rtt.abs_diff(mean)).sum::<Duration>() / count as u32)
    }

    /// How long nothing was heard, when that is too long.
    pub(crate) fn silence(&self, now: Duration) -> Option<Duration> {
        let silent = now.saturating_sub(self.last_heard);
        (silent >= PEER_DEAD_AFTER).then_some(silent)
    }

    /// When the peer will count as dead.
    pub(crate) fn dead_at(&self) -> Duration {
        self.last_heard + PEER_DEAD_AFTER
    }

    /// When something is to be done by an end that pings.
    pub(crate) fn next_timer(&self) -> Duration {
        self.next_ping.min(self.dead_at())
    }
}
