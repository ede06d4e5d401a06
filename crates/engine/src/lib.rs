//! The migration engine: sans-IO state machines of both ends, the convergence policy, and the
//! record of what was decided and why. No clock, no socket, no thread: time comes as an argument.

mod record;

pub use record::*;
