//! Daemons as they are, on real sockets, with VM processes that have no guest in them.

mod access;
mod api;
mod balloon;
mod command_line;
mod console;
mod cpu;
mod cpu_baselines;
pub mod cpus;
mod fake_vm;
mod host;
mod migration;
mod network;
mod plan;
mod power;
mod restart;
mod spec_document;
