//! The command line. Everything but `serve`, `vm-process` and `certs` is a caller of the HTTP API.

mod balloon;
mod certs;
mod connect;
mod console;
mod cpu;
mod late;
pub mod migrate;
mod migration;
mod network;
pub mod output;
mod plan;
pub mod postcopy;
mod predicted;
pub mod progress;
mod shutdown;
mod throttle;
mod vm;
mod workload;

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::demo;
use crate::http;
use crate::metrics::{DECLARED, Declared};
use crate::serve::{self, ServeArgs};
use crate::vm_process::{self, VmProcessArgs};

/// Live migration of KVM guests.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 110, propagate_version = true)]
pub struct Cli {
    #[command(flatten)]
    connect: connect::ConnectArgs,
    /// Print JSON instead of text for people.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a host's daemon.
    Serve(Box<ServeArgs>),
    /// Make, look at and end VMs.
    #[command(subcommand)]
    Vm(vm::VmCommand),
    /// Move a VM, running, to another host.
    Migrate(migrate::MigrateArgs),
    /// Look at migrations, cancel them, bring them back to their link.
    #[command(subcommand)]
    Migration(migration::MigrationCommand),
    /// CPUs: what hosts give, what they have in common, who can run where.
    #[command(subcommand)]
    Cpu(cpu::CpuCommand),
    /// See a guest move between two daemons on this machine and back.
    Demo(demo::DemoArgs),
    /// The built-in workload guest for other VMMs.
    #[command(subcommand)]
    Workload(workload::WorkloadCommand),
    /// Certificates for trying out `tcp+tls`.
    #[command(subcommand)]
    Certs(certs::CertsCommand),
    /// Print completions for a shell.
    Completions {
        /// Which shell.
        shell: Shell,
    },
    /// Print the API's description.
    #[command(hide = true)]
    Openapi,
    /// Print the metrics that a daemon counts.
    #[command(hide = true)]
    Metrics,
    /// Be the process of one guest.
    #[command(hide = true)]
    VmProcess(VmProcessArgs),
}

/// Follows a migration to its end, unseen.
#[cfg(test)]
pub async fn watch_migration(
    client: &crate::client::ApiClient,
    id: &str,
) -> Result<migrated_api::MigrationRecord> {
    progress::watch(client, id, false).await
}

/// Does what was asked.
pub fn main(cli: Cli) -> ExitCode {
    let done = match cli.command {
        // Single-threaded until it has its own threads: no runtime.
        Command::VmProcess(args) => {
            start_log(true);
            vm_process::run(&args).map(|()| ExitCode::SUCCESS)
        }
        command => with_runtime(cli.connect, cli.json, command),
    };
    done.unwrap_or_else(|error| {
        output::print_error(&error, cli.json);
        ExitCode::FAILURE
    })
}

fn with_runtime(connect: connect::ConnectArgs, json: bool, command: Command) -> Result<ExitCode> {
    start_log(matches!(command, Command::Serve(_)));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.context("can't start the runtime")?;
    runtime.block_on(run(connect, json, command))
}

async fn run(connect: connect::ConnectArgs, json: bool, command: Command) -> Result<ExitCode> {
    let output = output::Output { json };
    match command {
        Command::Serve(args) => serve::run(*args, connect.token_file).await?,
        Command::Vm(command) => vm::run(&connect.client()?, output, command).await?,
        Command::Migrate(args) => return migrate::run(&connect.client()?, output, args).await,
        Command::Migration(command) => migration::run(&connect.client()?, output, command).await?,
        Command::Cpu(command) => return cpu::run(&connect, output, command).await,
        Command::Demo(args) => return demo::run(output, args).await,
        Command::Workload(command) => workload::run(output, command)?,
        Command::Certs(command) => certs::run(output, command)?,
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "migrated", &mut std::io::stdout());
        }
        Command::Openapi => output.text(&format!("{}\n", http::openapi().to_pretty_json()?))?,
        Command::Metrics => output.value(&DECLARED, |declared| {
            let row = |m: &Declared| {
                vec![m.name.into(), m.kind.name().into(), m.unit.into(), m.labels.join(","), m.help.into()]
            };
            output::table(&["name", "kind", "unit", "labels", "help"], declared.iter().map(row))
        })?,
        Command::VmProcess(_) => unreachable!("it has no runtime"),
    }
    Ok(ExitCode::SUCCESS)
}

/// Logs to standard error: `MIGRATED_LOG` says what, as `tracing` filters are written.
fn start_log(daemon: bool) {
    let default = if daemon { "info" } else { "warn" };
    let filter =
        tracing_subscriber::EnvFilter::try_from_env("MIGRATED_LOG").unwrap_or_else(|_| default.into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
}
