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
    /// Times that the link was lost, oldest first.
    pub recoveries: Vec<Recovery>,
}
