//! What the runs come to: when they are enough, and their tables.

use serde::Deserialize;

use super::axes::Variant;
use super::convergence;
use super::file::Rounds;
use super::run::{Outcome, Run};
use crate::report::{Measure, table};
use crate::statistics::{Summary, median_interval};

/// Confidence of intervals.
pub const CONFIDENCE: f64 = 0.95;
/// Counted runs after which a variant that never converged is given up.
const TRIES: u32 = 3;

/// A measure of which a matrix may ask that the interval of its median is narrow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Narrowed {
    /// The gap that the guest saw.
    Gap,
    /// The total time.
    Total,
    /// The downtime by the record.
    Downtime,
}

impl Narrowed {
    fn of(self, run: &Run) -> Option<f64> {
        match self {
            Self::Gap => run.seen.gap_ms,
            Self::Total => Some(run.seen.total_s),
            Self::Downtime => run.seen.downtime_ms,
        }
    }
}

/// What tables show, in their columns' order.
pub const MEASURES: [Measure<Run>; 14] = [
    Measure { name: "downtime, ms", of: |run| run.seen.downtime_ms, digits: 2, aim: "" },
    Measure { name: "gap, ms", of: |run| run.seen.gap_ms, digits: 2, aim: "" },
    Measure { name: "standstill, ms", of: |run| run.seen.stall_ms, digits: 2, aim: "" },
    Measure { name: "total, s", of: |run| Some(run.seen.total_s), digits: 3, aim: "" },
    Measure { name: "total ÷ bound", of: Run::over_bound, digits: 3, aim: "" },
    Measure { name: "less set-up", of: Run::flow_over_bound, digits: 3, aim: "" },
    Measure { name: "wire ÷ RAM", of: Run::wire_over_ram, digits: 3, aim: "" },
    Measure { name: "CPU s/GiB, source", of: Run::source_cpu, digits: 2, aim: "" },
    Measure { name: "destination", of: Run::destination_cpu, digits: 2, aim: "" },
    Measure { name: "wait P50, µs", of: |run| run.wait_us(0.5), digits: 0, aim: "" },
    Measure { name: "P99", of: |run| run.wait_us(0.99), digits: 0, aim: "" },
    Measure { name: "max", of: |run| run.wait_us(1.0), digits: 0, aim: "" },
    Measure { name: "passes kept, %", of: |run| run.seen.kept_percent(), digits: 1, aim: "" },
    Measure { name: "degradation area, s", of: |run| run.seen.lost_s, digits: 2, aim: "" },
];

/// Runs of one thing, such as a variant.
pub type Group<'a, K> = (K, Vec<&'a Run>);

/// Sorts runs out by what `key` makes of them, in the order in which keys come first.
pub fn group<'a, K: PartialEq>(
    runs: impl IntoIterator<Item = &'a Run>,
    key: impl Fn(&'a Run) -> K,
) -> Vec<Group<'a, K>> {
    let mut groups: Vec<Group<'a, K>> = Vec::new();
    for run in runs {
        let key = key(run);
        match groups.iter_mut().find(|(known, _)| *known == key) {
            Some((_, group)) => group.push(run),
            None => groups.push((key, vec![run])),
        }
    }
    groups
}

/// Variants in a fixed order: ours first, each system's in the order in which its runs began.
pub fn by_variant<'a>(runs: impl IntoIterator<Item = &'a Run>) -> Vec<Group<'a, Variant>> {
    let mut groups = group(runs, |run| run.variant);
    groups.sort_by_key(|(variant, _)| matches!(variant, Variant::Qemu { .. }));
    groups
}

/// The median of a measure over the runs that count.
#[must_use]
pub fn median(runs: &[&Run], of: impl Fn(&Run) -> Option<f64>) -> Option<f64> {
    let counted = runs.iter().filter(|run| run.counts());
    Some(Summary::of(counted.filter_map(|run| of(run)))?.median)
}

