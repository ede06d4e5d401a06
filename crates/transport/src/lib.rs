//! The one shape of all transports.
//!
//! A migration uses channels of different kinds (control, bulk pages, urgent pages) that never wait
//! for each other. They are blocking and each is driven by a thread of its own: the page path is
//! two system calls a batch, and a thread that sleeps in the kernel wakes sooner than a task.
//! [`Hangup`] ends every wait of a channel from another thread.
//!
//! Guest memory appears only as [`vm_memory::VolatileSlice`]: bytes that somebody else may write
//! at the same time. A transport reads and fills them in place where it can.
//!
//! What all stream transports share is here once: the hello ([`open_control`], [`open_data`]), control
//! messages, and a listener that strangers can't block ([`StreamListener`]). A transport brings
//! [`Stream`]s and a [`Door`]. [`memory`] is one such transport, for tests; `conformance` is what
//! every transport must pass.

mod channel;
#[cfg(feature = "conformance")]
pub mod conformance;
mod control;
mod data;
mod error;
mod handshake;
mod listener;
pub mod memory;
#[cfg(test)]
mod script;
mod stream;

pub use channel::{
    Capabilities, ControlReceiver, ControlSender, DataReceiver, DataSender, Endpoint, Gate, Hangup, Incoming,
    Listener, OpenedControl, Transport,
};
pub use control::control_halves;
pub use data::{data_receiver, data_sender};
pub use error::TransportError;
pub use handshake::{MigrationGate, open_control, open_data};
pub use listener::{Caller, Door, StreamListener};
pub use stream::{Stream, StreamReader, StreamWriter};
