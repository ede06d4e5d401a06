use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::OnTimeout;

/// What a migration may cost, as whoever asked for it said.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Longest time the guest may stand still.
    pub max_downtime: Duration,
    /// Longest time that the migration as a whole should take: what [`Mode::Auto`](crate::Mode::Auto) chooses by and
    /// predictions are held against. A goal, which ends nothing: that is what `timeout` does. `None` is none.
    #[serde(default)]
    pub max_total: Option<Duration>,
    /// Longest time for pre-copy as a whole; then `on_timeout` decides.
    pub timeout: Duration,
    /// Most rounds over the dirty pages; then `on_timeout` decides.
    pub max_iterations: u32,
    /// What to do when pre-copy doesn't converge within these limits.
    pub on_timeout: OnTimeout,
    /// Most payload bits a second on all channels together; `None` is as fast as the link.
    pub bandwidth_bps: Option<u64>,
    /// Whether [`Mode::Auto`](crate::Mode::Auto) may let the guest run at the destination before its pages are
    /// there. A mode that was asked for by name is itself the permission.
    #[serde(default = "allowed")]
    pub allow_postcopy: bool,
    /// How long the source tries to reconnect when it loses the link before the commit; zero gives up
    /// at once.
    #[serde(default = "reconnect_window")]
    pub reconnect_window: Duration,
    /// Largest share of its time that a vCPU may be made to sleep so that pre-copy keeps up with what it
    /// writes, in percent; 0 is never. Only vCPUs that write more than their part of the link's rate are.
    #[serde(default)]
    pub max_slowdown_percent: u8,
    /// Most pages sent ahead of a fault, in post-copy; 0 sends none.
    #[serde(default = "prefetch_pages")]
    pub prefetch_pages: u64,
}

/// 128 KiB, 1 ms of a 1 Gbit/s link.
pub const PREFETCH_PAGES: u64 = 32;

const fn prefetch_pages() -> u64 {
    PREFETCH_PAGES
}

const fn allowed() -> bool {
    true
}

const fn reconnect_window() -> Duration {
    RECONNECT_WINDOW
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_downtime: Duration::from_millis(50),
            max_total: None,
            timeout: Duration::from_secs(300),
            max_iterations: 30,
            on_timeout: OnTimeout::Cancel,
            bandwidth_bps: None,
            allow_postcopy: true,
            reconnect_window: RECONNECT_WINDOW,
            max_slowdown_percent: 0,
            prefetch_pages: PREFETCH_PAGES,
        }
    }
}

/// A peer that sent nothing for this long is dead. Pings keep a living one talking.
pub const PEER_DEAD_AFTER: Duration = Duration::from_secs(5);
/// How often a ping goes out.
pub const PING_EVERY: Duration = Duration::from_secs(1);
/// How long a source tries to reconnect unless told otherwise: a switch that restarts, a route that moves, an
/// operator who plugs a cable back in.
pub const RECONNECT_WINDOW: Duration = Duration::from_secs(30);
/// Longest that a destination waits for a source to come back, whatever that asks for: RAM is held meanwhile.
pub const MAX_RECONNECT_WINDOW: Duration = Duration::from_secs(600);
/// How much longer than the source the destination waits. It may notice a loss that much earlier, and what the
/// source opened last must still be met.
pub const RECONNECT_GRACE: Duration = Duration::from_secs(10);
/// How long a destination waits for a source to come for the first time, whatever its window: from being prepared to
/// being connected to takes two daemons and two processes.
const FIRST_CONTACT: Duration = Duration::from_secs(30);

/// How long a destination waits for the offer of a source that tries to reconnect for `window`: as after any loss,
/// because a link that is lost before the offer came is opened again like one that is lost later.
#[must_use]
pub fn patience_for(window: Duration) -> Duration {
    (window.min(MAX_RECONNECT_WINDOW) + RECONNECT_GRACE).max(FIRST_CONTACT)
}

/// Longest time for preflight, whose work is a comparison and a rehearsal.
pub const PREFLIGHT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time that stop-and-copy may take beyond what the residual pages need at the measured rate: a
/// destination that can't restore in this time gives the guest back to the source.
pub const RESTORE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the destination may take to say what it has once there is a link again.
pub const RECOVER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the source waits for the destination's summary once the guest runs there.
pub const SUMMARY_TIMEOUT: Duration = Duration::from_secs(3);
