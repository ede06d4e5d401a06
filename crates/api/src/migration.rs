use migrated_control::TransportKind;
use migrated_engine::{MigrationRecord, Mode, OnTimeout, Verify};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Asks for a VM to be moved. What is left out comes from the source host's configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StartMigration {
    /// The destination: a name from the `[peers]` of the source host's configuration, or a URL.
    pub to: String,
    /// How memory is moved.
    #[serde(default)]
    pub mode: Mode,
    /// How bytes travel between the hosts.
    #[serde(default)]
    pub transport: Option<TransportKind>,
    /// Longest time that the guest may stand still, in ms.
    #[serde(default)]
    pub max_downtime_ms: Option<f64>,
    /// Most payload a second on all channels together, in bits per second.
    #[serde(default)]
    pub bandwidth_bps: Option<u64>,
    /// Page channels; chosen from the host's size when left out.
    #[serde(default)]
    pub channels: Option<u16>,
    /// When the destination's memory is compared with the source's.
    #[serde(default)]
    pub verify: Option<Verify>,
    /// How long pre-copy may take, in seconds.
    #[serde(default)]
    pub timeout_s: Option<f64>,
    /// What happens when it takes longer, or stalls.
    #[serde(default)]
    pub on_timeout: Option<OnTimeout>,
    /// Most rounds over the dirty pages.
    #[serde(default)]
    pub max_iterations: Option<u32>,
}

/// All migrations this host knows, newest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MigrationList {
    /// Their records.
    pub migrations: Vec<MigrationRecord>,
}
