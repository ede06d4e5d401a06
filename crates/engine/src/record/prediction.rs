use serde::{Deserialize, Serialize};

/// What was expected of a migration, beside what it became.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Predicted {
    /// Before anything moved.
    pub start: Prediction,
    /// At the policy's last decision that rests on a prediction: the one that chose how it ends.
    #[serde(default)]
    pub decision: Option<Prediction>,
}

/// What each mode would cost from some moment on, and what that rests on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Prediction {
    /// When it was made, since the request, in ms.
    pub at_ms: f64,
    /// Payload that the link is taken to carry, in bits per second.
    pub link_bps: f64,
    /// Pages that the guest is taken to write a second, in windows so short that none is written twice.
    pub dirty_rate_pps: f64,
    /// Pages that it is taken to write at all.
    pub working_set_pages: u64,
    /// Samples of the guest's writing that this rests on.
    pub samples: u32,
    /// How far to trust it, from 0 (a guess) to 1: (1 − 2^−samples) ÷ the factor by which the fitted curve
    /// typically misses its samples.
    pub confidence: f64,
    /// Rounds until the guest may be stopped.
    pub precopy: ModePrediction,
    /// The same, with vCPUs slowed as far as that is needed and allowed.
    #[serde(default)]
    pub precopy_throttled: ModePrediction,
    /// One more round, then the guest switches and the rest follows it.
    pub hybrid: ModePrediction,
    /// The guest switches now and the rest follows it.
    pub postcopy: ModePrediction,
}

/// What one mode is expected to cost, in sums from the request on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ModePrediction {
    /// Whether limits and both hosts allow it.
    pub possible: bool,
    /// Pre-copy: whether rounds end, with the guest stopped within the limit of its downtime. Always so of the others, which end whatever
    /// the guest writes.
    pub converges: bool,
    /// Whether it keeps to all limits: downtime, time and, where one was stated, total time.
    pub within_limits: bool,
    /// From the request until the source is free, in ms. Of pre-copy that doesn't converge: until its time is
    /// over and the rest is sent, which is a bound (a policy that sees no progress ends it sooner).
    pub total_ms: f64,
    /// The time the guest does not run, in ms. Of pre-copy that doesn't converge: if it is stopped nevertheless.
    pub downtime_ms: f64,
    /// Payload bytes.
    pub bytes: u64,
    /// Rounds over pages, as the record counts them.
    pub rounds: u32,
}
