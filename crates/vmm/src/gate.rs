//! Who may run vCPUs and serve devices, and when nobody does.
//!
//! Several parties want a guest stopped for reasons of their own: its owner, a migration, the guest
//! itself by having crashed. Each has its own flag, and vCPUs run only when nobody objects. So a
//! migration that fails can't start a guest that its owner paused meanwhile, and no request of an
//! owner can start one that a migration holds or has given away.
//!
//! Devices write RAM as vCPUs do, so their workers pass the gate, too: when it is shut, neither touches it.
//!
//! A throttle may besides make a single vCPU rest for a moment. A resting vCPU has left the guest, so a pause need
//! not wait for it; and it rests until a moment, not until it is called, so that no failure can leave it there.

mod rest;
mod workers;

use std::fmt;
use std::time::{Duration, Instant};

use migrated_guest::GuestError;
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::vcpu::Kicker;
use rest::Rest;
pub(crate) use workers::GateWorker;

/// How long a vCPU may take to leave guest mode. Ordinary is well under a millisecond; a host that is
/// swapping may take a while.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// How a guest ended by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestEnd {
    /// It broke: a triple fault, or KVM could not go on. The reason in words.
    Crashed(String),
    /// It switched itself off or asked for a reset.
    ShutDown,
}

impl fmt::Display for GuestEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Crashed(reason) => write!(f, "it crashed: {reason}"),
            Self::ShutDown => f.write_str("it shut itself down"),
        }
    }
}

/// What a VM is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunState {
    /// Its RAM and state are still arriving; it has not run here.
    Incoming,
    /// Its vCPUs run.
    Running,
    /// Its owner or a migration holds it.
    Paused,
    /// It broke, with the reason in words.
    Crashed(String),
    /// It switched itself off.
    ShutDown,
    /// It runs elsewhere now and never again here.
    Retired,
}

/// Why nobody may run the guest, if so.
#[derive(Debug, Default)]
struct Objections {
    not_started: bool,
    owner_paused: bool,
    migrating: bool,
    retired: bool,
    end: Option<GuestEnd>,
    /// The VM is being dropped: its threads must end.
    closing: bool,
}

impl Objections {
    fn none(&self) -> bool {
        !(self.not_started || self.owner_paused || self.migrating || self.retired || self.closing)
            && self.end.is_none()
    }
}

type EndHook = Box<dyn FnOnce(&GuestEnd) + Send>;

#[derive(Default)]
struct State {
    objections: Objections,
    /// For each vCPU, whether its thread may be in guest mode.
    inside: Vec<bool>,
    /// The workers of devices, and whether they are inside.
    workers: Vec<GateWorker>,
    /// For each vCPU, when it may run again and how long it has been made to wait for that.
    rests: Vec<Rest>,
    first_run: Option<Instant>,
    /// Since when somebody has kept a guest that could run from running, and for how long before that.
    held_since: Option<Instant>,
    held: Duration,
    end_hooks: Vec<EndHook>,
}

/// The gate that every vCPU's thread passes on its way into the guest.
pub(crate) struct Gate {
    state: Mutex<State>,
    /// Somebody objects, or no longer does.
    permission: Condvar,
    /// A vCPU or a worker went in or came out.
    passed: Condvar,
    /// Held by whoever is changing what may run, so that pauses and resumes don't interleave.
    transition: Mutex<()>,
    kickers: Vec<Kicker>,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("objections", &self.state.lock().objections).finish_non_exhaustive()
    }
}

impl Gate {
    /// A gate that is shut until [`Gate::start`].
    pub(crate) fn new(kickers: Vec<Kicker>, workers: Vec<GateWorker>) -> Self {
        let objections = Objections { not_started: true, ..Objections::default() };
        let inside = vec![false; kickers.len()];
        let rests = vec![Rest::default(); kickers.len()];
        Self {
            state: Mutex::new(State { objections, inside, workers, rests, ..State::default() }),
            permission: Condvar::new(),
            passed: Condvar::new(),
            transition: Mutex::new(()),
            kickers,
        }
    }

    pub(crate) fn kicker(&self, vcpu: usize) -> &Kicker {
        &self.kickers[vcpu]
    }

    // What a vCPU's thread calls.

    /// Waits until the vCPU may run; `false` when its thread must end.
    pub(crate) fn enter(&self, vcpu: usize) -> bool {
        let mut state = self.state.lock();
        loop {
            if !state.objections.none() {
                if state.objections.closing {
                    return false;
                }
                state.rests[vcpu].interrupt(Instant::now());
                self.permission.wait(&mut state);
            } else if let Some(until) = state.rests[vcpu].rest(Instant::now()) {
                self.permission.wait_until(&mut state, until);
            } else {
                break;
            }
        }
        // Under the lock: whoever objects from now on kicks after this, and the kick stays.
        self.kickers[vcpu].rearm();
        state.inside[vcpu] = true;
        state.first_run.get_or_insert_with(Instant::now);
        self.passed.notify_all();
        true
    }

