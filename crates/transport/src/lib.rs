//! The one shape of all transports.
//!
//! A migration uses channels of different kinds (control, bulk pages, urgent pages) that never wait
//! for each other. They are blocking and each is driven by a thread of its own: the page path is
//! two system calls a batch, and a thread that sleeps in the kernel wakes sooner than a task.
//! [`Hangup`] ends every wait of a channel from another thread.
//!
//! Guest memory appears only as [`vm_memory::VolatileSlice`]: bytes that somebody else may write
//! at the same time. A transport reads and fills them in place where it can.

mod channel;
mod error;

pub use channel::{
    Capabilities, ControlReceiver, ControlSender, DataReceiver, DataSender, Endpoint, Gate, Hangup, Incoming,
    Listener, Transport,
};
pub use error::TransportError;
