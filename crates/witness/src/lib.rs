//! What runs in the guests of the lab and tells what a migration did to them: a server whose answers can be
//! checked, and a watch over the clocks of every vCPU. It is linked statically, since a guest has no libraries.

mod clocks;
mod messages;
mod server;

pub use clocks::{Clocks, Readings};
pub use messages::{Answer, Request};
pub use server::serve;

/// The TCP port that it listens on.
pub const PORT: u16 = 7000;
/// What it prints, on a line of its own, when it listens.
pub const READY: &str = "lab: the guest is ready";
