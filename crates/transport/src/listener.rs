use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use migrated_wire::ChannelRole;

use crate::handshake::answer_hello;
use crate::{Gate, Hangup, Incoming, Listener, Stream, TransportError, control_halves, data_receiver};

/// Most callers whose handshake is under way at once.
const MAX_HANDSHAKES: usize = 32;
/// A caller must have shown who it is within this time.
const HANDSHAKE_TIME: Duration = Duration::from_secs(5);
/// While all places are taken, a caller may keep its place this long: many round trips of a good one.
const GRACE: Duration = Duration::from_secs(1);

/// A connection that came in and has not shown yet who it is.
pub struct Caller {
    /// Ends it, at any stage.
    pub hangup: Hangup,
    /// Makes the stream of it, by the deadline; authenticates where the transport does.
    pub greet: Box<dyn FnOnce(Instant) -> Result<Stream, TransportError> + Send>,
}

/// Where callers arrive, one for each listener: what a transport brings for [`StreamListener`].
pub trait Door: Send + Sync {
    /// Waits for the next caller. Fails after [`close`](Self::close), and when no caller can ever come again.
    ///
    /// # Errors
    /// The system's, when the door is closed or broken.
    fn next_caller(&self) -> std::io::Result<Caller>;

    /// Closes the door and ends [`next_caller`](Self::next_caller).
    fn close(&self);
}

/// A [`Listener`] over a [`Door`].
///
/// Who is behind a new connection is unknown until its hello is read, and anybody can connect and
/// say nothing. So each caller is greeted on a thread of its own, against a deadline, with no buffer
/// that grows. When all `MAX_HANDSHAKES` places are taken, the oldest caller gives way as soon as it had
/// its `GRACE`: a good caller needs milliseconds, so those that sit are the others, and a good one
/// gets in while strangers hang around. Closing newcomers instead would let 32 silent
/// connections shut everybody out.
pub struct StreamListener {
    addr: SocketAddr,
    shared: Arc<Shared>,
    porter: Option<JoinHandle<()>>,
}

struct Shared {
    door: Box<dyn Door>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    gate: Option<Arc<dyn Gate>>,
    handshakes: VecDeque<Handshake>,
    next_id: u64,
    /// Channels that the gate let in; it bounds their number.
    admitted: VecDeque<Incoming>,
    closed: bool,
    broken: Option<std::io::Error>,
}

struct Handshake {
    id: u64,
    since: Instant,
    hangup: Hangup,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for<'a>(&self, state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0
    }

    fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        for handshake in &state.handshakes {
            handshake.hangup.hang_up();
        }
        self.changed.notify_all();
        self.door.close();
    }

    /// Takes callers in, for as long as the door is open. Nobody is let in before a gate is known.
    fn serve_door(self: &Arc<Self>) {
        let mut state = self.state();
        while state.gate.is_none() && !state.closed {
            state = self.wait(state);
        }
        drop(state);
        loop {
            match self.door.next_caller() {
                Ok(caller) => self.take_in(caller),
                Err(error) => {
                    let mut state = self.state();
                    if !state.closed {
                        state.broken = Some(error);
                    }
                    self.changed.notify_all();
                    return;
                }
            }
        }
    }

    fn take_in(self: &Arc<Self>, caller: Caller) {
        let mut state = self.state();
        while state.handshakes.len() >= MAX_HANDSHAKES && !state.closed {
            let age = state.handshakes.front().map_or(GRACE, |oldest| oldest.since.elapsed());
            if age >= GRACE {
                if let Some(oldest) = state.handshakes.front() {
                    oldest.hangup.hang_up();
                }
                state = self.wait(state);
            } else {
                state = self.wait_for(state, GRACE - age);
            }
        }
        let (Some(gate), false) = (state.gate.clone(), state.closed) else { return caller.hangup.hang_up() };
        let id = state.next_id;
        state.next_id += 1;
        let hangup = caller.hangup.clone();
        state.handshakes.push_back(Handshake { id, since: Instant::now(), hangup: hangup.clone() });
        drop(state);
        let shared = Arc::clone(self);
        let thread = std::thread::Builder::new().name("handshake".to_owned()).spawn(move || {
            // Why a caller was not let in is the caller's to know, by the answer it got.
            let incoming = handshake(caller, gate.as_ref()).ok();
            shared.end_handshake(id, incoming);
        });
        if thread.is_err() {
            hangup.hang_up();
            self.end_handshake(id, None);
        }
    }

    fn end_handshake(&self, id: u64, incoming: Option<Incoming>) {
        let mut state = self.state();
        state.handshakes.retain(|handshake| handshake.id != id);
        if !state.closed {
            state.admitted.extend(incoming);
        }
        self.changed.notify_all();
    }
}

fn handshake(caller: Caller, gate: &dyn Gate) -> Result<Incoming, TransportError> {
    let deadline = Instant::now() + HANDSHAKE_TIME;
    let mut stream = (caller.greet)(deadline)?;
    let (role, version) = answer_hello(&mut stream, gate, deadline)?;
    Ok(match role {
        ChannelRole::Control | ChannelRole::Resolve => {
            let peer = stream.peer.clone();
            let (sender, receiver) = control_halves(stream);
            Incoming::Control { role, sender, receiver, version, peer }
        }
        ChannelRole::Page(_) | ChannelRole::Urgent => {
            Incoming::Data { role, receiver: data_receiver(stream) }
        }
    })
}

impl StreamListener {
    /// Listens at `door`, which is reachable as `addr`. Nobody is answered before the first
    /// [`accept`](Listener::accept).
    ///
    /// # Errors
    /// [`TransportError::Local`] when the system gives no thread.
    pub fn new(door: Box<dyn Door>, addr: SocketAddr) -> Result<Self, TransportError> {
        let shared = Arc::new(Shared { door, state: Mutex::default(), changed: Condvar::new() });
        let for_porter = Arc::clone(&shared);
        let porter = std::thread::Builder::new()
            .name("listener".to_owned())
            .spawn(move || for_porter.serve_door())
            .map_err(|source| TransportError::Local { what: "can't start a thread".to_owned(), source })?;
        Ok(Self { addr, shared, porter: Some(porter) })
    }
}

impl Listener for StreamListener {
    fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    fn accept(&mut self, gate: &Arc<dyn Gate>, deadline: Instant) -> Result<Incoming, TransportError> {
        let began = Instant::now();
        let mut state = self.shared.state();
        state.gate = Some(Arc::clone(gate));
        self.shared.changed.notify_all();
        loop {
            if state.closed {
                let reason = "no longer listening".to_owned();
                return Err(TransportError::Lost { peer: self.addr.to_string(), reason });
            }
            if let Some(incoming) = state.admitted.pop_front() {
                return Ok(incoming);
            }
            if let Some(error) = &state.broken {
                let source = std::io::Error::new(error.kind(), error.to_string());
                return Err(TransportError::Local { what: format!("can't accept on {}", self.addr), source });
            }
            let now = Instant::now();
            if now >= deadline {
                let after = deadline.saturating_duration_since(began);
                return Err(TransportError::TimedOut { peer: self.addr.to_string(), after });
            }
            state = self.shared.wait_for(state, deadline - now);
        }
    }

    fn hangup(&self) -> Hangup {
        let shared = Arc::clone(&self.shared);
        Hangup::new(move || shared.close())
    }
}

impl Drop for StreamListener {
    fn drop(&mut self) {
        self.shared.close();
        self.shared.state().admitted.clear();
        if let Some(porter) = self.porter.take() {
            // A porter that panicked has nothing left to close.
            let _ = porter.join();
        }
    }
}
