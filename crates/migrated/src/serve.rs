//! `migrated serve`: a host's daemon.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{EXAMPLE, HostConfig};
use crate::daemon::{Daemon, Ground, HostNetwork, VmCommand, probe_kvm, read_host_cpu};
use crate::{http, units};

/// Flags of `serve`. Each replaces what the configuration file says.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Configuration file (TOML); without one everything has its default.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print a configuration file with every key explained, and exit.
    #[arg(long)]
    print_config: bool,
    /// Name of this host [config: name].
    #[arg(long)]
    name: Option<String>,
    /// Directory for VMs and migration records [config: state_dir].
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Unix socket of the API [config: api.socket].
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// TCP address to serve the API on besides [config: api.listen].
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<SocketAddr>,
    /// Address on which guests are received [config: migration.ip].
    #[arg(long, value_name = "IP")]
    migration_ip: Option<IpAddr>,
    /// Address of this host that sources are told, best first; may be given several times
    /// [config: migration.advertise].
    #[arg(long, value_name = "IP")]
    advertise: Vec<IpAddr>,
    /// Ports for receiving guests [config: migration.ports].
    #[arg(long, value_name = "FIRST-LAST", value_parser = units::port_range)]
    migration_ports: Option<(u16, u16)>,
    /// Let guests travel in the clear [config: migration.allow_plain_tcp].
    #[arg(long)]
    allow_plain_tcp: bool,
    /// For tests only: pretend to have the CPU of this dump [config: testing.simulate_cpu].
    #[arg(long, value_name = "FILE")]
    simulate_cpu: Option<PathBuf>,
}

impl ServeArgs {
    fn config(self, token_file: Option<PathBuf>) -> Result<HostConfig> {
        let mut config = match &self.config {
            Some(path) => HostConfig::load(path)?,
            None => HostConfig::default(),
        };
        config.name = self.name.unwrap_or(config.name);
        config.state_dir = self.state_dir.unwrap_or(config.state_dir);
        config.api.socket = self.socket.unwrap_or(config.api.socket);
        config.api.listen = self.listen.or(config.api.listen);
        config.api.token_file = token_file.or(config.api.token_file);
        config.migration.ip = self.migration_ip.or(config.migration.ip);
        if !self.advertise.is_empty() {
            config.migration.advertise = self.advertise;
        }
        config.migration.ports = self.migration_ports.unwrap_or(config.migration.ports);
        config.migration.allow_plain_tcp |= self.allow_plain_tcp;
        config.testing.simulate_cpu = self.simulate_cpu.or(config.testing.simulate_cpu);
        config.validate()?;
        Ok(config)
    }
}

/// Runs the daemon until it is told to end. The guests live on. TCP callers must send the token in `token_file`.
pub async fn run(args: ServeArgs, token_file: Option<PathBuf>) -> Result<()> {
    if args.print_config {
        use std::io::Write;
        return Ok(std::io::stdout().write_all(EXAMPLE.as_bytes())?);
    }
    let config = args.config(token_file)?;
    let listeners = http::bind(&config).await?;
    let (socket, tcp) = (config.api.socket.clone(), listeners.tcp_addr());
    let ground = Ground {
        vm_command: VmCommand::this_program().context("can't find this program's file")?,
        kvm: probe_kvm,
        cpu: read_host_cpu,
        network: HostNetwork::of_system(),
    };
    let daemon = Daemon::start(config, ground).await?;
    tracing::info!(socket = %socket.display(), tcp = ?tcp, name = daemon.config.name, "serving");
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        served = listeners.serve(daemon) => served.context("the API's server broke")?,
        _ = terminate.recv() => tracing::info!("told to end; the guests live on"),
        _ = interrupt.recv() => tracing::info!("interrupted; the guests live on"),
    }
    // Whoever connects from now on is told that nobody listens.
    std::fs::remove_file(&socket).with_context(|| format!("can't remove {}", socket.display()))
}
