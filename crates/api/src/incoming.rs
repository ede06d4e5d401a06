use std::net::SocketAddr;

use migrated_control::{GuestDescription, Resolution, TransportKind, VmSpec};
use migrated_engine::{Mode, Verify};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

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
    #[serde(default)]
    pub mode: Mode,
    /// When memory is compared.
    pub verify: Verify,
    /// The epoch that a commit will carry.
    pub epoch: u64,
    /// Name of the source host.
    pub source: String,
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
