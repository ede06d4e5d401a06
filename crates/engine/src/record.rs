//! The migration record: what happened, in numbers, and why. Kept with the migration, served by the API.

mod encoding;
mod late;
mod latency;
mod postcopy;
mod prediction;
mod recovery;
mod throttle;

use serde::{Deserialize, Serialize};

pub use encoding::{EncodedPages, Encodings};
pub use late::LateFrames;
pub use latency::LatencyHistogram;
pub use postcopy::{FaultParts, Postcopy, ThreadWaits};
pub use prediction::{ModePrediction, Predicted, Prediction};
pub use recovery::Recovery;
pub(crate) use recovery::{note_loss, note_recovery};
pub use throttle::{Throttled, ThrottledVcpu, WriteAttribution};

/// Where a migration is, at the end that reports it. The one enum of state names: API, metrics,
/// spans and documents use these (see ARCHITECTURE.md for the machines).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum MigrationState {
    /// Source: agreeing on protocol and limits. Destination: waiting for the source to connect.
    Negotiating,
    /// Both: comparing CPU, RAM layout, devices and features before any page flows.
    Preflight,
    /// Source: copying RAM while the guest runs. Destination: `receiving`.
    Precopy,
    /// Both: the link was lost before the commit. The guest runs at the source, which reconnects; the destination keeps
    /// what it has.
    PrecopyPaused,
    /// Destination: placing pages while the guest runs at the source.
    Receiving,
    /// Source: the destination gets ready for a guest whose pages follow it; the guest runs at the source.
    PostcopySetup,
    /// Source: the guest is paused, the last pages and the state are on their way.
    StopAndCopy,
    /// Destination: restoring CPU and device state.
    Restoring,
    /// Destination: everything is in place, waiting for the commit.
    Ready,
    /// Source: commit was sent, its ack is awaited. Only the destination may run the guest.
    Switchover,
    /// Source: the link died between commit and its ack; asking the destination what became of it.
    Indeterminate,
    /// Both: the guest runs at the destination while pages follow, those first that it waits for.
    PostcopyActive,
    /// Both: the link was lost while pages followed. The guest runs at the destination on what is there;
    /// the source keeps its RAM.
    PostcopyPaused,
    /// Both: there is a link again; the destination says what it has.
    Recovering,
    /// Destination: the guest runs here and nothing of it is missing.
    Running,
    /// Source: the guest runs at the destination, whose last words (a summary, and with `verify: after`
    /// what comparing found) are awaited.
    Settling,
    /// The guest runs at the destination and the source has freed its copy.
    Completed,
    /// The migration ended without a commit; the guest is at the source as before.
    Failed,
    /// Somebody cancelled it before the commit; the guest is at the source as before.
    Cancelled,
}

impl MigrationState {
    /// All states, for metrics and documents.
    pub const ALL: [Self; 19] = [
        Self::Negotiating,
        Self::Preflight,
        Self::Precopy,
        Self::PrecopyPaused,
        Self::Receiving,
        Self::PostcopySetup,
        Self::StopAndCopy,
        Self::Restoring,
        Self::Ready,
        Self::Switchover,
        Self::Indeterminate,
        Self::PostcopyActive,
        Self::PostcopyPaused,
        Self::Recovering,
        Self::Running,
        Self::Settling,
        Self::Completed,
        Self::Failed,
        Self::Cancelled,
    ];

    /// The name used everywhere outside this process.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Negotiating => "negotiating",
            Self::Preflight => "preflight",
            Self::Precopy => "precopy",
            Self::PrecopyPaused => "precopy_paused",
            Self::Receiving => "receiving",
            Self::PostcopySetup => "postcopy_setup",
            Self::StopAndCopy => "stop_and_copy",
            Self::Restoring => "restoring",
            Self::Ready => "ready",
            Self::Switchover => "switchover",
            Self::Indeterminate => "indeterminate",
            Self::PostcopyActive => "postcopy_active",
            Self::PostcopyPaused => "postcopy_paused",
            Self::Recovering => "recovering",
            Self::Running => "running",
            Self::Settling => "settling",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether the migration has ended.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

impl std::fmt::Display for MigrationState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// How memory is moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Mode {
    /// All memory is copied before the guest switches hosts.
    Precopy,
    /// The guest switches hosts first; its memory follows.
    Postcopy,
    /// Memory is copied while that pays; then the guest switches, and what it had written again follows.
    Hybrid,
    /// Pre-copy where it pays, else hybrid or post-copy: what is measured decides.
    #[default]
    Auto,
}

impl Mode {
    /// What a message means that names no mode: it is from before there was a choice.
    #[must_use]
    pub const fn unnamed() -> Self {
        Self::Precopy
    }
}

/// When the destination's memory is compared with the source's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Verify {
    /// Not at all.
    #[default]
    Off,
    /// While the guest is paused, before the destination runs. Adds downtime: for tests.
    Before,
    /// After the commit, from the source's frozen RAM. Adds no downtime.
    After,
}

/// Whether pages may be compressed on their way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Compression {
    /// Where and as long as it makes them arrive sooner, by what is measured.
    #[default]
    Auto,
    /// Never.
    Off,
}

/// What to do when pre-copy can't converge within its limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum OnTimeout {
    /// Give up; the guest stays at the source.
    #[default]
    Cancel,
    /// Stop the guest and copy the rest, accepting the longer downtime.
    Stop,
}

