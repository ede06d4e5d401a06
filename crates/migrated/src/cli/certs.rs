use std::path::PathBuf;

use super::output::Output;
use crate::certs;
use anyhow::Result;
use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub enum CertsCommand {
    /// Make a small authority and a certificate for each host. For trying it out: its key lies beside it.
    Init(InitArgs),
}

#[derive(Debug, Args)]
pub struct InitArgs {
    /// Directory for ca.pem, ca.key, and HOST.pem and HOST.key for each host.
    #[arg(long, default_value = "certs", value_name = "DIR")]
    dir: PathBuf,
    /// Names of the hosts, as their daemons are named (`name`, or `migration.server_name`).
    #[arg(required = true, value_name = "HOST")]
    hosts: Vec<String>,
}

pub fn run(output: Output, command: CertsCommand) -> Result<()> {
    let CertsCommand::Init(args) = command;
    certs::make(&args.dir, &args.hosts)?;
    output.value(&args.hosts, |hosts| {
        format!(
            "made an authority and certificates for {} in {}; on each host set in [migration.tls]\n\
             ca = \"ca.pem\", cert = \"HOST.pem\", key = \"HOST.key\" with their full paths",
            hosts.join(", "),
            args.dir.display()
        )
    })
}
