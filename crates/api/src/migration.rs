use migrated_control::TransportKind;
use migrated_engine::{Compression, MigrationRecord, Mode, OnTimeout, Verify};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Asks for a VM to be moved. What is left out comes from the source host's configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StartMigration {
    /// The destination: a name from the `[peers]` of the source host's configuration, or a URL.
    pub to: String,
    /// How memory is moved: `auto` when left out.
    #[serde(default)]
    pub mode: Mode,
    /// How bytes travel between the hosts.
    #[serde(default)]
    pub transport: Option<TransportKind>,
    /// Longest time that the guest may stand still, in ms.
    #[serde(default)]
    pub max_downtime_ms: Option<f64>,
    /// Longest time that the migration as a whole should take, in ms: what `auto` chooses by. It ends nothing, as
    /// `timeout_s` does.
    #[serde(default)]
    pub max_total_ms: Option<f64>,
    /// Most payload a second on all channels together, in bits per second.
    #[serde(default)]
    pub bandwidth_bps: Option<u64>,
    /// Whether `auto` may let the guest run at the destination before its pages are there.
    #[serde(default)]
    pub allow_postcopy: Option<bool>,
    /// Largest share of its time that a vCPU may be made to sleep so that pre-copy keeps up with what it writes, in
    /// percent, up to 99; 0 is never. Only vCPUs that write more than their part of the link's rate are.
    #[serde(default)]
    pub max_slowdown_percent: Option<u8>,
    /// Page channels; chosen from the host's size when left out.
    #[serde(default)]
    pub channels: Option<u16>,
    /// When the destination's memory is compared with the source's.
    #[serde(default)]
    pub verify: Option<Verify>,
    /// Whether pages may be compressed on their way: `auto` when left out.
    #[serde(default)]
    pub compression: Compression,
    /// How long pre-copy may take, in seconds.
    #[serde(default)]
    pub timeout_s: Option<f64>,
    /// What happens when it takes longer, or stalls.
    #[serde(default)]
    pub on_timeout: Option<OnTimeout>,
    /// Most rounds over the dirty pages.
    #[serde(default)]
    pub max_iterations: Option<u32>,
    /// How long to try to reconnect when the link is lost before the commit, in ms: the guest runs on and what
    /// has arrived is kept meanwhile. 0 gives up at once.
    #[serde(default)]
    pub reconnect_window_ms: Option<u64>,
}

/// A migration that has begun.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StartedMigration {
    /// Its record.
    #[serde(flatten)]
    pub record: MigrationRecord,
    /// What the guest can lose by this that it can't lose by `precopy`, in words; none where its pages can't follow
    /// it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub risk: Option<String>,
}

impl StartedMigration {
    /// A migration with the risk of its mode, where that lets pages follow the guest.
    #[must_use]
    pub fn new(record: MigrationRecord, may_follow: bool) -> Self {
        let risk = may_follow.then(|| match record.mode {
            Mode::Auto => format!("if the guest switches before its memory has come, {}", Self::RISK),
            _ => Self::RISK.to_owned(),
        });
        Self { record, risk }
    }

    const RISK: &str = "from the switch to the last page the guest depends on both hosts: if the VM process of either \
                        dies meanwhile, the guest is lost; a link that dies only makes it wait for pages that are missing";
}

/// Asks for a link that was lost to be tried again now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RecoverMigration {
    /// Another address of the destination host, to be tried first from now on: an IP address, or one with a port where
    /// the destination's is another there. Those of before when left out.
    #[serde(default)]
    pub via: Option<String>,
}

/// All migrations this host knows, newest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MigrationList {
    /// Their records.
    pub migrations: Vec<MigrationRecord>,
}
