//! Guests that write much, moved again and again in several modes, ours and QEMU's alternately.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use migrated_api::{MigrationRecord, Mode};
use migrated_bench::guest::Guest;
use migrated_bench::journey::{Move, Seen, Traveller};
use migrated_bench::lab::Lab;
use migrated_bench::payload::Payload;
use migrated_bench::qemu;
use migrated_bench::report::{Measure, Report, say, summaries};
use serde::Serialize;
use serde_json::json;

use super::{mbit, mode, mode_name};
use crate::Common;

#[derive(Debug, Args)]
pub struct OutrunArgs {
    #[command(flatten)]
    common: Common,
    /// Moves in each mode; there and back is two.
    #[arg(long, default_value_t = 20)]
    runs: usize,
    /// Modes, which take turns.
    #[arg(long, value_delimiter = ',', default_value = "auto,postcopy,hybrid", value_parser = mode)]
    modes: Vec<Mode>,
    /// Guest RAM in MiB.
    #[arg(long, default_value_t = 256)]
    memory_mib: u64,
    /// What of it is written flat out, in random order, in MiB.
    #[arg(long, default_value_t = 224)]
    hot_mib: u64,
    /// The link in Mbit/s.
    #[arg(long, default_value_t = 1000)]
    link_mbit: u64,
    /// Touch no RAM beforehand: the set-up is shorter, and pages are touched for the first time as they come.
    #[arg(long)]
    no_prefault: bool,
    /// Move the same guest under QEMU in turn: post-copy and post-copy-preempt.
    #[arg(long)]
    qemu: bool,
    /// Directory to which Debian's packages of QEMU were extracted [default: QEMU is on PATH].
    #[arg(long, value_name = "DIR", requires = "qemu")]
    qemu_root: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Hot64Args {
    #[command(flatten)]
    common: Common,
    /// Moves; there and back is two.
    #[arg(long, default_value_t = 20)]
    runs: usize,
    /// Modes, which take turns.
    #[arg(long, value_delimiter = ',', default_value = "auto", value_parser = mode)]
    modes: Vec<Mode>,
}

/// A guest that is moved in several ways.
struct Plan<'a> {
    common: &'a Common,
    guest: Guest,
    hot_mib: u64,
    link_mbit: u64,
    modes: &'a [Mode],
    runs: usize,
    qemu: Option<qemu::Program>,
    measures: &'a [Measure<Run>],
}

/// One move.
#[derive(Serialize)]
struct Run {
    variant: &'static str,
    run: usize,
    seen: Seen,
    /// Total time ÷ (non-zero RAM ÷ payload rate).
    over_bound: f64,
    /// The same without the set-up, which QEMU's total does not have: its destination is started beforehand.
    flow_over_bound: Option<f64>,
    record: Option<MigrationRecord>,
    arrival: Option<MigrationRecord>,
}

impl Run {
    fn set_up_s(&self) -> Option<f64> {
        Some(self.record.as_ref()?.setup_ms / 1e3)
    }
}

pub fn outrun(args: &OutrunArgs) -> Result<bool> {
    let measures = [
        Measure {
            name: "downtime, ms (record)",
            of: |run: &Run| run.seen.downtime_ms,
            digits: 2,
            aim: "< 10",
        },
        Measure { name: "gap the guest saw, ms", of: |run| run.seen.gap_ms, digits: 2, aim: "< 15" },
        STALL,
        TOTAL,
        Measure { name: "total ÷ lower bound", of: |run| Some(run.over_bound), digits: 3, aim: "< 1.1" },
        Measure { name: "of it set-up, s", of: |run| run.set_up_s(), digits: 3, aim: "" },
        Measure { name: "rest ÷ lower bound", of: |run| run.flow_over_bound, digits: 3, aim: "" },
        Measure { name: "passes kept, %", of: |run| run.seen.kept_percent(), digits: 1, aim: ">= 50" },
        LOST,
    ];
    let guest = Guest::writing(args.memory_mib, args.hot_mib, "random", "max");
    let plan = Plan {
        common: &args.common,
        guest: Guest { prefault: !args.no_prefault, ..guest },
        hot_mib: args.hot_mib,
        link_mbit: args.link_mbit,
        modes: &args.modes,
        runs: args.runs,
        qemu: args.qemu.then(|| qemu::Program::new(None, args.qemu_root.clone())),
        measures: &measures,
    };
    plan.run()
}

