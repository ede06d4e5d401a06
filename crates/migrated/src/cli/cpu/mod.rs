//! `migrated cpu`: what hosts' CPUs give, what they have in common, and who can run where. Questions about
//! files alone are answered here, without a daemon, by the same code.

pub mod list;
mod pool;
pub mod report;
mod show;
pub mod source;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use migrated_api::{BaselineList, BaselineRequest, CpuCheck, CpuReport, HostCpuReport, PoolBaseline};

use super::connect::ConnectArgs;
use super::output::Output;
use crate::client::ApiClient;
use crate::daemon;
use source::{Source, baseline_spec, local};

#[derive(Debug, Subcommand)]
pub enum CpuCommand {
    /// Show the host's CPU: what it offers to guests, its best baseline, and what the next one lacks.
    Show,
    /// Print the facts about the host's CPU, as JSON: a file that `cpu baseline` and `cpu check` read.
    Dump,
    /// Find the highest common baseline of hosts, or list the named baselines.
    Baseline(BaselineArgs),
    /// Say whether a guest can run on a host, and if not, every reason. The exit code is 1 when it can't.
    Check(CheckArgs),
}

#[derive(Debug, Args)]
pub struct BaselineArgs {
    /// Hosts: dump files, peers' names in the configuration of the host that is asked, URLs of APIs, or `self`.
    /// With files alone no daemon is needed.
    #[arg(value_name = "HOST|FILE", required_unless_present = "list")]
    hosts: Vec<String>,
    /// List all named baselines with what each adds, drops and has as parts.
    #[arg(long, conflicts_with_all = ["hosts", "toml"])]
    list: bool,
    /// Print the baseline as a file for `vm create --cpu-baseline`.
    #[arg(long)]
    toml: bool,
}

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The host that the guest would be made on, and the one that it would come to: dump files, peers' names, URLs or
    /// `self`.
    #[arg(value_names = ["FROM", "TO"], num_args = 2, required_unless_present = "vm", conflicts_with_all = ["vm", "to"])]
    hosts: Vec<String>,
    /// Check this VM instead.
    #[arg(long)]
    vm: Option<String>,
    /// The host that the VM would come to [default: the one that is asked].
    #[arg(long, value_name = "HOST|FILE", requires = "vm")]
    to: Option<String>,
    /// The baseline that the guest would be made from: a name, `host`, or a TOML file [default: host].
    #[arg(long, value_name = "NAME|FILE", conflicts_with = "vm")]
    baseline: Option<String>,
}

pub async fn run(connect: &ConnectArgs, output: Output, command: CpuCommand) -> Result<ExitCode> {
    match command {
        CpuCommand::Show => {
            let report: HostCpuReport = connect.client()?.get("/v1/host/cpu").await?;
            output.value(&report, show::for_people)?;
        }
        CpuCommand::Dump => {
            let report: HostCpuReport = connect.client()?.get("/v1/host/cpu").await?;
            Output { json: true }.value(&report.dump, |_| String::new())?;
        }
        CpuCommand::Baseline(args) if args.list => output.value(&BaselineList::all(), list::for_people)?,
        CpuCommand::Baseline(args) => {
            let pool = pool_of(connect, &args.hosts).await?;
            if args.toml {
                output.text(&toml::to_string(&pool.custom)?)?;
            } else {
                output.value(&pool, pool::for_people)?;
            }
        }
        CpuCommand::Check(args) => {
            let report = check(connect, args).await?;
            output.value(&report, report::for_people)?;
            return Ok(if report.admitted { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn pool_of(connect: &ConnectArgs, hosts: &[String]) -> Result<PoolBaseline> {
    let sources = hosts.iter().map(|host| Source::of(host)).collect::<Result<Vec<_>>>()?;
    let dumps: Option<Vec<_>> = sources.iter().map(Source::dump).map(|dump| dump.cloned()).collect();
    if let Some(dumps) = dumps {
        return Ok(daemon::pool_of(&dumps).map_err(local)?);
    }
    let request = BaselineRequest { hosts: sources.into_iter().map(Source::into_api).collect() };
    Ok(connect.client()?.post("/v1/cpu/baseline", &request, ApiClient::PATIENCE).await?)
}

async fn check(connect: &ConnectArgs, args: CheckArgs) -> Result<CpuReport> {
    let baseline = args.baseline.as_deref().map(baseline_spec).transpose()?;
    let to = args.to.as_ref().or(args.hosts.get(1)).map(|to| Source::of(to)).transpose()?;
    let from = args.hosts.first().map(|from| Source::of(from)).transpose()?;
    if let (Some(Source::Dump { host: from, .. }), Some(Source::Dump { host: to, .. })) = (&from, &to) {
        let guest = daemon::guest_of(from, &baseline.unwrap_or_default()).map_err(local)?;
        return Ok(CpuReport::of(&guest, to));
    }
    let request =
        CpuCheck { vm: args.vm, from: from.map(Source::into_api), baseline, to: to.map(Source::into_api) };
    Ok(connect.client()?.post("/v1/cpu/check", &request, ApiClient::PATIENCE).await?)
}
