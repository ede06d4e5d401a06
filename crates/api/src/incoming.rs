use std::net::SocketAddr;

use migrated_control::{GuestDescription, Resolution, TransportKind, VmSpec};
use migrated_cpuid::CpuReport;
use migrated_engine::{Mode, Verify};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Reason;

/// Versions of the migration protocol that a host speaks, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Versions {
    /// Oldest.
    pub min: u16,
    /// Newest.
    pub max: u16,
}

/// A source's daemon asks a destination's to get ready for a guest. For peers only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PrepareIncoming {
    /// What the source speaks.
    pub protocol: Versions,
    /// Id of the migration: 32 hex digits.
    pub migration: String,
    /// Id of the VM: 32 hex digits.
    pub vm: String,
    /// What the VM is made of.
    pub spec: VmSpec,
    /// CPU, RAM layout and state that will come.
    #[schema(value_type = Object)]
    pub description: GuestDescription,
    /// How bytes are to travel.
    pub transport: TransportKind,
    /// Page channels that the source will open; none when the engine chooses.
    pub channels: Option<u16>,
    /// How memory will be moved.
    #[serde(default = "Mode::unnamed")]
    pub mode: Mode,
    /// When memory is compared.
    pub verify: Verify,
    /// How long the source will try to connect again when it loses its link, in ms, where that is longer than the
    /// 30 s that any destination reckons with. Ten minutes at most are waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reconnect_window_ms: Option<u64>,
    /// The epoch that a commit will carry.
    pub epoch: u64,
    /// Name of the source host.
    pub source: String,
}

/// When a host was asked and when it answered, by its own wall clock: so that whoever asked can compare it with
/// another's, because guests carry their time from one to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AnsweredAt {
    /// When the question had come, in µs since 1970.
    pub asked_unix_us: u64,
    /// When the answer left, likewise.
    pub answered_unix_us: u64,
}

/// What a destination says of a guest that might come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Admission {
    /// Everything that stands against it; nothing where it would be admitted.
    pub reasons: Vec<Reason>,
    /// What of the guest's CPU the destination can't give, where that is among the reasons.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<CpuReport>,
    /// Why its pages can't follow it, where they can't: it would then move by pre-copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_postcopy: Option<String>,
    /// What the destination's clock said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<AnsweredAt>,
}

impl Admission {
    /// Whether the guest would be admitted.
    #[must_use]
    pub const fn is_ok(&self) -> bool {
        self.reasons.is_empty()
    }
}

/// What a destination counted of what it was sent to measure the way to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ProbeAnswer {
    /// Bytes that came.
    pub bytes: u64,
    /// From the first to the last of them, in µs.
    pub took_us: f64,
    /// How fast they came once the connection was under way, in bits per second; none where too few came to tell.
    pub rate_bps: Option<f64>,
}

impl ProbeAnswer {
    /// Most bytes that a probe may send.
    pub const MAX_BYTES: u64 = 64 << 20;
}

/// The destination is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Prepared {
    /// Where its VM process listens.
    #[schema(value_type = Vec<String>)]
    pub endpoints: Vec<SocketAddr>,
    /// Name that its certificate carries.
    pub server_name: Option<String>,
    /// One-shot secret that the source must show: 64 hex digits.
    pub token: String,
    /// The epoch, as asked for.
    pub epoch: u64,
    /// Most page channels that it accepts.
    pub max_channels: u16,
    /// What its clock said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<AnsweredAt>,
}

/// A source that lost its link after the commit asks what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResolveRequest {
    /// The epoch that was committed.
    pub epoch: u64,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ResolveAnswer {
    /// The answer.
    pub answer: Resolution,
}
