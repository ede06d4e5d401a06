//! Page faults of a guest whose pages follow it: from the kernel's event to a request, and to the waiter's wake.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use migrated_guest::{FaultReader, FaultStop, PageFault, PostcopyRam};
use migrated_wire::ToSource;

use super::Shared;
use crate::priority;
use crate::threads;

/// How long the reader looks for the next fault before it sleeps: what waking it costs. Whenever the fault comes,
/// that is at most twice the cost of having known.
const SPIN: Duration = Duration::from_micros(50);
/// On a host with fewer cores the reader never spins: it takes its core from those who bring the page. On two
/// cores, with two busy vCPUs and the push at full rate, spinning did not make waits shorter, and 200 µs of it
/// made them twice as long.
const SPIN_FROM_CORES: usize = 4;
/// After a failure of the kernel's: it is not to be asked in a hot loop.
const AFTER_FAILURE: Duration = Duration::from_millis(10);

/// RAM that pages follow into.
pub(super) struct Following {
    pub(super) ram: PostcopyRam,
}

/// Starts the thread that reads faults until it is stopped. Faults are few for long and come by the thousand at
/// other times: a reader that spins would take a core from the guest for nothing in the one case, one that
/// sleeps would make each vCPU wait longer in the other. So it spins while faults come that fast, where there
/// are cores for it.
pub(super) fn start(shared: &Arc<Shared>, mut reader: FaultReader) -> FaultStop {
    let (stop, shared) = (reader.stop_handle(), shared.clone());
    let has_core = thread::available_parallelism().is_ok_and(|cores| cores.get() >= SPIN_FROM_CORES);
    threads::start("dst-faults", move || {
        priority::raise();
        let mut faults = Vec::new();
        let mut named = BTreeSet::new();
        let mut spin = Duration::ZERO;
        loop {
            let asked = Instant::now();
            match reader.next(spin, &mut faults) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    tracing::error!("page faults can't be read: {error}");
                    thread::sleep(AFTER_FAILURE);
                }
            }
            // A sleep that was as short as this would have been better spent spinning.
            spin = if has_core && asked.elapsed() <= SPIN * 2 { SPIN } else { Duration::ZERO };
            shared.fault(&faults);
            shared.name_threads(&faults, &mut named);
            faults.clear();
        }
    });
    stop
}

impl Shared {
    fn fault(&self, faults: &[PageFault]) {
        let now = self.clock.now();
        let request = {
            let mut engine = self.engine.lock();
            for PageFault { block, page, thread, .. } in faults {
                // Who faulted on a page that is there by now was woken when it was placed.
                let _ = engine.fault(now, *block, *page, *thread);
            }
            engine.take_request(self.clock.now())
        };
        self.send_requests(request);
    }

    /// Finds out what threads are called that fault for the first time, once their pages are asked for.
    fn name_threads(&self, faults: &[PageFault], named: &mut BTreeSet<u32>) {
        for PageFault { thread, .. } in faults {
            if named.insert(*thread) {
                // Without a name its id will have to do.
                let name = fs::read_to_string(format!("/proc/self/task/{thread}/comm")).unwrap_or_default();
                self.engine.lock().name_thread(*thread, name.trim_end().to_owned());
            }
        }
    }

    /// Sends a request and those that are to follow it.
    pub(super) fn send_requests(&self, mut request: Option<ToSource>) {
        while let Some(message) = request {
            self.link.send(&message, &self.traffic);
            request = self.engine.lock().take_request(self.clock.now());
        }
    }
}
