//! The migration engine: sans-IO state machines of both ends, the convergence policy, and the
//! record of what was decided and why. No clock, no socket, no thread: time comes as an argument,
//! always as the time since the migration was asked for.

mod auto;
pub mod destination;
mod failure;
mod limits;
mod liveness;
mod pace;
mod plan;
mod policy;
mod predict;
mod record;
mod round;
pub mod source;
mod throttle;

pub use auto::AutoPolicy;
pub use failure::{Failure, FailureCode};
pub use limits::{
    Limits, MAX_RECONNECT_WINDOW, PEER_DEAD_AFTER, PING_EVERY, PREFETCH_PAGES, PREFLIGHT_TIMEOUT,
    RECONNECT_GRACE, RECONNECT_WINDOW, RECOVER_TIMEOUT, RESTORE_TIMEOUT, SUMMARY_TIMEOUT, patience_for,
};
pub use plan::{DirtySample, Plan, PlanInputs, TRACKING_FACTOR, plan};
pub use policy::{
    ConvergencePolicy, HybridPolicy, Observation, PrecopyPolicy, Progress, Step, Verdict, policy_for,
};
pub use predict::{Model, WriteCurve, WriteFit, WriteSample};
pub use record::*;
pub use throttle::{ThrottleCounts, ThrottleOrder};
