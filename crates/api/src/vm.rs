use migrated_control::{Balloon, ConsoleRange, VmSpec, VmState, WorkloadCounters};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::VmCpu;

/// A VM on this host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Vm {
    /// Its id, the same on every host it comes to.
    pub id: String,
    /// Its name, unique on a host.
    pub name: String,
    /// What it is made of.
    pub spec: VmSpec,
    /// What it is doing.
    pub state: VmState,
    /// Why, where the state alone doesn't say.
    pub error: Option<String>,
    /// Id of its VM process, while there is one.
    pub pid: Option<u32>,
    /// When it came to this host, in ms since the Unix epoch.
    pub created_unix_ms: u64,
    /// Which part of its console's output can be read.
    pub console: ConsoleRange,
    /// What the built-in workload guest counts. Only when a single VM is asked for.
    pub workload: Option<WorkloadCounters>,
    /// Its balloon, when it has one: that is a guest that boots a kernel. Only when a single VM is asked for.
    pub balloon: Option<Balloon>,
    /// The Unix socket on this host that reaches the agent in the guest, when it has a line to one and a process.
    pub agent_socket: Option<String>,
    /// The CPU that it was given. Only when a single VM is asked for.
    pub cpu: Option<VmCpu>,
    /// Time that vCPUs were kept from running by us since the start, in µs, all together.
    pub vcpu_blocked_us: u64,
    /// Id of the migration it is in.
    pub migration: Option<String>,
}

/// How much of its RAM a guest shall give up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BalloonTarget {
    /// In all, in bytes; rounded down to whole pages of 4 KiB. At least 64 MiB stay the guest's.
    pub bytes: u64,
}

/// All VMs on this host, by name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VmList {
    /// The VMs.
    pub vms: Vec<Vm>,
}
