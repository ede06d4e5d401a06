use serde::{Deserialize, Serialize};

/// A link that was lost in the middle, and that there is one again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Recovery {
    /// When the loss was noticed, since the request, in ms.
    pub lost_ms: f64,
    /// Why.
    pub reason: String,
    /// When pages flowed again, since the request, in ms; `None` while they don't.
    pub recovered_ms: Option<f64>,
    /// Pages that were missing when they did: in post-copy those that the guest lacked; in pre-copy those of the
    /// interrupted round that were not at the destination (source), or that had never come (destination).
    pub missing_pages: u64,
}

/// Most lost links that a record tells of.
const RECOVERIES_MAX: usize = 200;

/// Notes a loss. Beyond what a record can tell of, the newest takes the last one's place.
pub(crate) fn note_loss(recoveries: &mut Vec<Recovery>, lost_ms: f64, reason: String) {
    recoveries.truncate(RECOVERIES_MAX - 1);
    recoveries.push(Recovery { lost_ms, reason, ..Recovery::default() });
}

/// Notes that pages flow again.
pub(crate) fn note_recovery(recoveries: &mut [Recovery], now_ms: f64, missing_pages: u64) {
    if let Some(recovery) = recoveries.last_mut() {
        recovery.recovered_ms = Some(now_ms);
        recovery.missing_pages = missing_pages;
    }
}
