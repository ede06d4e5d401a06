//! Named threads, so that `top -H` and a trace say which part of a migration takes a core.

use std::thread::{self, JoinHandle};

/// Runs `what` on a new thread of that name, of which the kernel keeps 15 bytes.
///
/// # Panics
/// When there is no thread to be had, as [`thread::spawn`] does.
pub fn start(name: impl Into<String>, what: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    let name = name.into();
    thread::Builder::new()
        .name(name.clone())
        .spawn(what)
        .unwrap_or_else(|error| panic!("no thread for {name}: {error}; raise the limit of tasks"))
}
