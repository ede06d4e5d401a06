//! Pre-copy that slows down who writes too fast, and nobody else.

use anyhow::Result;
use clap::Args;
use migrated_api::MigrationRecord;
use migrated_bench::guest::Guest;
use migrated_bench::journey::{Seen, Traveller};
use migrated_bench::lab::Lab;
use migrated_bench::payload::Payload;
use migrated_bench::report::{Measure, Report, say, summaries};
use serde::Serialize;
use serde_json::json;

use super::mbit;
use crate::Common;

#[derive(Debug, Args)]
pub struct ThrottleArgs {
    #[command(flatten)]
    common: Common,
    /// Moves; there and back is two.
    #[arg(long, default_value_t = 20)]
    runs: usize,
    /// Most that a vCPU may be slowed, in percent of its time.
    #[arg(long, default_value_t = 99)]
    max_slowdown_percent: u32,
    /// Guest RAM in MiB.
    #[arg(long, default_value_t = 256)]
    memory_mib: u64,
    /// What of it is written and read, half by each vCPU, in MiB.
    #[arg(long, default_value_t = 192)]
    hot_mib: u64,
    /// The link in Mbit/s.
    #[arg(long, default_value_t = 1000)]
    link_mbit: u64,
}

/// Bits of a page.
const PAGE_BITS: f64 = 4096.0 * 8.0;

/// One move.
#[derive(Serialize)]
struct Run {
    run: usize,
    seen: Seen,
    /// What the vCPU that only reads got done, during ÷ before, in percent.
    reader_kept_percent: Option<f64>,
    /// The same of the one that writes.
    writer_kept_percent: Option<f64>,
    record: MigrationRecord,
}

pub fn run(args: &ThrottleArgs) -> Result<bool> {
    let mut report = Report::begin(args.common.json.as_deref())?;
    let rate = Some(mbit(args.link_mbit));
    let lab = Lab::new(&args.common.plan(rate, "")?)?;
    let payload = Payload::of(&lab, rate)?;
    // The rate is shared out among two vCPUs: the one that writes gets twice what the link carries.
    let pages = payload.bps / PAGE_BITS;
    let mut guest =
        Guest::writing(args.memory_mib, args.hot_mib, "random", &format!("{:.0}", 2.0 * 2.0 * pages));
    guest.vcpus = 2;
    guest.workload += " readers=1";
    report.print(&format!(
        "link {} Mbit/s carries {pages:.0} pages/s ({}); one vCPU writes {:.0} pages/s, another only reads as many",
        args.link_mbit,
        payload.how,
        2.0 * pages
    ))?;
    let request = json!({
        "mode": "precopy", "max_slowdown_percent": args.max_slowdown_percent, "timeout_s": 60, "on_timeout": "cancel",
    });
    let mut traveller = Traveller::new(&lab, &guest)?;
    let mut variants = [("pre-copy with throttle".to_owned(), Vec::new())];
    let mut problems = Vec::new();
    for run in 1..=args.runs {
        let made = traveller.go(&request)?;
        let reader_kept_percent = made.kept_percent(|counters| counters.reads);
        let writer_kept_percent = made.kept_percent(|counters| counters.writes);
        problems.extend(made.problems());
        let run = Run { run, seen: made.seen, reader_kept_percent, writer_kept_percent, record: made.record };
        say(&format!(
            "run {}: total {:.3} s, reader keeps {:.1} %",
            run.run,
            run.seen.total_s,
            reader_kept_percent.unwrap_or(f64::NAN)
        ));
        report.line(&run)?;
        variants[0].1.push(run);
        if !problems.is_empty() {
            break;
        }
    }
    if problems.is_empty() {
        traveller.end()?;
    }
    report.print(&summaries(&variants, &MEASURES))?;
    report.end(&problems)
}

const MEASURES: [Measure<Run>; 6] = [
    Measure { name: "total, s (all converged)", of: |run| Some(run.seen.total_s), digits: 3, aim: "" },
    Measure { name: "rounds", of: |run| Some(run.record.iterations.len() as f64), digits: 0, aim: "" },
    Measure { name: "reader keeps, %", of: |run| run.reader_kept_percent, digits: 1, aim: ">= 90" },
    Measure { name: "writer keeps, %", of: |run| run.writer_kept_percent, digits: 1, aim: "" },
    Measure { name: "downtime, ms (record)", of: |run| run.seen.downtime_ms, digits: 2, aim: "" },
    Measure { name: "degradation area, s", of: |run| run.seen.lost_s, digits: 2, aim: "" },
];
