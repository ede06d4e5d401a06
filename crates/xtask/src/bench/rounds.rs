//! Runs the programs of both sides in turns.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::error::BenchError;
use super::estimates::{Benchmark, Medians, medians};

/// How long criterion looks at a benchmark in one round.
#[derive(Clone, Copy, Debug)]
pub struct Sampling {
    warm_up_s: f32,
    measurement_s: f32,
    /// At least 10.
    samples: u32,
}

impl Sampling {
    /// A second and a half for each.
    pub const THOROUGH: Self = Self { warm_up_s: 0.5, measurement_s: 1.0, samples: 30 };
    /// Criterion's fewest samples: noisier rounds, of which the gate bears much.
    pub const SHORT: Self = Self { warm_up_s: 0.05, measurement_s: 0.1, samples: 10 };
}

/// One of the two that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Base,
    Head,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Base => "base",
            Self::Head => "head",
        })
    }
}

/// A program as both sides have it.
pub struct Pair {
    pub base: PathBuf,
    pub head: PathBuf,
}

/// Medians of all rounds by benchmark, and what the machine was like.
#[derive(Default)]
pub struct Measured {
    pub base: Rounds,
    pub head: Rounds,
    /// Load average of the last minute before the first round and after the last.
    pub load: (String, String),
    /// The CPU that everything ran on, where the host lets choose.
    pub cpu: Option<usize>,
}

/// A benchmark's medians in nanoseconds, one for each round.
pub type Rounds = BTreeMap<Benchmark, Vec<f64>>;

impl Measured {
    /// Runs all programs `rounds` times on each side; `filter` chooses benchmarks by a regular expression.
    pub fn in_turns(
        pairs: &[Pair],
        rounds: u32,
        sampling: Sampling,
        filter: Option<&str>,
        scratch: &Path,
    ) -> Result<Self, BenchError> {
        let mut measured = Self { cpu: pin(), ..Self::default() };
        measured.load.0 = load();
        for round in 0..rounds {
            eprintln!("round {} of {rounds}", round + 1);
            for pair in pairs {
                let mut turns = [
                    (Side::Base, &pair.base, &mut measured.base),
                    (Side::Head, &pair.head, &mut measured.head),
                ];
                // Base head, head base, base head: what drifts with time weighs on both alike.
                if round % 2 == 1 {
                    turns.reverse();
                }
                for (side, program, rounds) in turns {
                    for (benchmark, median) in run(side, program, sampling, filter, scratch)? {
                        rounds.entry(benchmark).or_default().push(median);
                    }
                }
            }
        }
        measured.load.1 = load();
        Ok(measured)
    }
}

/// Runs a program once. Its results go to a folder of this run alone, so none is left from another.
fn run(
    side: Side,
    program: &Path,
    sampling: Sampling,
    filter: Option<&str>,
    scratch: &Path,
) -> Result<Medians, BenchError> {
    let results = scratch.join("results");
    if results.exists() {
        fs::remove_dir_all(&results).map_err(BenchError::io(&results))?;
    }
    let output = Command::new(program)
        .env("CRITERION_HOME", &results)
        .args(["--bench", "--noplot"])
        // Of the estimates only the median is used; resampling is for their confidence intervals.
        .args(["--nresamples", "1000"])
        .args(["--warm-up-time", &sampling.warm_up_s.to_string()])
        .args(["--measurement-time", &sampling.measurement_s.to_string()])
        .args(["--sample-size", &sampling.samples.to_string()])
        .args(filter)
        .output()
        .map_err(BenchError::io(program))?;
    if !output.status.success() {
        return Err(BenchError::ProgramFailed {
            side,
            program: program.to_owned(),
            status: output.status,
            said: String::from_utf8_lossy(&output.stderr).into_owned(),
        });
    }
    medians(&results)
}

/// Keeps this thread, and thus what it starts, on the last CPU that it may use: a program that changes CPUs starts with
/// cold caches, and the first CPU serves most interrupts.
fn pin() -> Option<usize> {
    let allowed = sched_getaffinity(None).ok()?;
    let last = (0..CpuSet::MAX_CPU).rev().find(|cpu| allowed.is_set(*cpu))?;
    let mut one = CpuSet::new();
    one.set(last);
    sched_setaffinity(None, &one).ok().map(|()| last)
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}
