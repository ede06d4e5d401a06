//! What a migration sees of a VM: its RAM, its dirty pages, and its versioned state.
//!
//! The VMM implements [`Guest`], [`PausedGuest`] and [`IncomingGuest`]; a session drives them and
//! knows nothing of KVM. That a guest which was handed over can't be resumed by mistake is a
//! matter of types here: [`PausedGuest::retire`] consumes the only value that could.

mod error;
mod estimate;
mod late;
mod postcopy;
mod ram;
mod scan;
mod section;
mod throttle;
mod tracker;
mod traits;

pub use error::GuestError;
pub use late::{LateDelivery, LateInput, NoDelivery};
pub use postcopy::{
    Claim, FaultReader, FaultStop, MissingPages, PageFault, PostcopyError, PostcopyRam, PreparedPostcopy,
    WatchedRam,
};
pub use ram::{GuestRam, PageClass};
pub use section::{SectionId, StateSection};
pub use throttle::{Throttle, Throttled, ThrottledVcpu, WriteAttribution};
pub use tracker::{
    AttachedTracker, DEFAULT_RING_ENTRIES, DirtyTracker, DirtyTracking, RingHarvester, TrackerKind, VmmWrites,
};
pub use traits::{FirstRun, Guest, IncomingGuest, PausedGuest, Refused};
