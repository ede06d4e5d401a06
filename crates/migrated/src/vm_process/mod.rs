//! The main of a guest's VM process: owns the guest's RAM, vCPUs and devices, and its end of a
//! migration. The daemon may come and go; this process needs nothing of it to run the guest.

mod boot;
mod cpu;
mod describe;
mod epochs;
mod errors;
mod incoming;
mod migration;
mod network;
mod outgoing;
mod process;
mod sample;
mod service;
mod status;
mod workload;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Args;
use migrated_control::{EventSink, VmDir, VmStart, listener_from_stdin, serve};

use process::Process;

/// Flags of the hidden subcommand.
#[derive(Debug, Args)]
pub struct VmProcessArgs {
    /// The VM's directory.
    #[arg(long)]
    dir: PathBuf,
}

/// Runs a guest until it ends or has left, and leaves word why in the VM's directory.
pub fn run(args: &VmProcessArgs) -> Result<()> {
    // A session of its own: what ends the daemon's (a terminal's hang-up) doesn't reach the guest.
    rustix::process::setsid().context("setsid")?;
    let dir = VmDir::new(&args.dir);
    let start = dir.read_start()?;
    let listener = listener_from_stdin().context("the control socket is not on standard input")?;
    let (process, ended) = Process::new(dir, EventSink::new());
    let service = service::Service::new(Arc::clone(&process));
    let events = process.events.clone();
    std::thread::Builder::new().name("control-accept".into()).spawn(move || {
        if let Err(error) = serve(listener, Arc::new(service), events) {
            tracing::error!("no daemon can connect any more: {error}");
        }
    })?;
    match start {
        VmStart::Boot(plan) => boot::start(&process, &plan),
        VmStart::Incoming(plan) => incoming::start(&process, *plan),
    }
    let report = ended.recv().context("the process forgot to say why it ends")?;
    process.leave(report);
    Ok(())
}
