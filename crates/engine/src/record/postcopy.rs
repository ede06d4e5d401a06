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
    /// Destination: where that time went.
    #[serde(default)]
    pub fault_parts: FaultParts,
    /// Destination: faults a second, over the time in which pages followed the guest.
    #[serde(default)]
    pub faults_per_second: f64,
    /// Destination: faults a second, over the 100 ms with the most.
    #[serde(default)]
    pub faults_per_second_peak: f64,
    /// Destination: how long each thread waited for pages. vCPUs above all; at most 256.
    #[serde(default)]
    pub blocked: Vec<ThreadWaits>,
    /// Destination: the time in which all threads waited that had faulted at all until then, in µs.
    #[serde(default)]
    pub all_blocked_us: f64,
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

/// The parts of a fault's latency, of pages that were asked for and came after that.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FaultParts {
    /// From reading the fault until its request goes to the transport.
    pub request: LatencyHistogram,
    /// Until the page's payload was read: both ways, queues, and the source's service.
    pub wire: LatencyHistogram,
    /// Until the page's content is in place.
    pub place: LatencyHistogram,
    /// Until the kernel let the guest have it and woke whoever waited.
    pub wake: LatencyHistogram,
}

/// How long a thread waited for pages.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ThreadWaits {
    /// Its id, as gettid(2) names it; 0 stands for all where the kernel doesn't say.
    pub thread: u32,
    /// Its name, e.g. `vcpu0`.
    pub name: String,
    /// Faults that it had to wait for.
    pub faults: u64,
    /// Time that it waited, in µs.
    pub blocked_us: f64,
}
