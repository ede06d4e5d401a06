//! Drives an engine with a guest and a transport.
//!
//! A session is a few blocking threads around one engine behind a lock. The session's own thread feeds
//! events and carries out actions on the guest; a reader turns control messages into events; each page
//! channel has a thread that pulls batches from the engine (source) or frames from the network
//! (destination) and touches the lock twice a batch. Back-pressure is the socket's: a page thread that
//! can't send asks for no more work.

mod clock;
mod destination;
mod error;
mod source;
mod traffic;

pub use clock::Clock;
pub use destination::{
    DestinationEnd, DestinationRemote, DestinationRequest, DestinationSession, EpochLog, GuestObserver,
    receive,
};
pub use source::{OutcomeSeeker, SourceEnd, SourceRemote, SourceRequest, SourceSession, send};
