//! One cut in each move.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use migrated_api::{MigrationState, Mode};
use migrated_bench::lab::Lab;
use migrated_bench::report::{Measure, Report, say, summaries};
use migrated_bench::statistics::Summary;
use migrated_netns::Fault;
use serde::Serialize;
use serde_json::json;

use crate::outcome::tally;
use crate::trial::{Ground, Trial, UnderWay, tell};
use crate::{Common, mode_name, modes};

/// Moves that are not cut, of each mode, before those that are: they say how long one takes.
const CALIBRATION: usize = 2;
/// Cuts come at any moment of this much of a move's median time, so that some come around its end and after it.
const BEYOND: f64 = 1.2;

#[derive(Debug, Args)]
pub struct CutsArgs {
    #[command(flatten)]
    common: Common,
    /// Moves.
    #[arg(long, default_value_t = 200)]
    count: usize,
    /// How memory is moved: auto, precopy, postcopy, hybrid, or `mix` for all of them in turn.
    #[arg(long, default_value = "auto", value_parser = modes)]
    mode: Modes,
    /// How the link fails.
    #[arg(long, value_enum, default_value_t = How::Drop)]
    how: How,
    /// How long it stays so: at least and at most so many seconds.
    #[arg(long, value_name = "FROM..TO", default_value = "1..5", value_parser = range)]
    down: (f64, f64),
    /// What random moments and times come from; a new one each time when left out. The same seed gives the same
    /// cuts, as far as moves take the same time.
    #[arg(long)]
    seed: Option<u64>,
}

/// Clap takes a `Vec` for an option that may be repeated.
type Modes = Vec<Mode>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum How {
    /// Packets vanish.
    Drop,
    /// Connections are reset.
    Reset,
    /// Either, at random.
    Mix,
}

fn range(text: &str) -> Result<(f64, f64), String> {
    let wrong = || format!("{text:?} is no range of seconds; write e.g. 1..5");
    let (from, to) = text.split_once("..").ok_or_else(wrong)?;
    let (from, to): (f64, f64) = (from.parse().map_err(|_| wrong())?, to.parse().map_err(|_| wrong())?);
    (from >= 0.0 && from <= to && to.is_finite()).then_some((from, to)).ok_or_else(wrong)
}

/// A cut that is going to happen.
#[derive(Clone, Copy, Debug, Serialize)]
struct Cut {
    after_s: f64,
    down_s: f64,
    reset: bool,
}

/// A move with a cut in it.
#[derive(Debug, Serialize)]
struct CutMove {
    n: usize,
    cut: Cut,
    /// The source's state when the link was cut.
    hit: Option<MigrationState>,
    #[serde(flatten)]
    trial: Trial,
}

impl CutMove {
    fn hit_name(&self) -> &'static str {
        match self.hit {
            Some(state) if state.is_final() => "after the end",
            Some(state) => state.name(),
            None => "before it began",
        }
    }
}

pub fn run(args: &CutsArgs) -> Result<bool> {
    let mut report = Report::begin(args.common.json.as_deref())?;
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    report.print(&format!("seed {seed}"))?;
    report.line(&json!({ "seed": seed }))?;
    let mut random = fastrand::Rng::with_seed(seed);
    let lab = Lab::new(&args.common.plan()?)?;
    let mut ground = Ground::new(&lab, &args.common.guest())?;
    let mut times = calibrate(&mut ground, &args.mode)?;

    let mut moves: Vec<CutMove> = Vec::new();
    for n in 1..=args.count {
        let mode = args.mode[(n - 1) % args.mode.len()];
        let seen = times.entry(mode_name(mode)).or_default();
        let median_s = Summary::of(seen.iter().copied()).context("no move of this mode was seen")?.median;
        let cut = Cut {
            after_s: random.f64() * BEYOND * median_s,
            down_s: args.down.0 + random.f64() * (args.down.1 - args.down.0),
            reset: args.how == How::Reset || args.how == How::Mix && random.bool(),
        };
        let mut hit = None;
        let trial = ground.attempt(mode, |under_way| {
            hit = cut_link(&lab, under_way, cut)?;
            Ok(())
        })?;
        if hit.is_some_and(MigrationState::is_final) {
            seen.push(trial.total_s);
        }
        let made = CutMove { n, cut, hit, trial };
        tell(n, &made.trial, &format!("cut in {} for {:.1} s", made.hit_name(), cut.down_s));
        report.line(&made)?;
        let lost = !made.trial.problems.is_empty();
        moves.push(made);
        if lost {
            break;
        }
    }
    let problems: Vec<_> = moves.iter().flat_map(|made| made.trial.problems.iter().cloned()).collect();
    if problems.is_empty() {
        ground.end()?;
    }
    print(&report, moves)?;
    report.end(&problems)
}

/// How long moves of each mode take when nothing is cut, in seconds.
fn calibrate(ground: &mut Ground<'_>, modes: &[Mode]) -> Result<BTreeMap<&'static str, Vec<f64>>> {
    let mut times: BTreeMap<_, Vec<f64>> = BTreeMap::new();
    for mode in modes {
        for _ in 0..CALIBRATION {
            let trial = ground.attempt(*mode, |_| Ok(()))?;
            anyhow::ensure!(
                trial.record.state == Some(MigrationState::Completed) && trial.problems.is_empty(),
                "a move over a whole link does not complete: {:?} {:?}",
                trial.record.error,
                trial.problems
            );
            times.entry(mode_name(*mode)).or_default().push(trial.total_s);
        }
    }
    say(&format!("undisturbed moves take, in seconds: {times:.3?}"));
    Ok(times)
}

/// Cuts the link when it is time, and restores it. Gives the state that was hit.
fn cut_link(lab: &Lab, under_way: &UnderWay<'_>, cut: Cut) -> Result<Option<MigrationState>> {
    let at = under_way.began + Duration::from_secs_f64(cut.after_s);
    std::thread::sleep(at.saturating_duration_since(Instant::now()));
    let hit = under_way.state()?;
    lab.pair.fault(if cut.reset { Fault::Reset } else { Fault::Drop })?;
    std::thread::sleep(Duration::from_secs_f64(cut.down_s));
    lab.pair.restore()?;
    Ok(hit)
}

fn print(report: &Report, moves: Vec<CutMove>) -> Result<()> {
    report.print(&tally("cut in", moves.iter().map(|made| (made.hit_name(), made.trial.outcome))))?;
    let modes = moves.iter().map(|made| (mode_name(made.trial.mode), made.trial.outcome));
    report.print(&format!("\n{}", tally("mode", modes)))?;
    let ended = moves.into_iter().filter(|made| made.trial.record.state == Some(MigrationState::Completed));
    let measures: [Measure<CutMove>; 3] = [
        Measure { name: "total, s", of: |made| Some(made.trial.total_s), digits: 2, aim: "" },
        Measure { name: "down, s", of: |made| Some(made.cut.down_s), digits: 2, aim: "" },
        Measure { name: "gap the guest saw, ms", of: |made| made.trial.gap_ms, digits: 1, aim: "" },
    ];
    report.print(&format!("\n{}", summaries(&[("completed".into(), ended.collect())], &measures)))
}

#[cfg(test)]
mod tests {
    use super::range;

    #[test]
    fn ranges_of_seconds() {
        assert_eq!(range("1..5"), Ok((1.0, 5.0)));
        assert_eq!(range("0.5..0.5"), Ok((0.5, 0.5)));
        for text in ["1", "5..1", "-1..2", "a..b", "1..inf"] {
            assert!(range(text).is_err(), "{text}");
        }
    }
}
