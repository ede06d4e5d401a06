//! Two hosts on one machine: network namespaces joined by a link that can be shaped, cut and made lossy.
//!
//! It drives `ip`, `tc` and `nft`, and needs root. Everything that it makes is its own and goes when a [`Pair`]
//! is dropped, with whatever still runs inside.

mod error;
mod filter;
mod pair;
mod run;

pub use error::NetnsError;
pub use filter::Fault;
pub use pair::{ADDRESSES, Pair, kill_everything_inside};
