//! The migration engine: sans-IO state machines of both ends, the convergence policy, and the
//! record of what was decided and why. No clock, no socket, no thread: time comes as an argument,
//! always as the time since the migration was asked for.

pub mod destination;
mod failure;
mod limits;
mod liveness;
mod pace;
mod policy;
mod record;
mod round;
pub mod source;

pub use failure::{Failure, FailureCode};
pub use limits::{
    Limits, PEER_DEAD_AFTER, PING_EVERY, PREFLIGHT_TIMEOUT, RECOVER_TIMEOUT, RESTORE_TIMEOUT, SUMMARY_TIMEOUT,
};
pub use policy::{ConvergencePolicy, HybridPolicy, Observation, PrecopyPolicy, Step, Verdict, policy_for};
pub use record::*;
