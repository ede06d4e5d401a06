use std::net::SocketAddr;

use migrated_wire::MigrationId;
use serde::{Deserialize, Serialize};

use crate::{ConsoleRange, text};

/// What a VM is doing. The one enum of VM states: API, metrics and documents use these names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum VmState {
    /// Its VM process is making memory and vCPUs.
    Starting,
    /// Empty, at a migration's destination: the guest has not come yet.
    Incoming,
    /// Its vCPUs run.
    Running,
    /// Its vCPUs stand still: somebody asked for that, a migration is about to switch hosts, or the guest runs at
    /// another host already and this copy is kept for the pages that are missing there.
    Paused,
    /// The guest shut itself down.
    Stopped,
    /// The guest can't go on (triple fault, KVM internal error); its console and memory are kept.
    Crashed,
    /// It runs at another host now.
    MigratedAway,
    /// Its VM process is gone; the reason and the console are kept.
    Failed,
}

impl VmState {
    /// All states, for metrics and documents.
    pub const ALL: [Self; 8] = [
        Self::Starting,
        Self::Incoming,
        Self::Running,
        Self::Paused,
        Self::Stopped,
        Self::Crashed,
        Self::MigratedAway,
        Self::Failed,
    ];

    /// The name used everywhere outside this process.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Incoming => "incoming",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Crashed => "crashed",
            Self::MigratedAway => "migrated_away",
            Self::Failed => "failed",
        }
    }
}

impl std::fmt::Display for VmState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A VM process about itself, at the moment it was asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// What the VM is doing.
    pub state: VmState,
    /// Why, where the state alone doesn't say.
    pub reason: Option<String>,
    /// Which part of the console's output can be read.
    pub console: ConsoleRange,
    /// What the built-in workload guest counts, when it is the guest.
    pub workload: Option<WorkloadCounters>,
    /// The guest's balloon, when it has one.
    pub balloon: Option<Balloon>,
    /// Time that vCPUs were kept from running by us since the start, in µs, all vCPUs together.
    pub vcpu_blocked_us: u64,
    /// Where it listens for a guest, at a migration's destination.
    pub endpoints: Vec<SocketAddr>,
    /// The migration that it takes part in now.
    #[serde(with = "optional_id")]
    pub migration: Option<MigrationId>,
    /// A commit whose fate it does not know.
    pub unresolved: Option<PendingResolution>,
}

/// How much of its RAM a guest gives up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Balloon {
    /// How much the guest is asked for, in bytes. A guest that boots anew after a reset is asked for nothing.
    pub target_bytes: u64,
    /// How much it says that it has given up, in bytes.
    pub actual_bytes: u64,
    /// What it has given back to the host since its boot, as free or into the balloon, in bytes. It may have taken it
    /// again.
    pub given_back_bytes: u64,
}

/// A source that lost its link after it sent the commit, and waits to be told what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingResolution {
    /// The migration.
    #[serde(with = "text::migration_id")]
    pub migration: MigrationId,
    /// The epoch that was committed.
    pub epoch: u64,
    /// Name of the destination, as in the plan.
    pub peer: String,
}

/// The counters that the built-in workload guest keeps in its memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WorkloadCounters {
    /// Whether it has filled its memory and is in its loop.
    pub ready: bool,
    /// Passes over the working set, all vCPUs together.
    pub passes: u64,
    /// Pages written.
    pub writes: u64,
    /// Accesses that only read.
    #[serde(default)]
    pub reads: u64,
    /// Pages found lost or gone back in time. Anything but 0 is a bug of ours.
    pub errors: u64,
    /// Rounds of its loop; stands still when the guest does.
    pub heartbeat: u64,
    /// Longest time between two of its looks at the TSC since the boot, in µs.
    pub gap_max_us: f64,
    /// The same since the last reading through the API, in µs.
    pub gap_recent_us: f64,
    /// How often the TSC went backward. Anything but 0 is a bug of ours.
    pub tsc_backward: u64,
}

mod optional_id {
    use migrated_wire::MigrationId;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub fn serialize<S: Serializer>(id: &Option<MigrationId>, to: S) -> Result<S::Ok, S::Error> {
        id.as_ref().map(ToString::to_string).serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<MigrationId>, D::Error> {
        Option::<String>::deserialize(from)?.map(|s| s.parse().map_err(D::Error::custom)).transpose()
    }
}
