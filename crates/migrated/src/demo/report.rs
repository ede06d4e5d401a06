//! What the demo saw, for programs and for people.

use migrated_api::{MigrationRecord, MigrationState, WorkloadCounters};
use serde::Serialize;

use super::tour::Toured;
use crate::cli::output::table;
use crate::units::{show_bit_rate, show_bytes, show_us};

/// What the demo ends with.
#[derive(Debug, Serialize)]
pub struct DemoReport {
    /// The records of all migrations, as their sources have them, in order.
    migrations: Vec<MigrationRecord>,
    /// The records of those that completed, as their destinations have them.
    arrivals: Vec<MigrationRecord>,
    /// What the guest counted, from its boot to the end; none when it could not be found running.
    workload: Option<WorkloadCounters>,
    /// Whether nothing was lost and nothing left behind.
    pub ok: bool,
    /// What was.
    problems: Vec<String>,
}

impl DemoReport {
    /// Judges what was seen; `left` is what went wrong after the guest's end.
    pub fn new(toured: Toured, left: Vec<String>) -> Self {
        let Toured { migrations, arrivals, workload, mut problems } = toured;
        problems.extend(migrations.iter().enumerate().flat_map(|(n, record)| faults(n + 1, record)));
        if let Some(work) = workload {
            if work.errors != 0 {
                problems.push(format!("the guest found {} pages lost or gone back in time", work.errors));
            }
            if work.tsc_backward != 0 {
                problems.push(format!("the guest saw its TSC go backward {} times", work.tsc_backward));
            }
        }
        problems.extend(left);
        Self { ok: problems.is_empty(), migrations, arrivals, workload, problems }
    }

    /// As text.
    pub fn for_people(&self) -> String {
        let mut parts = vec![self.overview(), self.downtime(), self.iterations()];
        parts.extend(self.followed());
        if let Some(work) = &self.workload {
            parts.push(format!(
                "The guest wrote {} pages, found {} errors in its memory, its TSC went backward {} times; \
                 its longest gap was {}.",
                work.writes,
                work.errors,
                work.tsc_backward,
                show_us(work.gap_max_us)
            ));
        }
        parts.push(if self.ok {
            "Nothing was lost.".into()
        } else {
            let problems = self.problems.iter().map(|problem| format!("\n  - {problem}"));
            format!("NOT AS IT SHOULD BE:{}", problems.collect::<String>())
        });
        parts.join("\n\n")
    }

    fn overview(&self) -> String {
        let rows = self.migrations.iter().enumerate().map(|(n, record)| {
            vec![
                (n + 1).to_string(),
                record.peer.clone(),
                format!("{:?}", record.mode).to_lowercase(),
                record.state.map_or("negotiating", MigrationState::name).to_owned(),
                show_us(record.setup_ms * 1e3),
                show_us(record.total_ms * 1e3),
                show_us(record.downtime_us.total),
                record.guest_gap_us.map_or_else(|| "-".into(), show_us),
                show_bytes(record.wire_bytes.sent),
                show_bit_rate(record.throughput_bps),
                record.verified.as_ref().map_or_else(
                    || "no".into(),
                    |verified| format!("{} pages, {} differ", verified.pages, verified.mismatches),
                ),
            ]
        });
        let header = [
            "",
            "to",
            "mode",
            "state",
            "set-up",
            "total",
            "downtime",
            "guest's gap",
            "sent",
            "throughput",
            "memory verified",
        ];
        table(&header, rows)
    }

    fn downtime(&self) -> String {
        let rows = self.migrations.iter().enumerate().map(|(n, record)| {
            let down = &record.downtime_us;
            let parts = [
                down.pause,
                down.final_pages,
                down.export,
                down.send,
                down.import,
                down.verify,
                down.resume,
                down.total,
                down.total - down.verify,
            ];
            std::iter::once((n + 1).to_string()).chain(parts.map(show_us)).collect()
        });
        let header = [
            "downtime",
            "pause",
            "final pages",
            "export",
            "send",
            "import",
            "verify",
            "resume",
            "total",
            "without verify",
        ];
        table(&header, rows)
    }

