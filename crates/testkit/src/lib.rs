//! What tests of several crates share: capabilities of the machine, a guest without a VMM, and both
//! ends of a migration over a simulated link.

pub mod capability;
mod guest;
pub mod pair;
mod rng;
mod wait;

pub use guest::FakeGuest;
pub use rng::Rng;
pub use wait::wait_until;
