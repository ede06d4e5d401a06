//! `migrated demo`: a guest moves between two daemons and back, and what it cost is told.
//!
//! Everything that the demo makes is its own and goes when it ends, however it ends: see [`Stage`].
//! What it measures comes from the daemons' API, as any other caller would get it.

mod guest;
mod host;
mod network;
mod report;
mod stage;
mod tour;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use migrated_api::{Mode, StartMigration, TransportKind, Verify};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::migrate::ModeArg;
use crate::cli::output::Output;
use crate::daemon::probe_kvm;
use crate::units;
use guest::GuestArgs;
use report::DemoReport;
use stage::Stage;
use tour::Tour;

/// Exit code of a program that a signal ended, before the signal's number is added: a shell's convention.
const SIGNALLED: u8 = 128;

/// What moves, over what, and how often.
#[derive(Debug, Args)]
pub struct DemoArgs {
    #[command(flatten)]
    guest: GuestArgs,
    /// Shape the link between the hosts to this rate in both directions, e.g. 1gbit. Needs root.
    #[arg(long, value_name = "RATE", value_parser = units::bit_rate)]
    link: Option<u64>,
    /// How memory is moved. What follows the guest is compared after the switch, else before it.
    #[arg(long, value_enum, default_value_t)]
    mode: ModeArg,
    /// Longest time that the guest may stand still, e.g. 50ms [default: 300ms, a daemon's default].
    #[arg(long, value_name = "TIME", value_parser = units::duration)]
    max_downtime: Option<Duration>,
    /// How often the guest goes there and back.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How bytes travel: tcp or tcp+tls.
    #[arg(long, default_value_t = TransportKind::Tcp)]
    transport: TransportKind,
}

impl DemoArgs {
    /// The migration that is asked for again and again; where to is filled in each time.
    fn migration(&self) -> StartMigration {
        let mode = Mode::from(self.mode);
        StartMigration {
            mode,
            transport: Some(self.transport),
            max_downtime_ms: self.max_downtime.map(|time| time.as_secs_f64() * 1e3),
            verify: Some(if mode == Mode::Precopy { Verify::Before } else { Verify::After }),
            ..StartMigration::default()
        }
    }
}

/// Runs the demo. It fails when anything was lost.
pub async fn run(output: Output, args: DemoArgs) -> Result<ExitCode> {
    let spec = args.guest.spec()?;
    probe_kvm()?;
    // From here on a signal is a value, so that nothing is left behind.
    let mut ends = Ends::listen()?;
    let mut stage = Stage::set(args.link, args.transport)?;
    let tour = Tour {
        spec,
        migration: args.migration(),
        migrations: args.rounds.saturating_mul(2),
        show: !output.json,
    };
    let ended = tokio::select! {
        biased;
        signal = ends.next() => Err(signal),
        toured = tour.run(stage.hosts()) => Ok(toured),
    };
    let left = stage.strike();
    match ended {
        Ok(Ok(toured)) => {
            let report = DemoReport::new(toured, left);
            output.value(&report, DemoReport::for_people)?;
            Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Ok(Err(error)) => {
            left.iter().for_each(|problem| say(problem));
            Err(error)
        }
        Err(signal) => {
            left.iter().for_each(|problem| say(problem));
            say("ended by a signal; guest, daemons and namespaces are gone");
            Ok(ExitCode::from(SIGNALLED.saturating_add(signal)))
        }
    }
}

/// Says something to whoever watches; standard output is for the report.
fn say(text: &str) {
    // Nobody can be told that standard error is closed.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// The signals that end the demo.
struct Ends {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Ends {
    fn listen() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// The number of the first that comes.
    async fn next(&mut self) -> u8 {
        let kind = tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.hang_up.recv() => SignalKind::hangup(),
        };
        u8::try_from(kind.as_raw_value()).unwrap_or_default()
    }
}
