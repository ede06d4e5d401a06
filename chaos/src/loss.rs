//! A link that loses packets all the time.

use anyhow::Result;
use clap::Args;
use migrated_api::Mode;
use migrated_bench::lab::Lab;
use migrated_bench::report::{Measure, Report, summaries};
use migrated_netns::Fault;
use serde_json::json;

use crate::outcome::tally;
use crate::trial::{Ground, Trial, tell};
use crate::{Common, mode_name, modes};

#[derive(Debug, Args)]
pub struct LossArgs {
    #[command(flatten)]
    common: Common,
    /// Packets of a hundred that are lost, in each direction. What counts as a packet here may be up to 64 KiB.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(0..=50))]
    percent: u8,
    /// Moves of each mode.
    #[arg(long, default_value_t = 10)]
    count: usize,
    /// How memory is moved: auto, precopy, postcopy, hybrid, or `mix` for all of them in turn.
    #[arg(long, default_value = "mix", value_parser = modes)]
    mode: Modes,
}

/// Clap takes a `Vec` for an option that may be repeated.
type Modes = Vec<Mode>;

pub fn run(args: &LossArgs) -> Result<bool> {
    let mut report = Report::begin(args.common.json.as_deref())?;
    let lab = Lab::new(&args.common.plan()?)?;
    let mut ground = Ground::new(&lab, &args.common.guest())?;
    lab.pair.fault(Fault::Loss(args.percent))?;
    let mut variants: Vec<(String, Vec<Trial>)> =
        args.mode.iter().map(|mode| (mode_name(*mode).into(), Vec::new())).collect();
    let mut problems = Vec::new();
    'moves: for n in 1..=args.count {
        for (mode, (_, trials)) in args.mode.iter().zip(&mut variants) {
            let trial = ground.attempt(*mode, |_| Ok(()))?;
            tell(n, &trial, &format!("{} % lost", args.percent));
            report.line(&json!({ "n": n, "percent": args.percent, "move": trial }))?;
            problems.extend(trial.problems.iter().cloned());
            trials.push(trial);
            if !problems.is_empty() {
                break 'moves;
            }
        }
    }
    lab.pair.restore()?;
    if problems.is_empty() {
        ground.end()?;
    }
    let all =
        variants.iter().flat_map(|(mode, trials)| trials.iter().map(|trial| (mode.as_str(), trial.outcome)));
    report.print(&tally("mode", all))?;
    report.print(&format!("\n{}", summaries(&variants, &MEASURES)))?;
    report.end(&problems)
}

const MEASURES: [Measure<Trial>; 2] = [
    Measure { name: "total, s", of: |trial| Some(trial.total_s), digits: 2, aim: "" },
    Measure { name: "gap the guest saw, ms", of: |trial| trial.gap_ms, digits: 1, aim: "" },
];
