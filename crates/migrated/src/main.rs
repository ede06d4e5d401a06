//! `migrated`: live migration of KVM guests.
//!
//! One binary: the daemon (`serve`), the process of one guest (`vm-process`, started by the daemon),
//! and the command line that talks to a daemon's HTTP API.

mod certs;
mod cli;
mod client;
mod config;
mod daemon;
mod demo;
mod http;
mod metrics;
mod secret;
mod serve;
mod tls;
mod units;
mod vm_process;

#[cfg(test)]
mod tests;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    cli::main(cli::Cli::parse())
}
