//! Drives an engine with a guest and a transport.
//!
//! A session is a few blocking threads around one engine behind a lock. The session's own thread feeds
//! events and carries out actions on the guest; a reader turns control messages into events; each page
//! channel has a thread that pulls batches from the engine (source) or frames from the network
//! (destination) and touches the lock a few times a batch. Back-pressure is the socket's: a page thread that
//! can't send asks for no more work.
//!
//! # When the link is lost
//!
//! The source opens all channels again, once the threads of the old ones have ended. The destination takes a new
//! control channel for the end of the old link: nothing of an old link is fed then. What its threads were placing
//! is placed or breaks off, and until then the engine does not tell what is here.
//!
//! # When pages follow the guest
//!
//! A vCPU that waits for a page waits for threads: each one that has to wake costs tens of microseconds. At the
//! destination one thread reads faults and sends requests itself. At the source the thread that reads the control
//! channel feeds a request itself, and the urgent channel has a thread of its own. The page comes back to a
//! thread that places it and wakes the vCPU. The sessions' own threads are not on this way, so that nothing
//! waits for what they do meanwhile: restoring state that lies in a missing page, for one. Those that are on it run
//! before others where that is permitted, and the push steps back for a page that is asked for.

mod clock;
mod destination;
mod error;
mod priority;
mod source;
mod threads;
mod traffic;

pub use clock::Clock;
pub use destination::{
    DestinationEnd, DestinationRemote, DestinationRequest, DestinationSession, EpochLog, GuestObserver,
    Observation, receive,
};
pub use source::{OutcomeSeeker, SourceEnd, SourceRemote, SourceRequest, SourceSession, send};