    /// What happened to pages that followed the guest: what was sent and why is known at the source, who waited
    /// and how long at the destination.
    fn followed(&self) -> Option<String> {
        let rows = self.migrations.iter().zip(&self.arrivals).enumerate().filter_map(|(n, (sent, came))| {
            let (sent, came) = (sent.postcopy.as_ref()?, came.postcopy.as_ref()?);
            let us = |us: Option<u64>| us.map_or_else(|| "-".into(), |us| show_us(us as f64));
            let waits = &came.fault_latency;
            Some(vec![
                (n + 1).to_string(),
                sent.missing_pages.to_string(),
                sent.pages_push.to_string(),
                sent.pages_fault.to_string(),
                sent.pages_prefetch.to_string(),
                came.faults.to_string(),
                us(waits.quantile_us(0.5)),
                us(waits.quantile_us(0.99)),
                us(waits.quantile_us(1.0)),
                sent.last_page_ms.map_or_else(|| "-".into(), |ms| show_us(ms * 1e3)),
            ])
        });
        let rows: Vec<_> = rows.collect();
        let header = [
            "post-copy",
            "pages",
            "pushed",
            "by fault",
            "prefetched",
            "faults",
            "waits p50",
            "p99",
            "max",
            "last page",
        ];
        (!rows.is_empty()).then(|| table(&header, rows))
    }

    fn iterations(&self) -> String {
        let rows = self.migrations.iter().enumerate().flat_map(|(n, record)| {
            record.iterations.iter().map(move |iteration| {
                vec![
                    (n + 1).to_string(),
                    iteration.n.to_string(),
                    iteration.pages.to_string(),
                    show_bytes(iteration.bytes),
                    show_us(iteration.duration_ms * 1e3),
                    format!("{:.0} pages/s", iteration.dirty_rate_pps),
                ]
            })
        });
        table(&["migration", "iteration", "pages", "bytes", "time", "dirty rate"], rows)
    }
}

/// What a record says that should not be. `n` is the migration's number, from 1.
fn faults(n: usize, record: &MigrationRecord) -> Vec<String> {
    if record.state != Some(MigrationState::Completed) {
        let state = record.state.map_or("negotiating", MigrationState::name);
        let why = record.error.as_ref().map(|error| format!(" [{}]: {}", error.code, error.message));
        return vec![format!("migration {n} {state}{}", why.unwrap_or_default())];
    }
    match &record.verified {
        None => vec![format!("migration {n} was not verified")],
        Some(verified) if verified.mismatches != 0 => {
            vec![format!("migration {n}: {} pages differ", verified.mismatches)]
        }
        Some(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use migrated_api::{RecordError, Verify};
    use serde_json::{from_value, json};

    fn completed(mismatches: u64) -> MigrationRecord {
        MigrationRecord {
            state: Some(MigrationState::Completed),
            verified: from_value(json!({ "method": Verify::Before, "pages": 9, "mismatches": mismatches }))
                .unwrap(),
            ..MigrationRecord::default()
        }
    }

    fn judge(
        migrations: Vec<MigrationRecord>,
        workload: Option<WorkloadCounters>,
        problems: &[&str],
    ) -> DemoReport {
        let problems = problems.iter().map(|&problem| problem.to_owned()).collect();
        DemoReport::new(Toured { migrations, workload, problems, ..Toured::default() }, Vec::new())
    }

    #[test]
    fn what_is_as_it_should_be_is_ok() {
        let report = judge(vec![completed(0)], Some(WorkloadCounters::default()), &[]);
        assert!(report.ok, "{:?}", report.problems);
        assert!(report.for_people().contains("Nothing was lost."));
    }

    #[test]
    fn everything_that_is_not_is_named() {
        let failed = MigrationRecord {
            state: Some(MigrationState::Failed),
            error: Some(RecordError {
                code: "peer_lost".into(),
                message: "gone".into(),
                phase: None,
                details: None,
            }),
            ..MigrationRecord::default()
        };
        let unverified = MigrationRecord { verified: None, ..completed(0) };
        let workload = WorkloadCounters { errors: 3, tsc_backward: 4, ..WorkloadCounters::default() };
        let report = judge(vec![completed(2), failed, unverified], Some(workload), &["the guest runs twice"]);
        assert!(!report.ok);
        let text = report.for_people();
        for problem in [
            "the guest runs twice",
            "migration 1: 2 pages differ",
            "migration 2 failed [peer_lost]: gone",
            "migration 3 was not verified",
            "3 pages lost",
            "backward 4 times",
        ] {
            assert!(text.contains(problem), "{problem}: {text}");
        }
    }
}
