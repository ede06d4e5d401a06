mod kind;
mod log;
mod ring;
mod vmm_writes;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod oracle;

use std::io;

use migrated_kernel::KvmError;
use migrated_pages::PageSet;

use crate::GuestError;

pub use kind::{AttachedTracker, DEFAULT_RING_ENTRIES, DirtyTracking, TrackerKind};
pub use ring::RingHarvester;
pub use vmm_writes::VmmWrites;

/// Finds out which pages of a guest were written: by its vCPUs (KVM's dirty bitmap or dirty rings)
/// or by the VMM on its behalf.
///
/// Harvesting is destructive. It clears a page's dirty state *before* anybody reads the page, so a
/// write that comes later is reported by the next harvest; whoever harvests owns the bits and puts
/// them back when the attempt they were for fails.
pub trait DirtyTracker: Send {
    /// Begins tracking: pages written from now on are reported. Pages written before are not.
    ///
    /// # Errors
    /// [`GuestError::Kernel`] when KVM refuses.
    fn start(&mut self) -> Result<(), GuestError>;

    /// Adds all pages written since the last harvest to `dirty`, clears them in the kernel, and
    /// returns how many of them `dirty` did not have yet.
    ///
    /// # Errors
    /// [`GuestError::Kernel`]; pages already added to `dirty` stay there, none is lost.
    fn harvest(&mut self, dirty: &mut PageSet) -> Result<u64, GuestError>;

    /// Ends tracking and its cost to the guest. Bits not harvested are gone.
    ///
    /// # Errors
    /// [`GuestError::Kernel`] when KVM refuses; tracking may then still be on.
    fn stop(&mut self) -> Result<(), GuestError>;
}

impl From<KvmError> for GuestError {
    fn from(error: KvmError) -> Self {
        match error {
            KvmError::Unsupported { capability, advice } => Self::Kernel {
                operation: format!("asking KVM for {capability}"),
                source: io::Error::new(io::ErrorKind::Unsupported, advice),
            },
            KvmError::Call { call, meaning, source } => Self::Kernel {
                operation: call.into(),
                source: io::Error::new(source.kind(), format!("{meaning} ({source})")),
            },
        }
    }
}
