use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use migrated_kernel::Userfaultfd;

use super::{MissingPages, PostcopyError};
use crate::GuestRam;

/// A guest's mapping of its RAM that userfaultfd watches. Cheap to clone; all clones are the same.
#[derive(Clone, Debug)]
pub struct WatchedRam {
    pub(super) watch: Arc<Watch>,
}

#[derive(Debug)]
pub(super) struct Watch {
    pub(super) ram: GuestRam,
    /// `None` only while it is dropped.
    uffd: Option<Userfaultfd>,
    missing: MissingPages,
    released: AtomicBool,
}

impl WatchedRam {
    pub(super) fn new(ram: GuestRam, uffd: Userfaultfd, missing: MissingPages) -> Self {
        let released = AtomicBool::new(false);
        Self { watch: Watch { ram, uffd: Some(uffd), missing, released }.into() }
    }

    /// The pages that have not come yet.
    #[must_use]
    pub fn missing(&self) -> &MissingPages {
        &self.watch.missing
    }

    /// Whether the RAM is an ordinary guest's again: nothing is missing, and userfaultfd has let go of it.
    #[must_use]
    pub fn is_released(&self) -> bool {
        // Acquire: whoever finds it so also finds the last page there.
        self.watch.released.load(Ordering::Acquire)
    }

    /// Lets go of the RAM whatever is missing, and of all who wait: they see stale memory or zeros. **Only
    /// for a guest that never runs an instruction again**, to free threads that wait to restore
    /// its state, or vCPUs that are to leave for good and have been kicked.
    ///
    /// # Errors
    /// [`PostcopyError::Userfaultfd`].
    pub fn abandon(&self) -> Result<(), PostcopyError> {
        self.release()
    }

    pub(super) fn release(&self) -> Result<(), PostcopyError> {
        let Watch { ram, released, .. } = &*self.watch;
        if !released.swap(true, Ordering::AcqRel) {
            for block in ram.layout().ids() {
                let (uffd, mapping) = (self.watch.uffd(), ram.mapping(block));
                uffd.unregister(mapping)?;
                // The kernel wakes only those that were queued before it let go, and not for every mode. Now
                // nobody can be queued any more.
                uffd.wake(mapping, 0, mapping.size())?;
            }
        }
        Ok(())
    }
}

impl Watch {
    pub(super) fn uffd(&self) -> &Userfaultfd {
        self.uffd.as_ref().expect("it goes only when all goes")
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !*self.released.get_mut() {
            // Closing it would let waiting vCPUs go on with stale memory.
            std::mem::forget(self.uffd.take());
        }
    }
}
