use serde::{Deserialize, Serialize};

use super::{LatencyHistogram, Recovery};

/// What happened to the pages that followed the guest. The source counts what it sent and why; the
/// destination counts who waited and how long.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Postcopy {
    /// Pages that the destination lacked, or had a stale version of, when the guest switched.
    pub missing_pages: u64,
    /// Pages sent in the background.
    pub pages_push: u64,
    /// Pages sent because somebody waited for them.
    pub pages_fault: u64,
    /// Pages sent because they lie where the next fault is expected.
    pub pages_prefetch: u64,
    /// Pages that came although they were there, and were thrown away.
    pub pages_duplicate: u64,
    /// Source: pages that were requested. Destination: pages that somebody touched before they were there.
    pub faults: u64,
    /// Destination: faults on a page that somebody else waited for already.
    pub faults_shared: u64,
    /// Source: requested pages that were on their way already.
    pub requests_duplicate: u64,
    /// Destination: from a fault until whoever waited was woken.
    pub fault_latency: LatencyHistogram,
    /// From the commit (source) or the guest's start (destination) until nothing was missing, in ms.
    pub last_page_ms: Option<f64>,
    /// Source: the rate to which the background push is limited, in bits per second, so that it leaves no queue for
    /// pages that are asked for, and keeps to the bandwidth limit; `None` where nothing limits it.
    #[serde(default)]
    pub push_bps: Option<f64>,
    /// Source: payload and heads that the link was last seen to carry while a queue stood on the way, in bits per
    /// second; `None` when none did.
    #[serde(default)]
    pub link_bps: Option<f64>,
    /// Times that the link was lost, oldest first.
    pub recoveries: Vec<Recovery>,
}
