//! Holds back vCPUs that write more than a migration can carry away, and no others.
//!
//! A thread that exists only as long as it is needed looks at all vCPUs every few milliseconds: what each has
//! written since is told by its [`Meter`] and the [`Attribution`] of harvested pages; what it may write is its
//! [`Budget`]; what it must rest for is ordered at the [`Gate`](crate::gate::Gate). Whoever ends the throttle
//! takes the lock that the thread orders under, so nothing is held back once [`Throttler::release`] has returned.

mod attribution;
mod budget;
mod meter;

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kvm_ioctls::VmFd;
use migrated_guest::{GuestError, Throttle, Throttled, ThrottledVcpu};
use parking_lot::{Condvar, Mutex};

use crate::VmmError;
use crate::gate::Gate;
use crate::vcpu::Vcpu;
use attribution::Attribution;
use budget::{Budget, SHORTEST_PERIOD, Spent};
use meter::{Meter, Reading};

/// The throttle of a VM's vCPUs.
#[derive(Debug)]
pub(crate) struct Throttler {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    gate: Arc<Gate>,
    meters: Vec<Meter>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    throttle: Option<Throttle>,
    attribution: Attribution,
    /// How long each vCPU had rested when the counts began.
    rested_before: Vec<Duration>,
    thread: Option<JoinHandle<()>>,
}

impl Throttler {
    /// For vCPUs that do not run yet.
    pub(crate) fn new(vm: &VmFd, vcpus: &[Vcpu], gate: Arc<Gate>) -> Result<Self, VmmError> {
        let meters = vcpus.iter().map(|vcpu| Meter::new(vm, &vcpu.lock()));
        let meters = meters.collect::<Result<Vec<_>, _>>().map_err(GuestError::from)?;
        let state = Mutex::new(State {
            throttle: None,
            attribution: Attribution::new(vec![Reading::default(); meters.len()]),
            rested_before: vec![Duration::ZERO; meters.len()],
            thread: None,
        });
        Ok(Self { shared: Arc::new(Shared { gate, meters, state, changed: Condvar::new() }) })
    }

    /// Begins to count anew, with dirty tracking.
    pub(crate) fn begin(&self) {
        let mut state = self.shared.state.lock();
        state.attribution = Attribution::new(self.shared.read());
        state.rested_before = self.shared.gate.rested();
    }

    /// Takes in that this many pages were harvested.
    pub(crate) fn harvested(&self, pages: u64) {
        let mut state = self.shared.state.lock();
        state.attribution.harvest(pages, self.shared.read());
        // Every page can become dirty again now: what wrote nothing new a moment ago may write at full speed.
        self.shared.changed.notify_all();
    }

    /// Nothing is held back any more.
    pub(crate) fn release(&self) {
        let mut state = self.shared.state.lock();
        if state.throttle.take().is_some() {
            self.shared.gate.end_rests();
            self.shared.changed.notify_all();
        }
    }

    /// Throttles from now on.
    pub(crate) fn set(&self, throttle: Throttle) -> Result<(), GuestError> {
        let mut state = self.shared.state.lock();
        state.throttle = Some(throttle);
        if state.thread.as_ref().is_none_or(JoinHandle::is_finished) {
            let shared = self.shared.clone();
            let thread = thread::Builder::new().name("throttle".into()).spawn(move || shared.run());
            match thread {
                Ok(thread) => state.thread = Some(thread),
                Err(error) => {
                    state.throttle = None;
                    // Of a thread that was there before and is not any more.
                    self.shared.gate.end_rests();
                    return Err(GuestError::Throttle(format!("no thread can be started: {error}")));
                }
            }
        }
        Ok(())
    }

    /// What it did since [`Throttler::begin`].
    pub(crate) fn throttled(&self) -> Throttled {
        let state = self.shared.state.lock();
        let slept = self.shared.gate.rested();
        let slept = slept.iter().zip(&state.rested_before).map(|(now, before)| now.saturating_sub(*before));
        let vcpus =
            slept.zip(state.attribution.pages()).map(|(slept, pages)| ThrottledVcpu { slept, pages: *pages });
        Throttled { attribution: state.attribution.by(), vcpus: vcpus.collect() }
    }
}

impl Drop for Throttler {
    fn drop(&mut self) {
        self.release();
        let thread = self.shared.state.lock().thread.take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the throttle's thread panicked");
        }
    }
}

impl Shared {
    fn read(&self) -> Vec<Reading> {
        let vcpus = self.meters.iter().enumerate();
        vcpus.map(|(vcpu, meter)| meter.read(self.gate.kicker(vcpu).clock())).collect()
    }

    /// The life of the throttle's thread.
    fn run(&self) {
        let mut budget = Budget::new(self.meters.len());
        let mut state = self.state.lock();
        let mut then = (Instant::now(), self.read(), self.gate.rested());
        let mut period = SHORTEST_PERIOD;
        loop {
            let harvested = !self.changed.wait_for(&mut state, period).timed_out();
            let Some(throttle) = state.throttle else { break };
            let now = (Instant::now(), self.read(), self.gate.rested());
            let vcpus = then.1.iter().zip(&now.1).zip(then.2.iter().zip(&now.2));
            let spent: Vec<_> = vcpus
                .map(|((before, now), (rested_before, rested))| Spent {
                    pages: state.attribution.written(before, now),
                    rested: rested.saturating_sub(*rested_before),
                })
                .collect();
            let elapsed = now.0.duration_since(then.0);
            if elapsed.is_zero() {
                continue;
            }
            let orders = budget.settle(&throttle, elapsed, &spent);
            self.gate.order_rests(&orders.rests);
            period = if harvested { SHORTEST_PERIOD } else { orders.next };
            then = now;
        }
        state.thread = None;
    }
}
