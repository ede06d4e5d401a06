//! What the rounds say.

use std::collections::BTreeSet;
use std::fmt;

use comfy_table::{CellAlignment, Table, presets};

use super::estimates::Benchmark;
use super::rounds::{Measured, Rounds};
use super::statistics::{median, p_different, p_larger};

/// Below this probability of mere chance a difference is called certain.
const CHANCE: f64 = 0.01;
/// With fewer rounds even the clearest difference, all of one side above all of the other, is by chance more often:
/// 1 in C(10, 5) = 252 against 1 in C(8, 4) = 70.
pub const MIN_ROUNDS: u32 = 5;

/// What became of a benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing that could not be chance.
    Same,
    /// Certainly faster.
    Faster,
    /// Certainly slower, but not certainly by more than the threshold.
    Slower,
    /// Certainly slower by more than the threshold.
    Regression,
}

impl Verdict {
    /// Of the rounds' medians. A regression is not a difference that is certain and happens to be measured as large, but
    /// one that is certain even when the base's numbers are raised by the threshold. That also makes chance findings
    /// among many benchmarks rare: noise would have to lift one by the threshold first.
    fn of(base: &[f64], head: &[f64], threshold_percent: u32) -> Self {
        let allowed: Vec<_> =
            base.iter().map(|time| time * (1.0 + f64::from(threshold_percent) / 100.0)).collect();
        if p_larger(head, &allowed) < CHANCE {
            return Self::Regression;
        }
        match p_different(base, head) < CHANCE {
            false => Self::Same,
            true if median(head) > median(base) => Self::Slower,
            true => Self::Faster,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Same => "no difference",
            Self::Faster => "faster",
            Self::Slower => "slower",
            Self::Regression => "REGRESSION",
        })
    }
}

/// One benchmark on both sides.
struct Row {
    benchmark: String,
    base: Vec<f64>,
    head: Vec<f64>,
    verdict: Verdict,
}

/// All of them.
pub struct Comparison {
    rows: Vec<Row>,
    /// Benchmarks that only one side measured, or not in every round, or that do another amount of work on each side.
    left_out: BTreeSet<String>,
    rounds: u32,
    threshold_percent: u32,
    load: (String, String),
    cpu: Option<usize>,
}

impl Comparison {
    pub fn of(measured: Measured, rounds: u32, threshold_percent: u32) -> Self {
        let Measured { base, head, load, cpu } = measured;
        let in_every_round = |side: &Rounds, benchmark: &Benchmark| {
            side.get(benchmark).filter(|medians| medians.len() == rounds as usize).cloned()
        };
        let (mut rows, mut left_out) = (Vec::new(), BTreeSet::new());
        for benchmark in base.keys().chain(head.keys()).collect::<BTreeSet<_>>() {
            match (in_every_round(&base, benchmark), in_every_round(&head, benchmark)) {
                (Some(base), Some(head)) => {
                    let verdict = Verdict::of(&base, &head, threshold_percent);
                    rows.push(Row { benchmark: benchmark.name.clone(), base, head, verdict });
                }
                _ => drop(left_out.insert(benchmark.name.clone())),
            }
        }
        Self { rows, left_out, rounds, threshold_percent, load, cpu }
    }

