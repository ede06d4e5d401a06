//! How long a guest waits for a page that is still at the source.

use anyhow::Result;
use clap::Args;
use migrated_api::{LatencyHistogram, MigrationRecord};
use migrated_bench::guest::Guest;
use migrated_bench::journey::Traveller;
use migrated_bench::lab::Lab;
use migrated_bench::report::{Measure, Report, say, summaries};
use migrated_bench::rtt;
use serde::Serialize;
use serde_json::{Value, json};

use super::mbit;
use crate::Common;

#[derive(Debug, Args)]
pub struct FaultsArgs {
    #[command(flatten)]
    common: Common,
    /// Moves of each kind; there and back is two.
    #[arg(long, default_value_t = 20)]
    runs: usize,
    /// Limit of the migrations that take turns with unlimited ones, in Mbit/s.
    #[arg(long, default_value_t = 1000)]
    limit_mbit: u64,
    /// Guest RAM in MiB.
    #[arg(long, default_value_t = 256)]
    memory_mib: u64,
    /// What of it is written flat out, in random order, in MiB.
    #[arg(long, default_value_t = 224)]
    hot_mib: u64,
}

/// One move, by its destination's record.
#[derive(Serialize)]
struct Run {
    variant: String,
    run: usize,
    arrival: MigrationRecord,
}

impl Run {
    fn waits(&self) -> Option<&LatencyHistogram> {
        Some(&self.arrival.postcopy.as_ref()?.fault_latency)
    }

    fn quantile_us(&self, share: f64) -> Option<f64> {
        Some(self.waits()?.quantile_us(share)? as f64)
    }
}

pub fn run(args: &FaultsArgs) -> Result<bool> {
    let mut report = Report::begin(args.common.json.as_deref())?;
    let lab = Lab::new(&args.common.plan(None, "")?)?;
    let rtt = rtt::measure(&lab.pair)?;
    report.print(&format!(
        "unshaped link; a byte there and back over TCP takes {:.0} µs (median of {}, P25 {:.0}, P75 {:.0})",
        rtt.median, rtt.count, rtt.p25, rtt.p75
    ))?;
    report.line(&json!({ "rtt_us": rtt }))?;
    let unlimited = json!({ "mode": "postcopy" });
    let limited = json!({ "mode": "postcopy", "bandwidth_bps": mbit(args.limit_mbit) });
    let kinds: [(String, Value); 2] =
        [("push at full rate".into(), unlimited), (format!("push at {} Mbit/s", args.limit_mbit), limited)];

    let mut traveller =
        Traveller::new(&lab, &Guest::writing(args.memory_mib, args.hot_mib, "random", "max"))?;
    let mut variants: Vec<(String, Vec<Run>)> =
        kinds.iter().map(|(name, _)| (name.clone(), Vec::new())).collect();
    let mut problems = Vec::new();
    'runs: for run in 1..=args.runs {
        for ((variant, runs), (_, request)) in variants.iter_mut().zip(&kinds) {
            let made = traveller.go(request)?;
            problems.extend(made.problems());
            let Some(arrival) = made.arrival.filter(|_| problems.is_empty()) else { break 'runs };
            let run = Run { variant: variant.clone(), run, arrival };
            say(&format!(
                "run {} {variant}: median wait at most {:.0} µs",
                run.run,
                run.quantile_us(0.5).unwrap_or(f64::NAN)
            ));
            report.line(&run)?;
            runs.push(run);
        }
    }
    if problems.is_empty() {
        traveller.end()?;
    }
    report.print(&summaries(&variants, &MEASURES))?;
    let beside = "aims are those of pages pushed at full rate; with a limit P50 is to be close to the round trip + 30 µs";
    report.print(beside)?;
    report.end(&problems)
}

const MEASURES: [Measure<Run>; 6] = [
    Measure { name: "wait P50, µs", of: |run| run.quantile_us(0.5), digits: 0, aim: "< 200" },
    Measure { name: "wait P90, µs", of: |run| run.quantile_us(0.9), digits: 0, aim: "" },
    Measure { name: "wait P99, µs", of: |run| run.quantile_us(0.99), digits: 0, aim: "< 1000" },
    Measure { name: "wait P99.9, µs", of: |run| run.quantile_us(0.999), digits: 0, aim: "" },
    Measure { name: "wait max, µs", of: |run| run.quantile_us(1.0), digits: 0, aim: "" },
    Measure {
        name: "faults",
        of: |run| Some(run.arrival.postcopy.as_ref()?.faults as f64),
        digits: 0,
        aim: "",
    },
];
