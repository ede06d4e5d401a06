use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueEnum};
use migrated_api::{
    Compression, MigrationState, Mode, OnTimeout, StartMigration, StartedMigration, TransportKind, Verify,
};

use super::migration::record_for_people;
use super::output::Output;
use super::plan::PlanArgs;
use super::{plan, progress};
use crate::client::ApiClient;
use crate::units;

/// What to move, where, and how. What is left out comes from the source host's configuration.
#[derive(Debug, Args)]
pub struct MigrateArgs {
    /// Name or id of the VM.
    vm: String,
    /// The destination: a peer's name in the source host's configuration, or the URL of its API.
    #[arg(long, value_name = "HOST")]
    to: String,
    /// How memory is moved.
    #[arg(long, value_enum, default_value_t)]
    mode: ModeArg,
    #[command(flatten)]
    plan: PlanArgs,
    /// Longest time that the guest may stand still, e.g. 50ms.
    #[arg(long, value_name = "TIME", value_parser = units::duration)]
    max_downtime: Option<Duration>,
    /// Longest time that all of it should take, e.g. 30s: what `auto` chooses by.
    #[arg(long, value_name = "TIME", value_parser = units::duration)]
    max_total: Option<Duration>,
    /// Most payload a second, e.g. 1gbit.
    #[arg(long, value_name = "RATE", value_parser = units::bit_rate)]
    bandwidth: Option<u64>,
    /// Page channels.
    #[arg(long, value_name = "N")]
    channels: Option<u16>,
    /// When the destination's memory is compared with the source's.
    #[arg(long, value_enum)]
    verify: Option<VerifyArg>,
    /// Whether pages are compressed on their way.
    #[arg(long, value_enum, default_value_t)]
    compression: CompressionArg,
    /// `auto` stays with pre-copy, whatever the guest writes: it never depends on both hosts.
    #[arg(long)]
    no_postcopy: bool,
    /// Largest share of its time that a vCPU may be made to sleep while it writes more than the link carries, e.g. 80%;
    /// 0% is never.
    #[arg(long, value_name = "PERCENT", value_parser = units::percent)]
    max_slowdown: Option<u8>,
    /// How long pre-copy may take, e.g. 60s.
    #[arg(long, value_name = "TIME", value_parser = units::duration)]
    timeout: Option<Duration>,
    /// What happens when it takes longer, or stalls.
    #[arg(long, value_enum)]
    on_timeout: Option<OnTimeoutArg>,
    /// Most rounds over the dirty pages.
    #[arg(long, value_name = "N")]
    max_iterations: Option<u32>,
    /// How long to try to reconnect when the link is lost before the commit, e.g. 30s; 0s gives up at once.
    #[arg(long, value_name = "TIME", value_parser = units::duration_or_none)]
    reconnect_window: Option<Duration>,
    /// How bytes travel: tcp or tcp+tls.
    #[arg(long)]
    transport: Option<TransportKind>,
    /// Stay and show how it goes on; the exit code says whether it completed.
    #[arg(long)]
    watch: bool,
}

/// How memory is moved, on the command line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ModeArg {
    /// All memory is copied before the guest switches hosts.
    Precopy,
    /// The guest switches hosts first; its memory follows.
    Postcopy,
    /// Memory is copied while that pays; then the guest switches, and what it had written again follows.
    Hybrid,
    /// Pre-copy where it pays, else one of the others: what is measured decides.
    #[default]
    Auto,
}

impl From<ModeArg> for Mode {
    fn from(mode: ModeArg) -> Self {
        match mode {
            ModeArg::Precopy => Self::Precopy,
            ModeArg::Postcopy => Self::Postcopy,
            ModeArg::Hybrid => Self::Hybrid,
            ModeArg::Auto => Self::Auto,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum VerifyArg {
    /// Not at all.
    Off,
    /// Before the destination runs: adds downtime.
    Before,
    /// After the switch.
    After,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum CompressionArg {
    /// Where and as long as they arrive sooner for it, by what is measured.
    #[default]
    Auto,
    /// Never.
    Off,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OnTimeoutArg {
    /// Give up; the guest stays.
    Cancel,
    /// Stop the guest and copy the rest.
    Stop,
}

impl MigrateArgs {
    fn request(&self) -> StartMigration {
        StartMigration {
            to: self.to.clone(),
            mode: self.mode.into(),
            allow_postcopy: self.no_postcopy.then_some(false),
            max_slowdown_percent: self.max_slowdown,
            transport: self.transport,
            max_downtime_ms: self.max_downtime.map(|time| time.as_secs_f64() * 1e3),
            max_total_ms: self.max_total.map(|time| time.as_secs_f64() * 1e3),
            bandwidth_bps: self.bandwidth,
            channels: self.channels,
            verify: self.verify.map(|verify| match verify {
                VerifyArg::Off => Verify::Off,
                VerifyArg::Before => Verify::Before,
                VerifyArg::After => Verify::After,
            }),
            compression: match self.compression {
                CompressionArg::Auto => Compression::Auto,
                CompressionArg::Off => Compression::Off,
            },
            timeout_s: self.timeout.map(|time| time.as_secs_f64()),
            on_timeout: self.on_timeout.map(|action| match action {
                OnTimeoutArg::Cancel => OnTimeout::Cancel,
                OnTimeoutArg::Stop => OnTimeout::Stop,
            }),
            max_iterations: self.max_iterations,
            reconnect_window_ms: self.reconnect_window.map(|time| time.as_millis() as u64),
        }
    }
}

pub async fn run(client: &ApiClient, output: Output, args: MigrateArgs) -> Result<ExitCode> {
    if args.plan.is_asked() {
        return plan::run(client, output, &args.vm, args.plan.about(args.request())).await;
    }
    let path = format!("/v1/vms/{}/migrations", args.vm);
    let begun: StartedMigration = client.post(&path, &args.request(), ApiClient::PATIENCE).await?;
    if !args.watch {
        output.value(&begun, |begun| {
            let risk = begun.risk.as_ref().map(|risk| format!("\nrisk: {risk}"));
            let StartedMigration { record, .. } = begun;
            format!("migration {} of {} to {}{}", record.id, args.vm, record.peer, risk.unwrap_or_default())
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(risk) = begun.risk.filter(|_| !output.json) {
        // Nobody can be told that standard error is closed.
        let _ = writeln!(std::io::stderr(), "risk: {risk}");
    }
    let ended = progress::watch(client, &begun.record.id, !output.json).await?;
    output.value(&ended, record_for_people)?;
    let completed = ended.state == Some(MigrationState::Completed);
    Ok(if completed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
