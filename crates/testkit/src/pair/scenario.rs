use std::time::Duration;

use migrated_engine::source::SourceEvent;
use migrated_engine::{Limits, Mode};
use migrated_wire::VerifyWhen;

use super::link::Happening;

/// What a simulated migration is like.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Seed of every random choice.
    pub seed: u64,
    /// How memory is moved.
    pub mode: Mode,
    /// Whether a link that was cut comes back some time.
    pub reconnects: bool,
    /// Size of the guest in pages.
    pub pages: u64,
    /// Page channels.
    pub channels: u16,
    /// Pages written every half millisecond or so.
    pub writes_per_tick: u64,
    /// When memory is compared.
    pub verify: VerifyWhen,
    /// What the migration may cost.
    pub limits: Limits,
    /// What goes wrong.
    pub faults: Vec<Fault>,
}

/// An operation on a guest that may be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestOperation {
    /// Dirty tracking can't be turned on.
    StartTracking,
    /// It can't be throttled.
    Throttle,
    /// A harvest of the running guest fails.
    Harvest,
    /// The vCPUs don't stop.
    Pause,
    /// The last harvest fails.
    FinalHarvest,
    /// State can't be read.
    Save,
    /// State can't be restored.
    Restore,
    /// The commit can't be recorded.
    Record,
    /// No vCPU starts at the destination.
    Start,
}

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The link is cut at this moment.
    CutAt(Duration),
    /// The link is cut when this control message (counted over both directions) is sent.
    CutAtMessage(u64),
    /// The link is cut when this frame of pages that follow the guest (counted over all links) is sent.
    CutAtFollowing(u64),
    /// The link is cut when this frame of pages that go before the guest (counted over all links) is sent.
    CutAtPages(u64),
    /// Somebody cancels at this moment.
    CancelAt(Duration),
    /// The destination's process is killed at this moment.
    DestinationDiesAt(Duration),
    /// The destination's process is killed when this control message is sent.
    DestinationDiesAtMessage(u64),
    /// This operation fails.
    Fails(GuestOperation),
}

impl Fault {
    pub(super) const fn scheduled(&self) -> Option<(Duration, Happening)> {
        match *self {
            Self::CutAt(at) => Some((at, Happening::Cut)),
            Self::CancelAt(at) => Some((at, Happening::Source(SourceEvent::Cancel))),
            Self::DestinationDiesAt(at) => Some((at, Happening::DestinationDies)),
            _ => None,
        }
    }
}
