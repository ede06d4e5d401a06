//! Whether a change made anything slower: the micro-benchmarks of a base and of this tree, run in turns.
//!
//! One run of a benchmark says little. What else the machine does, where the program's memory came to lie, how warm the
//! CPU is: these change from run to run by more than most changes of the code, and they change slowly, so that a
//! base measured now and a head measured a minute later differ for no reason of theirs. So both are built first, then run
//! in rounds, each round in the other order (base head, head base, …), each run a process of its own. A round gives one
//! number a side, its median; the rounds' numbers are compared by ranks ([`statistics`]), since what disturbs them has
//! no known distribution. A failure needs a difference that is both large and certain ([`verdict`]).
//!
//! One thing no number of rounds averages out: another version of a function may lie elsewhere in the program, which by
//! itself can cost some percent. A small certain difference is therefore shown and is no failure.

mod base;
mod error;
mod estimates;
mod programs;
mod rounds;
mod statistics;
mod verdict;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use clap::Args;

use crate::tree::Tree;
use base::Commit;
use error::BenchError;
use programs::Declared;
use rounds::{Measured, Pair, Sampling};
use verdict::{Comparison, MIN_ROUNDS};

/// What `bench-compare` takes.
#[derive(Args)]
pub struct CompareArgs {
    /// The commit to compare with: a branch, a tag, HEAD~1, a hash. HEAD for changes that are not committed yet.
    base: String,
    /// Only benchmarks whose names match this regular expression.
    #[arg(long, value_name = "REGEX")]
    filter: Option<String>,
    /// Only the benchmarks of these packages.
    #[arg(long = "package", short, value_name = "PACKAGE")]
    packages: Vec<String>,
    /// How often both are run; each time takes about 3 s a benchmark. With fewer than 5 no difference can be certain.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(i64::from(MIN_ROUNDS)..=50))]
    rounds: u32,
    /// Fail where a benchmark is certainly slower by more than this.
    #[arg(long, value_name = "PERCENT", default_value_t = 10)]
    threshold: u32,
}

/// A comparison that is to be made.
struct Plan {
    filter: Option<String>,
    /// Names of packages; all when there is none.
    packages: Vec<String>,
    rounds: u32,
    threshold_percent: u32,
    sampling: Sampling,
}

/// What CI measures: crates that build in a minute and hold what happens to every page.
const GATE_PACKAGES: [&str; 3] = ["migrated-pages", "migrated-wire", "migrated-guest"];
/// CI's machines are shared and differ from hour to hour. What is slower by so much is no noise of theirs.
const GATE_THRESHOLD_PERCENT: u32 = 40;

/// `cargo xtask bench-compare`.
pub fn compare(tree: &Tree, args: &CompareArgs) -> anyhow::Result<ExitCode> {
    let plan = Plan {
        filter: args.filter.clone(),
        packages: args.packages.clone(),
        rounds: args.rounds,
        threshold_percent: args.threshold,
        sampling: Sampling::THOROUGH,
    };
    let base = Commit::named(tree, &args.base)?;
    Ok(report(&plan.carry_out(tree, &base)?))
}

/// `cargo xtask bench-gate`: fails on a large, certain regression, and passes loudly where nothing can be compared.
pub fn gate(tree: &Tree) -> anyhow::Result<ExitCode> {
    let plan = Plan {
        filter: None,
        packages: GATE_PACKAGES.map(str::to_owned).into(),
        rounds: MIN_ROUNDS,
        threshold_percent: GATE_THRESHOLD_PERCENT,
        sampling: Sampling::SHORT,
    };
    match Commit::before(tree).and_then(|base| plan.carry_out(tree, &base)) {
        Ok(comparison) => Ok(report(&comparison)),
        Err(error) if error.is_about_the_base() => {
            println!("WARNING: NO BENCHMARK WAS COMPARED: {error}");
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => Err(error.into()),
    }
}

fn report(comparison: &Comparison) -> ExitCode {
    println!("{comparison}");
    match comparison.regressions().next() {
        None => ExitCode::SUCCESS,
        Some(_) => ExitCode::FAILURE,
    }
}

impl Plan {
    fn carry_out(&self, tree: &Tree, base: &Commit) -> Result<Comparison, BenchError> {
        println!("base: {base}; head: the tree as it is now");
        let dir = tree.target().map_err(BenchError::cargo)?.join("bench-compare");
        fs::create_dir_all(&dir).map_err(BenchError::io(&dir))?;
        let base_tree = base.checked_out(tree, &dir.join("base"))?;
        let pairs = self.built(tree, &base_tree, base, &dir)?;
        let measured = Measured::in_turns(&pairs, self.rounds, self.sampling, self.filter.as_deref(), &dir)?;
        if measured.head.is_empty() {
            return Err(BenchError::NothingMeasured);
        }
        let comparison = Comparison::of(measured, self.rounds, self.threshold_percent);
        if comparison.is_empty() {
            return Err(BenchError::NothingInCommon { base: base.to_string() });
        }
        Ok(comparison)
    }

    /// Builds what both trees have.
    fn built(
        &self,
        tree: &Tree,
        base_tree: &Tree,
        base: &Commit,
        dir: &Path,
    ) -> Result<Vec<Pair>, BenchError> {
        let mut of_head = Declared::by(tree, &self.packages)?;
        let mut of_base = Declared::by(base_tree, &self.packages)?;
        of_head.keep_common(&mut of_base);
        if of_head.is_empty() {
            return Err(BenchError::NothingInCommon { base: base.to_string() });
        }
        // Not in one target folder: cargo names what it builds by a package's path from the workspace's root, which
        // is the same for both, so it would take one's programs for the other's.
        let mut of_head = of_head.build(tree, None)?;
        if let Some(program) = of_head.failed.first() {
            return Err(BenchError::HeadDoesNotBuild { program: program.to_string() });
        }
        let of_base = of_base.build(base_tree, Some(&dir.join("build")))?;
        for program in &of_base.failed {
            println!("WARNING: the {program} does not build at the base, see above; it is left out");
        }
        if of_base.files.is_empty() {
            return Err(BenchError::BaseDoesNotBuild { base: base.to_string() });
        }
        let pair = |(name, base)| Some(Pair { base, head: of_head.files.remove(&name)? });
        Ok(of_base.files.into_iter().filter_map(pair).collect())
    }
}