    /// Whether a vCPU that was kicked must come out. The kick is forgotten if not.
    pub(crate) fn must_leave(&self, vcpu: usize) -> bool {
        let state = self.state.lock();
        let leave = !state.objections.none() || state.rests[vcpu].is_due(Instant::now());
        if !leave {
            self.kickers[vcpu].rearm();
        }
        leave
    }

    /// The vCPU is out of the guest.
    pub(crate) fn leave(&self, vcpu: usize) {
        self.state.lock().inside[vcpu] = false;
        self.passed.notify_all();
    }

    // What a device's worker calls.

    /// Waits until the guest may run; `false` when the worker must end.
    pub(crate) fn enter_worker(&self, worker: usize) -> bool {
        let mut state = self.state.lock();
        while !state.objections.none() {
            if state.objections.closing {
                return false;
            }
            self.permission.wait(&mut state);
        }
        state.workers[worker].inside = true;
        true
    }

    /// The worker touches nothing of the guest's any more.
    pub(crate) fn leave_worker(&self, worker: usize) {
        self.state.lock().workers[worker].inside = false;
        self.passed.notify_all();
    }

    /// The guest ended by itself, on this thread; the other vCPUs are stopped.
    pub(crate) fn end(&self, end: GuestEnd) {
        let mut state = self.state.lock();
        if state.objections.end.is_some() {
            return;
        }
        state.objections.end = Some(end.clone());
        let hooks = std::mem::take(&mut state.end_hooks);
        drop(state);
        self.kickers.iter().for_each(Kicker::kick);
        hooks.into_iter().for_each(|hook| hook(&end));
    }

    // What everybody else calls.

    pub(crate) fn run_state(&self) -> RunState {
        let state = self.state.lock();
        let objections = &state.objections;
        match &objections.end {
            _ if objections.retired => RunState::Retired,
            Some(GuestEnd::Crashed(reason)) => RunState::Crashed(reason.clone()),
            Some(GuestEnd::ShutDown) => RunState::ShutDown,
            None if objections.not_started => RunState::Incoming,
            None if objections.none() => RunState::Running,
            None => RunState::Paused,
        }
    }

    /// Calls `hook` when the guest ends by itself, on the vCPU's thread; at once if it has.
    pub(crate) fn on_end(&self, hook: EndHook) {
        let mut state = self.state.lock();
        match state.objections.end.clone() {
            Some(end) => {
                drop(state);
                hook(&end);
            }
            None => state.end_hooks.push(hook),
        }
    }

    /// Whether the owner wants the guest paused.
    pub(crate) fn owner_paused(&self) -> bool {
        self.state.lock().objections.owner_paused
    }

    /// The owner's wish at the source; the one expressed here, on a guest not started yet, counts as well.
    pub(crate) fn inherit_owner_pause(&self, paused: bool) {
        self.state.lock().objections.owner_paused |= paused;
    }

    /// # Errors
    /// [`GuestError::Gone`] when the guest ended or was given away.
    pub(crate) fn check_usable(&self) -> Result<(), GuestError> {
        self.usable().map(drop)
    }

    /// Opens the gate for the first time, and returns when the first vCPU went in: or the present
    /// where the owner wants the guest to stay paused.
    pub(crate) fn start(&self) -> Result<Instant, GuestError> {
        let _transition = self.transition.lock();
        let mut state = self.usable()?;
        state.objections.not_started = false;
        self.let_in(&state);
        if !state.objections.none() {
            return Ok(Instant::now());
        }
        let deadline = Instant::now() + STOP_DEADLINE;
        loop {
            if let Some(at) = state.first_run {
                return Ok(at);
            }
            if self.passed.wait_until(&mut state, deadline).timed_out() {
                return Err(stuck(0));
            }
        }
    }

    /// The owner wants the guest paused; returns when no vCPU runs.
    pub(crate) fn owner_pause(&self) -> Result<(), GuestError> {
        self.stop(|objections| &mut objections.owner_paused)
    }

    /// The owner no longer wants the guest paused. It runs unless somebody else objects.
    pub(crate) fn owner_resume(&self) -> Result<(), GuestError> {
        self.go_on(|objections| &mut objections.owner_paused)
    }

    /// A migration takes hold of the guest; returns when no vCPU runs.
    pub(crate) fn migration_pause(&self) -> Result<(), GuestError> {
        self.stop(|objections| &mut objections.migrating)
    }

    /// The migration lets go of the guest. It runs unless somebody else objects.
    pub(crate) fn migration_resume(&self) -> Result<(), GuestError> {
        self.go_on(|objections| &mut objections.migrating)
    }