    /// Whether no benchmark was measured on both sides.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Names of benchmarks that are certainly slower by more than the threshold.
    pub fn regressions(&self) -> impl Iterator<Item = &str> {
        let regressions = self.rows.iter().filter(|row| row.verdict == Verdict::Regression);
        regressions.map(|row| row.benchmark.as_str())
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header(["benchmark", "base", "head", "change", "p", "verdict"]);
        for row in &self.rows {
            let (base, head) = (median(&row.base), median(&row.head));
            table.add_row([
                row.benchmark.clone(),
                time(base),
                time(head),
                format!("{:+.1} %", (head / base - 1.0) * 100.0),
                format!("{:.4}", p_different(&row.base, &row.head)),
                row.verdict.to_string(),
            ]);
        }
        for column in 1..5 {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        writeln!(f, "{}\n", table.trim_fmt())?;
        for benchmark in &self.left_out {
            writeln!(f, "{benchmark}: not compared, since both sides don't measure the same in every round")?;
        }
        let cpu = self.cpu.map_or_else(|| "any CPU".to_owned(), |cpu| format!("CPU {cpu}"));
        writeln!(
            f,
            "medians of {} rounds a side in turns on {cpu}; load average {} at the beginning, {} at the end; p by Mann and \
             Whitney, below {CHANCE} is called certain",
            self.rounds, self.load.0, self.load.1
        )?;
        let regressions: Vec<_> = self.regressions().collect();
        match regressions.as_slice() {
            [] => write!(f, "nothing is certainly slower by more than {} %", self.threshold_percent),
            _ => write!(
                f,
                "certainly slower by more than {} %: {}",
                self.threshold_percent,
                regressions.join(", ")
            ),
        }
    }
}

/// A time in three or four digits.
fn time(ns: f64) -> String {
    let (value, unit) = match ns {
        _ if ns < 1e3 => (ns, "ns"),
        _ if ns < 1e6 => (ns / 1e3, "µs"),
        _ => (ns / 1e6, "ms"),
    };
    let digits = if value < 10.0 { 2 } else { 1 };
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: [f64; 5] = [100.0, 101.0, 99.0, 100.5, 99.5];

    fn against(factor: f64) -> Verdict {
        Verdict::of(&BASE, &BASE.map(|time| time * factor), 40)
    }

    #[test]
    fn only_what_is_large_and_certain_is_a_regression() {
        assert_eq!(against(1.0), Verdict::Same);
        assert_eq!(against(1.1), Verdict::Slower);
        assert_eq!(against(1.4), Verdict::Slower);
        assert_eq!(against(1.5), Verdict::Regression);
        assert_eq!(against(0.9), Verdict::Faster);
        // Half the rounds were disturbed: large, and not certain.
        let disturbed = [100.0, 300.0, 99.0, 300.0, 300.0];
        assert_eq!(Verdict::of(&BASE, &disturbed, 40), Verdict::Same);
    }

    /// A side of name, amount of work and medians.
    fn side(benchmarks: &[(&str, u64, &[f64])]) -> Rounds {
        let benchmark = |name: &str, work| Benchmark {
            name: name.to_owned(),
            work: Some([("Bytes".to_owned(), work)].into()),
        };
        benchmarks.iter().map(|(name, work, medians)| (benchmark(name, *work), medians.to_vec())).collect()
    }

    #[test]
    fn what_both_do_not_have_is_said_and_not_compared() {
        let slow = BASE.map(|time| time * 2.0);
        let measured = Measured {
            base: side(&[("a", 1, &BASE), ("gone", 1, &BASE), ("at times", 1, &BASE), ("grown", 1, &BASE)]),
            head: side(&[
                ("a", 1, &slow),
                ("new", 1, &BASE),
                ("at times", 1, &BASE[..4]),
                ("grown", 2, &slow),
            ]),
            load: ("0.10".into(), "1.00".into()),
            cpu: Some(1),
        };
        let comparison = Comparison::of(measured, 5, 40);
        assert_eq!(comparison.regressions().collect::<Vec<_>>(), ["a"]);
        let text = comparison.to_string();
        assert!(text.contains("100.0 ns | 200.0 ns | +100.0 % | 0.0079 | REGRESSION"), "{text}");
        for name in ["gone", "new", "at times", "grown"] {
            assert_eq!(text.matches(&format!("\n{name}: not compared")).count(), 1, "{text}");
        }
        assert!(text.ends_with("certainly slower by more than 40 %: a"), "{text}");
    }

    #[test]
    fn times_are_readable() {
        assert_eq!(
            [4.567, 999.9, 12_345.0, 3_382_853.0].map(time),
            ["4.57 ns", "999.9 ns", "12.3 µs", "3.38 ms"]
        );
    }
}
