use std::time::Duration;

/// What a sending end knows of the network under one of its channels, at one moment. Counters begin at 0 with the
/// channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathSample {
    /// Smoothed round-trip time (SRTT of RFC 6298), queues on the way included.
    pub rtt: Duration,
    /// Mean deviation of round-trip times (RTTVAR of RFC 6298).
    pub rtt_variation: Duration,
    /// Shortest round trip of late: what remains when no queue stands.
    pub min_rtt: Duration,
    /// Bytes that the peer has acknowledged.
    pub acked: u64,
    /// Bytes sent and not acknowledged.
    pub in_flight: u64,
    /// Bytes taken from the sender and not sent.
    pub unsent: u64,
    /// Segments sent, retransmissions included.
    pub segments: u64,
    /// Segments sent again because they seemed to be lost.
    pub retransmitted: u64,
}

/// How a channel sends, other than as fast as it can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SendPace {
    /// Bytes a second that leave, evenly spread; `None` for no limit.
    pub bytes_per_second: Option<u64>,
    /// Bytes taken from the sender that have not left yet, before it is made to wait; `None` for the transport's
    /// own choice.
    pub unsent: Option<u32>,
}
