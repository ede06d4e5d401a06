//! What sending pages ahead of faults is good for.

use anyhow::Result;
use clap::Args;
use migrated_api::MigrationRecord;
use migrated_bench::guest::Guest;
use migrated_bench::journey::{Seen, Traveller};
use migrated_bench::lab::Lab;
use migrated_bench::report::{Measure, Report, say, summaries};
use serde::Serialize;
use serde_json::json;

use super::mbit;
use crate::Common;

#[derive(Debug, Args)]
pub struct PrefetchArgs {
    #[command(flatten)]
    common: Common,
    /// Moves of each kind; there and back is two.
    #[arg(long, default_value_t = 10)]
    runs: usize,
    /// Orders in which the guest reads: seq, random, zipf.
    #[arg(long, value_delimiter = ',', default_value = "seq,zipf")]
    patterns: Vec<String>,
    /// Guest RAM in MiB.
    #[arg(long, default_value_t = 192)]
    memory_mib: u64,
    /// What of it is read, in MiB.
    #[arg(long, default_value_t = 128)]
    hot_mib: u64,
    /// The link in Mbit/s.
    #[arg(long, default_value_t = 1000)]
    link_mbit: u64,
    /// Limit of the migrations in Mbit/s, so that the background push does not bring everything before it is asked for.
    #[arg(long)]
    limit_mbit: Option<u64>,
}

/// Configuration of daemons that send nothing ahead of a fault.
const WITHOUT: &str = "[testing]\nprefetch_pages = 0\n";

/// One move.
#[derive(Serialize)]
struct Run {
    variant: String,
    run: usize,
    /// Pages of the working set.
    hot_pages: u64,
    seen: Seen,
    record: MigrationRecord,
    arrival: MigrationRecord,
}

impl Run {
    /// Pages that the source sent for this reason, in percent of those that it sent after the switch.
    fn share(&self, of: fn(&migrated_api::Postcopy) -> u64) -> Option<f64> {
        let sent = self.record.postcopy.as_ref()?;
        let all = sent.pages_fault + sent.pages_prefetch + sent.pages_push;
        (all > 0).then(|| of(sent) as f64 / all as f64 * 100.0)
    }

    /// Faults that went over the network, in percent of the working set.
    fn faults(&self) -> Option<f64> {
        Some(self.arrival.postcopy.as_ref()?.faults as f64 / self.hot_pages as f64 * 100.0)
    }
}

pub fn run(args: &PrefetchArgs) -> Result<bool> {
    let mut report = Report::begin(args.common.json.as_deref())?;
    let rate = Some(mbit(args.link_mbit));
    let labs = [
        ("with", Lab::new(&args.common.plan(rate, "")?)?),
        ("without", Lab::new(&args.common.plan(rate, WITHOUT)?)?),
    ];
    let request = json!({ "mode": "postcopy", "bandwidth_bps": args.limit_mbit.map(mbit) });
    let mut variants: Vec<(String, Vec<Run>)> = Vec::new();
    let mut problems = Vec::new();
    for pattern in &args.patterns {
        let mut guest = Guest::writing(args.memory_mib, args.hot_mib, pattern, "max");
        guest.workload += " readonly=100";
        let mut travellers = Vec::new();
        for (prefetch, lab) in &labs {
            let traveller = Traveller::new(lab, &guest)?;
            traveller.rest()?;
            travellers.push(traveller);
            variants.push((format!("{pattern}, {prefetch}"), Vec::new()));
        }
        let first = variants.len() - labs.len();
        'runs: for run in 1..=args.runs {
            for (traveller, (variant, runs)) in travellers.iter_mut().zip(&mut variants[first..]) {
                traveller.wake()?;
                let made = traveller.go(&request)?;
                problems.extend(made.problems());
                let Some(arrival) = made.arrival.filter(|_| problems.is_empty()) else { break 'runs };
                traveller.rest()?;
                let hot_pages = args.hot_mib << 8;
                let run = Run {
                    variant: variant.clone(),
                    run,
                    hot_pages,
                    seen: made.seen,
                    record: made.record,
                    arrival,
                };
                say(&format!(
                    "run {} {variant}: faults on {:.1} % of the working set",
                    run.run,
                    run.faults().unwrap_or(0.0)
                ));
                report.line(&run)?;
                runs.push(run);
            }
        }
        if !problems.is_empty() {
            break;
        }
        travellers.into_iter().try_for_each(Traveller::end)?;
    }
    report.print(&summaries(&variants, &MEASURES))?;
    report.print("aims: seq with prefetch at most 40 %, zipf with prefetch less than without")?;
    report.end(&problems)
}

const MEASURES: [Measure<Run>; 5] = [
    Measure { name: "network faults, % of the working set", of: Run::faults, digits: 2, aim: "" },
    Measure { name: "sent by fault, %", of: |run| run.share(|sent| sent.pages_fault), digits: 2, aim: "" },
    Measure {
        name: "sent by prefetch, %",
        of: |run| run.share(|sent| sent.pages_prefetch),
        digits: 2,
        aim: "",
    },
    Measure { name: "sent by push, %", of: |run| run.share(|sent| sent.pages_push), digits: 2, aim: "" },
    Measure { name: "degradation area, s", of: |run| run.seen.lost_s, digits: 2, aim: "" },
];
