use std::time::Instant;

use migrated_pages::PageSet;

use crate::{
    GuestError, GuestRam, LateDelivery, LateInput, NoDelivery, PostcopyRam, PreparedPostcopy, StateSection,
    Throttle, Throttled,
};

/// A transition that was refused: the guest comes back with the reason, unharmed.
#[derive(Debug)]
pub struct Refused<G> {
    /// The guest as it was before.
    pub guest: G,
    /// Why.
    pub error: GuestError,
}

/// A guest whose vCPUs run (or that its owner paused, which migrates as paused).
pub trait Guest: Send + Sized + 'static {
    /// The same guest with all vCPUs stopped.
    type Paused: PausedGuest<Running = Self>;

    /// The guest's RAM.
    fn ram(&self) -> &GuestRam;

    /// Begins dirty tracking, see [`DirtyTracker::start`](crate::DirtyTracker::start).
    ///
    /// # Errors
    /// [`GuestError::Kernel`] when KVM refuses.
    fn start_tracking(&mut self) -> Result<(), GuestError>;

    /// Harvests dirty pages, see [`DirtyTracker::harvest`](crate::DirtyTracker::harvest).
    ///
    /// # Errors
    /// [`GuestError::Kernel`]; no page is lost.
    fn harvest(&mut self, dirty: &mut PageSet) -> Result<u64, GuestError>;

    /// Ends dirty tracking.
    ///
    /// # Errors
    /// [`GuestError::Kernel`] when KVM refuses.
    fn stop_tracking(&mut self) -> Result<(), GuestError>;

    /// Holds vCPUs back that write too much, from now on, or none any more. Whatever ends, ends that too, at once:
    /// [`stop_tracking`](Self::stop_tracking), a [`pause`](Self::pause) that succeeds, and dropping the guest.
    ///
    /// # Errors
    /// [`GuestError::Throttle`]; nothing is held back then.
    fn throttle(&mut self, throttle: Option<Throttle>) -> Result<(), GuestError> {
        match throttle {
            Some(_) => Err(GuestError::Throttle("nobody can tell what each of them writes".into())),
            None => Ok(()),
        }
    }

    /// What throttling did since dirty tracking was started; `None` where there is none.
    fn throttled(&self) -> Option<Throttled> {
        None
    }

    /// What hands to this guest's devices the input that came to where it was before. It outlives this value and
    /// never stops the guest; without devices that take any it drops what comes.
    fn late_delivery(&self) -> Box<dyn LateDelivery> {
        Box::new(NoDelivery)
    }

    /// Stops all vCPUs: kicks all of them first, then waits for all.
    ///
    /// # Errors
    /// The guest, still running, with the reason.
    fn pause(self) -> Result<Self::Paused, Refused<Self>>;
}

/// A guest of which no vCPU runs and no device writes RAM.
pub trait PausedGuest: Send + Sized + 'static {
    /// What [`resume`](Self::resume) gives back.
    type Running: Guest<Paused = Self>;

    /// The guest's RAM, which nothing changes now.
    fn ram(&self) -> &GuestRam;

    /// The last harvest, see [`DirtyTracker::harvest`](crate::DirtyTracker::harvest).
    ///
    /// # Errors
    /// [`GuestError::Kernel`]; no page is lost.
    fn harvest(&mut self, dirty: &mut PageSet) -> Result<u64, GuestError>;

    /// Reads the whole CPU and device state. Reading changes nothing: the guest can still resume.
    ///
    /// # Errors
    /// [`GuestError::Kernel`] naming what could not be read.
    fn save(&mut self) -> Result<Vec<StateSection>, GuestError>;

    /// Runs the guest on here, tracked or not as before.
    ///
    /// # Errors
    /// The paused guest with the reason.
    fn resume(self) -> Result<Self::Running, Refused<Self>>;

    /// Takes from where it waits what has come from outside for the guest's devices since it was paused, oldest first,
    /// at most `limit_bytes` of it; what is taken is gone here. Called only when the guest is known to run elsewhere,
    /// some hundred times, so that having nothing must be cheap. What every host on the network gets (broadcasts) the
    /// guest gets where it is, and need not be among it.
    fn late_input(&mut self, limit_bytes: usize) -> Vec<LateInput> {
        let _ = limit_bytes;
        Vec::new()
    }

    /// The guest runs elsewhere now: this copy never runs again and its RAM is freed.
    fn retire(self);
}

/// When the destination's vCPUs entered guest mode for the first time.
#[derive(Clone, Copy, Debug)]
pub struct FirstRun {
    /// Taken on the first vCPU's thread immediately before its first KVM_RUN.
    pub at: Instant,
}

/// A guest at its destination that has not run yet: RAM to fill, state to restore.
pub trait IncomingGuest: Send + Sized + 'static {
    /// What [`start`](Self::start) makes of it.
    type Running: Guest;

    /// The RAM to place pages in; all zero at first.
    fn ram(&self) -> &GuestRam;

    /// Whether post-copy can fill this guest's RAM here; to be asked before anything moves.
    ///
    /// # Errors
    /// What the host's permissions, its kernel or the RAM's backing lack, in words.
    fn postcopy_support(&self) -> Result<(), GuestError> {
        Ok(PostcopyRam::support(self.ram())?)
    }

    /// Does for post-copy what can be done before the source pauses, see [`PostcopyRam::prepare`].
    ///
    /// # Errors
    /// [`GuestError::Postcopy`].
    fn prepare_postcopy(&self) -> Result<PreparedPostcopy, GuestError> {
        Ok(PostcopyRam::prepare(self.ram())?)
    }

    /// Makes accesses to the `stale` pages wait until they are placed. To be called before
    /// [`restore`](Self::restore), and with somebody reading the faults by then: restoring may touch RAM.
    ///
    /// # Errors
    /// [`GuestError::Postcopy`]. The guest must then be dropped.
    fn arm_postcopy(
        &mut self,
        prepared: PreparedPostcopy,
        stale: &PageSet,
    ) -> Result<PostcopyRam, GuestError> {
        Ok(prepared.arm(stale)?)
    }

    /// These pages have just come: begins to do what makes the guest find them at hand when it runs, and returns at
    /// once. It is over when [`restore`](Self::restore) or [`arm_postcopy`](Self::arm_postcopy) begins, however far it
    /// has come.
    fn warm_up(&mut self, pages: PageSet) {
        drop(pages);
    }

    /// Restores the CPU and device state. All sections must be known and all expected ones there.
    ///
    /// # Errors
    /// [`GuestError::Section`] names the first that does not fit. The guest must then be dropped.
    fn restore(&mut self, sections: Vec<StateSection>) -> Result<(), GuestError>;

    /// Runs the first instruction. Called only after the commit was recorded.
    ///
    /// # Errors
    /// [`GuestError`] when a vCPU could not be started.
    fn start(self) -> Result<(Self::Running, FirstRun), GuestError>;
}