pub fn hot64(args: &Hot64Args) -> Result<bool> {
    let hot_mib = 64;
    let measures = [
        Measure { aim: "< 6", ..TOTAL },
        Measure { name: "downtime, ms (record)", of: |run| run.seen.downtime_ms, digits: 2, aim: "" },
        Measure { name: "gap the guest saw, ms", of: |run| run.seen.gap_ms, digits: 2, aim: "" },
        STALL,
        Measure { name: "passes kept, %", of: |run| run.seen.kept_percent(), digits: 1, aim: "" },
        LOST,
    ];
    let plan = Plan {
        common: &args.common,
        guest: Guest::writing(128, hot_mib, "random", "260000"),
        hot_mib,
        link_mbit: 1000,
        modes: &args.modes,
        runs: args.runs,
        qemu: None,
        measures: &measures,
    };
    plan.run()
}

const STALL: Measure<Run> =
    Measure { name: "longest standstill, ms", of: |run| run.seen.stall_ms, digits: 2, aim: "" };
const TOTAL: Measure<Run> =
    Measure { name: "total, s", of: |run| Some(run.seen.total_s), digits: 3, aim: "" };
const LOST: Measure<Run> =
    Measure { name: "degradation area, s", of: |run| run.seen.lost_s, digits: 2, aim: "" };

impl Plan<'_> {
    fn run(&self) -> Result<bool> {
        let mut report = Report::begin(self.common.json.as_deref())?;
        let rate = Some(mbit(self.link_mbit));
        let lab_plan = self.common.plan(rate, "")?;
        let lab = Lab::new(&lab_plan)?;
        let payload = Payload::of(&lab, rate)?;
        // The guest's own image and counters are less than 1 MiB; 8 bytes of its table stand for each page.
        let nonzero = (self.hot_mib << 20) + (self.hot_mib << 20) / 512;
        let bound_s = nonzero as f64 * 8.0 / payload.bps;
        report.print(&format!(
            "link {} Mbit/s, TCP payload {:.1} Mbit/s ({}); {} bytes of non-zero RAM take {bound_s:.3} s at least",
            self.link_mbit,
            payload.bps / 1e6,
            payload.how,
            nonzero
        ))?;
        report
            .line(&json!({ "payload_bps": payload.bps, "payload_how": payload.how, "bound_s": bound_s }))?;

        let mut ours = Traveller::new(&lab, &self.guest)?;
        let mut theirs = None;
        if let Some(program) = &self.qemu {
            ours.rest()?;
            let mut qemu = qemu::Traveller::new(&lab, &lab_plan, program.clone(), &self.guest)?;
            qemu.rest()?;
            ours.wake()?;
            theirs = Some(qemu);
        }

        let names = self.modes.iter().map(|mode| mode_name(*mode));
        let qemus = qemu::Method::POSTCOPY.iter().filter(|_| theirs.is_some()).map(|method| method.name());
        let mut variants: Vec<(String, Vec<Run>)> =
            names.chain(qemus).map(|name| (name.into(), Vec::new())).collect();
        let mut problems = Vec::new();
        'runs: for run in 1..=self.runs {
            for (index, mode) in self.modes.iter().enumerate() {
                let made = ours.go(&json!({ "mode": mode }))?;
                let wrong = made.problems();
                let Move { seen, record, arrival, .. } = made;
                let lost = !wrong.is_empty();
                problems.extend(wrong);
                let over_bound = seen.total_s / bound_s;
                let variant = mode_name(*mode);
                let flow_over_bound = Some((seen.total_s - record.setup_ms / 1e3) / bound_s);
                let record = Some(record);
                let made = Run { variant, run, seen, over_bound, flow_over_bound, record, arrival };
                keep(&mut report, &mut variants[index].1, made)?;
                // What comes after a loss measures nothing.
                if lost {
                    break 'runs;
                }
            }
            let Some(qemu) = &mut theirs else { continue };
            ours.rest()?;
            qemu.wake()?;
            for (index, method) in qemu::Method::POSTCOPY.into_iter().enumerate() {
                let seen = qemu.go(&qemu::Request::by(method))?.seen;
                let over_bound = seen.total_s / bound_s;
                let made = Run {
                    variant: method.name(),
                    run,
                    seen,
                    over_bound,
                    flow_over_bound: Some(over_bound),
                    record: None,
                    arrival: None,
                };
                keep(&mut report, &mut variants[self.modes.len() + index].1, made)?;
            }
            qemu.rest()?;
            ours.wake()?;
        }
        if problems.is_empty() {
            ours.end()?;
        }
        report.print(&summaries(&variants, self.measures))?;
        report.end(&problems)
    }
}

fn keep(report: &mut Report, runs: &mut Vec<Run>, run: Run) -> Result<()> {
    let ms = |ms: Option<f64>| ms.map_or_else(|| "-".into(), |ms| format!("{ms:.2} ms"));
    say(&format!(
        "run {} {}: total {:.3} s, downtime {}, gap {}",
        run.run,
        run.variant,
        run.seen.total_s,
        ms(run.seen.downtime_ms),
        ms(run.seen.gap_ms)
    ));
    report.line(&run)?;
    runs.push(run);
    Ok(())
}