    /// The guest was given away: nothing runs it here again.
    pub(crate) fn retire(&self) {
        self.state.lock().objections.retired = true;
    }

    /// Tells all threads to end: none of them enters the guest again.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.objections.closing = true;
        self.let_in(&state);
        drop(state);
        self.kickers.iter().for_each(Kicker::kick);
    }

    /// Waits until all threads have ended, which were told to.
    pub(crate) fn join(&self) {
        self.kickers.iter().for_each(Kicker::join);
    }

    /// Makes each vCPU for which there is a time rest that long from now on.
    pub(crate) fn order_rests(&self, rests: &[Option<Duration>]) {
        let mut state = self.state.lock();
        let now = Instant::now();
        for (vcpu, rest) in rests.iter().enumerate() {
            if let Some(rest) = rest {
                state.rests[vcpu].order(now + *rest);
                if state.inside[vcpu] {
                    self.kickers[vcpu].kick();
                }
            }
        }
    }

    /// Ends all rests.
    pub(crate) fn end_rests(&self) {
        let mut state = self.state.lock();
        let now = Instant::now();
        state.rests.iter_mut().for_each(|rest| rest.end(now));
        self.permission.notify_all();
    }

    /// How long each vCPU has rested.
    pub(crate) fn rested(&self) -> Vec<Duration> {
        let now = Instant::now();
        self.state.lock().rests.iter().map(|rest| rest.rested(now)).collect()
    }

    fn stop(&self, objection: impl Fn(&mut Objections) -> &mut bool) -> Result<(), GuestError> {
        let _transition = self.transition.lock();
        let mut state = self.usable()?;
        *objection(&mut state.objections) = true;
        let now = Instant::now();
        state.rests.iter_mut().for_each(|rest| rest.interrupt(now));
        let stopped = self.stop_all(&mut state).and_then(|()| match &state.objections.end {
            Some(end) => Err(GuestError::Gone(end.to_string())),
            None => Ok(()),
        });
        if stopped.is_err() {
            *objection(&mut state.objections) = false;
            self.permission.notify_all();
        } else {
            state.held_since.get_or_insert_with(Instant::now);
        }
        stopped
    }

    /// Kicks all vCPUs first, then waits for all: their ways out overlap. Workers need no kick.
    fn stop_all(&self, state: &mut MutexGuard<'_, State>) -> Result<(), GuestError> {
        for (vcpu, kicker) in self.kickers.iter().enumerate() {
            if state.inside[vcpu] {
                kicker.kick();
            }
        }
        let deadline = Instant::now() + STOP_DEADLINE;
        while let Some(vcpu) = state.inside.iter().position(|inside| *inside) {
            if self.passed.wait_until(state, deadline).timed_out() && state.inside[vcpu] {
                return Err(stuck(vcpu));
            }
        }
        while let Some(worker) = state.workers.iter().position(|worker| worker.inside) {
            if self.passed.wait_until(state, deadline).timed_out() && state.workers[worker].inside {
                let device = state.workers[worker].name.clone();
                return Err(GuestError::StuckDevice { device, waited_ms: STOP_DEADLINE.as_millis() as u64 });
            }
        }
        Ok(())
    }

    fn go_on(&self, objection: impl Fn(&mut Objections) -> &mut bool) -> Result<(), GuestError> {
        let _transition = self.transition.lock();
        let mut state = self.usable()?;
        *objection(&mut state.objections) = false;
        if state.objections.none() {
            let held = state.held_since.take().map_or(Duration::ZERO, |since| since.elapsed());
            state.held += held;
        }
        self.let_in(&state);
        Ok(())
    }

    /// Whoever is outside looks again whether it may or must do something.
    fn let_in(&self, state: &State) {
        self.permission.notify_all();
        state.workers.iter().for_each(GateWorker::wake);
    }

    /// How long all vCPUs together were kept from running by an owner's pause or a migration.
    pub(crate) fn blocked(&self) -> Duration {
        let state = self.state.lock();
        let held = state.held + state.held_since.map_or(Duration::ZERO, |since| since.elapsed());
        held * self.kickers.len() as u32
    }

    /// The state of a guest that could still run.
    fn usable(&self) -> Result<MutexGuard<'_, State>, GuestError> {
        let state = self.state.lock();
        if state.objections.retired {
            return Err(GuestError::Gone("it was migrated away and runs elsewhere".into()));
        }
        match &state.objections.end {
            Some(end) => Err(GuestError::Gone(end.to_string())),
            None => Ok(state),
        }
    }
}

fn stuck(vcpu: usize) -> GuestError {
    GuestError::Stuck { vcpu: vcpu as u32, waited_ms: STOP_DEADLINE.as_millis() as u64 }
}