/// The whole record of one migration, at the source (the destination keeps its own, with its parts).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MigrationRecord {
    /// The migration's id, the same at both ends.
    pub id: String,
    /// Id of the VM.
    pub vm: String,
    /// `source` or `destination`: whose view this is.
    pub role: RecordRole,
    /// The other host, as it was named or as it connected.
    pub peer: String,
    /// How memory was moved.
    pub mode: Mode,
    /// Transport used, e.g. `tcp`, `tcp+tls`.
    pub transport: String,
    /// Page channels used.
    pub channels: u16,
    /// What page payload was limited to, in bits per second; none where it was as fast as the link.
    #[serde(default)]
    pub bandwidth_bps: Option<u64>,
    /// Where it is, or how it ended.
    pub state: Option<MigrationState>,
    /// Why it failed or was cancelled.
    pub error: Option<RecordError>,
    /// Wall clock at the request, in ms since the Unix epoch.
    pub started_unix_ms: u64,
    /// From the request until the first page could flow: admission, connections, preflight. In ms.
    pub setup_ms: f64,
    /// From the request until the source released the guest, or the end. In ms.
    pub total_ms: f64,
    /// The time the guest did not run.
    pub downtime_us: Downtime,
    /// The longest gap that the workload guest itself saw since the migration began, in µs.
    pub guest_gap_us: Option<f64>,
    /// From the first KVM_RUN at the destination until the first frame that the guest sent or got there, in µs; of a
    /// guest with a network.
    #[serde(default)]
    pub first_packet_us: Option<f64>,
    /// What still came to the source for the guest.
    #[serde(default)]
    pub late_frames: LateFrames,
    /// The RAM that was moved.
    pub ram: RamCounters,
    /// How its pages travelled; at the source.
    #[serde(default)]
    pub encodings: Encodings,
    /// Bytes of all channels, as the transport counts them.
    pub wire_bytes: WireBytes,
    /// Page payload a second over the time pages flowed, in bits per second.
    pub throughput_bps: f64,
    /// Expected downtime if the guest were stopped now, in µs; while it runs.
    pub expected_downtime_us: Option<f64>,
    /// Pages left to send in the current iteration.
    pub remaining_pages: u64,
    /// Rounds over the dirty pages, oldest first; the last one is stop-and-copy, or what followed the guest.
    pub iterations: Vec<Iteration>,
    /// Times that the link was lost before the commit, oldest first.
    #[serde(default)]
    pub reconnects: Vec<Recovery>,
    /// What happened to pages that followed the guest, if any did.
    pub postcopy: Option<Postcopy>,
    /// How the guest was slowed, if it was.
    #[serde(default)]
    pub throttle: Option<Throttled>,
    /// What verification found.
    pub verified: Option<Verified>,
    /// What was expected, beside the numbers above.
    #[serde(default)]
    pub predicted: Option<Predicted>,
    /// Every decision with its reason, oldest first.
    pub decisions: Vec<Decision>,
}

/// Whose view a record is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum RecordRole {
    /// The host the guest left.
    #[default]
    Source,
    /// The host the guest came to.
    Destination,
}

/// Why a migration did not complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RecordError {
    /// Stable machine-readable code, e.g. `peer_unreachable`.
    pub code: String,
    /// For people: what happened, in which phase, and what to do next.
    pub message: String,
    /// The phase it happened in.
    pub phase: Option<MigrationState>,
    /// What else the peer's problem document said for machines, by the names of its members; `cpu` for
    /// what of the guest's CPU the destination can't give.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub details: Option<serde_json::Value>,
}

/// The parts of the downtime, in µs. They follow each other; parts of both ends that overlap
/// (send and import) are counted where the guest waited for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Downtime {
    /// From the call to pause at the source until the source knew that the destination runs.
    pub total: f64,
    /// From the call to pause until all vCPUs stopped.
    pub pause: f64,
    /// Last harvest and the sending of the pages it found.
    pub final_pages: f64,
    /// Reading CPU and device state.
    pub export: f64,
    /// From the last byte handed to the transport until the destination was ready, less its import.
    pub send: f64,
    /// The destination's restoring of state.
    pub import: f64,
    /// Comparing memory, with `verify: before` only.
    pub verify: f64,
    /// From the commit until the first KVM_RUN, and its ack's way back.
    pub resume: f64,
}

/// Guest RAM, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RamCounters {
    /// Size of guest RAM in bytes.
    pub bytes: u64,
    /// Size of guest RAM in pages of 4 KiB.
    pub pages: u64,
    /// Pages sent as "all zero", without payload.
    pub pages_zero: u64,
    /// Pages sent with payload, each sending counted.
    pub pages_sent: u64,
    /// Pages sent again because the guest wrote them.
    pub pages_resent: u64,
}

/// Bytes on the wire as the transport handed them to the network, all channels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WireBytes {
    /// Sent by this end.
    pub sent: u64,
    /// Received by this end.
    pub received: u64,
}

/// One round over the dirty pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Iteration {
    /// Number of the round, from 1 (all of RAM, unless it was cut short and the next one has the rest).
    pub n: u32,
    /// Pages sent in it, zero pages included.
    pub pages: u64,
    /// Payload bytes sent in it.
    pub bytes: u64,
    /// How long it took, in ms.
    pub duration_ms: f64,
    /// Pages that the guest dirtied a second meanwhile.
    pub dirty_rate_pps: f64,
    /// Share of the time that the most throttled vCPU was made to sleep, in percent.
    pub throttle_percent: f64,
}

/// What comparing both ends' memory found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Verified {
    /// How: `before` or `after`.
    pub method: Verify,
    /// Pages compared.
    pub pages: u64,
    /// Pages that differed. Anything but 0 is a bug of ours.
    pub mismatches: u64,
}

/// One decision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Decision {
    /// Since the request, in ms.
    pub at_ms: f64,
    /// What was decided, e.g. `iterate`, `stop_and_copy`, `cancel`.
    pub decision: String,
    /// Why, with the numbers it was based on.
    pub reason: String,
}