/// Whether the figures of one setting's runs are as certain as was asked for. A variant whose runs all failed to
/// converge has none that could become more certain.
#[must_use]
pub fn certain(runs: &[Run], rounds: &Rounds) -> bool {
    by_variant(runs).iter().all(|(_, runs)| {
        let completed: Vec<_> = runs.iter().filter(|run| run.counts()).collect();
        completed.is_empty()
            || rounds.narrow.iter().all(|measure| {
                let numbers: Vec<_> = completed.iter().filter_map(|run| measure.of(run)).collect();
                numbers.is_empty() || narrow(&numbers, rounds.share)
            })
    })
}

/// Whether a variant need not be tried again, because none of its first counted runs converged: each takes as long as
/// pre-copy may, and says the same.
#[must_use]
pub fn hopeless(runs: &[Run], variant: &Variant) -> bool {
    let mut tried = 0;
    let mut counted = runs.iter().filter(|run| !run.warm_up && run.variant == *variant);
    let stuck = counted.all(|run| {
        tried += 1;
        run.outcome == Outcome::NotConverged
    });
    stuck && tried >= TRIES
}

fn narrow(numbers: &[f64], share: f64) -> bool {
    let summary = Summary::of(numbers.iter().copied());
    let interval = median_interval(numbers.iter().copied(), CONFIDENCE);
    summary
        .zip(interval)
        .is_some_and(|(summary, interval)| interval.high - interval.low <= share * summary.median)
}

/// Why runs can't be summed up, setting by setting; empty when nothing was lost.
#[must_use]
pub fn refusals(runs: &[Run]) -> Vec<String> {
    let lost = runs.iter().filter(|run| run.outcome == Outcome::Lost);
    lost.map(|run| {
        format!(
            "{} ({}), {}, round {}: {}",
            run.scenario,
            run.setting(),
            run.variant,
            run.round,
            run.problems.join("; ")
        )
    })
    .collect()
}

/// Tables in Markdown: a section for each setting with a row for each variant. A setting in which something was lost
/// has the reason in the place of its table.
#[must_use]
pub fn tables(runs: &[Run]) -> String {
    let settings = group(runs, |run| (run.scenario.as_str(), run.setting()));
    let sections = settings.iter().map(|((scenario, setting), runs)| section(scenario, setting, runs));
    let lost = |runs: &[&Run]| runs.iter().any(|run| run.outcome == Outcome::Lost);
    let whole = settings.iter().filter(|(_, runs)| !lost(runs)).flat_map(|(_, runs)| runs.iter().copied());
    sections.chain([convergence::limits(whole)]).collect()
}

fn section(scenario: &str, setting: &str, runs: &[&Run]) -> String {
    let head = format!("\n### {scenario}: {setting}\n\n");
    if let Some(lost) = runs.iter().find(|run| run.outcome == Outcome::Lost) {
        let (variant, problems) = (lost.variant, lost.problems.join("; "));
        return format!("{head}No figures: {variant} lost something in round {}: {problems}\n", lost.round);
    }
    let [first, ..] = runs else { return head };
    let bound = format!(
        "lower bound {:.3} s: {} bytes at {:.1} Mbit/s",
        first.bound_s(),
        first.nonzero_bytes,
        first.payload_bps / 1e6
    );
    let aim = if first.aim.is_empty() { String::new() } else { format!("; aim: {}", first.aim) };
    let variants = by_variant(runs.iter().copied());
    let cells: Vec<_> =
        variants.iter().map(|(_, runs)| MEASURES.map(|measure| cell(&measure, runs))).collect();
    // A column in which nobody has a figure says nothing.
    let shown: Vec<_> =
        (0..MEASURES.len()).filter(|column| cells.iter().any(|row| !row[*column].is_empty())).collect();
    let header = ["variant", "runs", "not converged"].into_iter();
    let header: Vec<_> = header.chain(shown.iter().map(|column| MEASURES[*column].name)).collect();
    let rows = variants.iter().zip(&cells).map(|((variant, runs), cells)| {
        let counted = |outcome| runs.iter().filter(|run| !run.warm_up && run.outcome == outcome).count();
        let [completed, stuck] = [Outcome::Completed, Outcome::NotConverged].map(counted);
        let lead = [variant.to_string(), (completed + stuck).to_string(), stuck.to_string()];
        lead.into_iter().chain(shown.iter().map(|column| cells[*column].clone())).collect()
    });
    format!("{head}{bound}{aim}\n\n{}\n", table(&header, rows))
}

