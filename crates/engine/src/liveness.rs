use std::time::Duration;

use crate::limits::{PEER_DEAD_AFTER, PING_EVERY};

/// So many pings go out early and fast: the shortest of several round trips is the link's, a single one may have
/// waited for a CPU.
const FIRST_PINGS: u64 = 8;
const FIRST_PINGS_EVERY: Duration = Duration::from_millis(10);

/// Knows when the peer was last heard, and the round-trip time.
#[derive(Debug)]
pub(crate) struct Liveness {
    last_heard: Duration,
    ping_sent: Option<(u64, Duration)>,
    next_ping: Duration,
    nonce: u64,
    /// Shortest round trip seen.
    pub(crate) rtt: Option<Duration>,
}

impl Liveness {
    pub(crate) const fn new(now: Duration) -> Self {
        Self { last_heard: now, ping_sent: None, next_ping: now, nonce: 0, rtt: None }
    }

    pub(crate) fn heard(&mut self, now: Duration) {
        self.last_heard = now;
    }

    /// There is a new link: what was sent on the old one is not waited for.
    pub(crate) const fn relinked(&mut self, now: Duration) {
        self.last_heard = now;
        self.ping_sent = None;
        self.next_ping = now;
    }

    /// The nonce of a ping that is due.
    pub(crate) fn ping_due(&mut self, now: Duration) -> Option<u64> {
        if now < self.next_ping {
            return None;
        }
        self.nonce += 1;
        self.ping_sent = Some((self.nonce, now));
        self.next_ping = now + if self.nonce <= FIRST_PINGS { FIRST_PINGS_EVERY } else { PING_EVERY };
        Some(self.nonce)
    }

    pub(crate) fn pong(&mut self, now: Duration, nonce: u64) {
        if let Some((_, sent)) = self.ping_sent.take_if(|(sent, _)| *sent == nonce) {
            let rtt = now.saturating_sub(sent);
            self.rtt = Some(self.rtt.map_or(rtt, |best| best.min(rtt)));
        }
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
