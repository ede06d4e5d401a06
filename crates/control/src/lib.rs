//! Messages between the daemon and a guest's VM process, and their codec.

mod spec;

pub use spec::*;