/// Median and its interval, or all there is of it.
fn cell(measure: &Measure<Run>, runs: &[&Run]) -> String {
    let counted = runs.iter().filter(|run| run.counts());
    let numbers: Vec<_> = counted.filter_map(|run| (measure.of)(run)).collect();
    let digits = measure.digits;
    let Some(summary) = Summary::of(numbers.iter().copied()) else { return String::new() };
    match median_interval(numbers, CONFIDENCE) {
        Some(interval) => {
            format!("{:.digits$} [{:.digits$}, {:.digits$}]", summary.median, interval.low, interval.high)
        }
        None => format!("{:.digits$}", summary.median),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{migrated, run};
    use super::*;
    use crate::matrix::Way;

    fn with_gaps(gaps: &[f64]) -> Vec<Run> {
        let one = |gap: &f64| {
            let mut run = run(migrated(Way::Auto), 1.0);
            run.seen.gap_ms = Some(*gap);
            run
        };
        gaps.iter().map(one).collect()
    }

    fn rounds(narrow: Vec<Narrowed>) -> Rounds {
        Rounds { narrow, share: 0.1, ..Rounds::default() }
    }

    #[test]
    fn enough_is_when_the_interval_is_narrow() {
        let rounds = rounds(vec![Narrowed::Gap]);
        assert!(!certain(&with_gaps(&[4.0; 5]), &rounds), "five are too few for an interval");
        assert!(certain(&with_gaps(&[4.0; 6]), &rounds));
        assert!(!certain(&with_gaps(&[4.0, 4.0, 4.0, 4.0, 4.0, 4.5]), &rounds));
        let mut warm = with_gaps(&[4.0; 6]);
        warm[0].warm_up = true;
        assert!(!certain(&warm, &rounds), "warm-ups don't count");
        let mut stuck = with_gaps(&[4.0; 6]);
        stuck.extend(stuck.clone().into_iter().map(|run| Run {
            variant: migrated(Way::Precopy),
            outcome: Outcome::NotConverged,
            ..run
        }));
        assert!(certain(&stuck, &rounds), "one that never converges is not waited for");
    }

    #[test]
    fn a_variant_that_never_converged_is_given_up() {
        let mut runs: Vec<_> = (0..4)
            .map(|_| Run { outcome: Outcome::NotConverged, ..run(migrated(Way::Precopy), 60.0) })
            .collect();
        let precopy = runs[0].variant;
        runs[0].warm_up = true;
        assert!(!hopeless(&runs[..3], &precopy), "two tries and a warm-up");
        assert!(hopeless(&runs, &precopy) && !hopeless(&runs, &migrated(Way::Auto)));
        runs[2].outcome = Outcome::Completed;
        assert!(!hopeless(&runs, &precopy), "it did once");
    }

    #[test]
    fn a_table_has_medians_with_intervals_and_what_did_not_converge() {
        let mut runs = with_gaps(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        runs.push(Run { outcome: Outcome::NotConverged, ..run(migrated(Way::Auto), 60.0) });
        let text = tables(&runs);
        let row = text.lines().find(|line| line.contains("| auto")).unwrap();
        assert!(row.contains("| 7    | 1             |"), "{text}");
        assert!(row.contains("3.50 [1.00, 6.00]"), "{text}");
        assert!(text.contains("### test: 1gbit, 256 MiB") && !text.contains("wait P50"), "{text}");
    }

    #[test]
    fn a_loss_takes_the_figures_of_its_setting_only() {
        let mut runs = with_gaps(&[1.0, 2.0]);
        runs[1].outcome = Outcome::Lost;
        runs[1].problems = vec!["found 2 pages lost".into()];
        let mut other = run(migrated(Way::Auto), 1.0);
        other.scenario = "other".into();
        runs.push(other);
        let text = tables(&runs);
        assert!(text.contains("No figures: auto lost something in round 1: found 2 pages lost"), "{text}");
        assert_eq!(text.matches("| auto").count(), 1, "{text}");
        assert_eq!(refusals(&runs).len(), 1);
        assert!(refusals(&runs)[0].contains("found 2 pages lost"));
    }
}
