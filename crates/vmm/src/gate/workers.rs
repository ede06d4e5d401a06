use std::fmt;
use std::sync::Arc;

use migrated_kernel::Event;

/// A device's worker, as the gate knows it.
///
/// It is no vCPU: it comes out by itself soon after it went in, so that nobody has to kick it. But it waits for
/// events outside, and must be woken when the gate opens, to see what it has missed.
pub(crate) struct GateWorker {
    /// The device, for people.
    pub(super) name: String,
    wake: Arc<Event>,
    /// It may be touching RAM.
    pub(super) inside: bool,
}

impl fmt::Debug for GateWorker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GateWorker").field("name", &self.name).field("inside", &self.inside).finish()
    }
}

impl GateWorker {
    /// `wake` makes it look at everything.
    pub(crate) fn new(name: String, wake: Arc<Event>) -> Self {
        Self { name, wake, inside: false }
    }

    pub(super) fn wake(&self) {
        self.wake.signal();
    }
}
