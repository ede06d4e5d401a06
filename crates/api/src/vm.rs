use migrated_control::{ConsoleRange, VmSpec, VmState, WorkloadCounters};
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
    /// The CPU that it was given. Only when a single VM is asked for.
    pub cpu: Option<VmCpu>,
    /// Time that vCPUs were kept from running by us since the start, in µs, all together.
    pub vcpu_blocked_us: u64,
    /// Id of the migration it is in.
    pub migration: Option<String>,
}

/// All VMs on this host, by name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VmList {
    /// The VMs.
    pub vms: Vec<Vm>,
}
