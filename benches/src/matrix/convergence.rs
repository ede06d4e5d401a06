//! The highest dirty rate at which a guest still comes over.

use super::axes::{Link, Rate, Variant};
use super::run::{Outcome, Run};
use super::setting::Workload;
use super::summary::{Group, by_variant, group};
use crate::report::table;

/// What runs over several dirty rates have in common: scenario, link, and a guest that writes nothing.
pub type Rated<'a> = (&'a str, Link, Workload);

/// The runs of guests that wrote at several shares of the link's rate, all the same but for the rate.
#[must_use]
pub fn over_rates<'a>(runs: impl IntoIterator<Item = &'a Run>) -> Vec<Group<'a, Rated<'a>>> {
    let rated = runs.into_iter().filter(|run| share(run).is_some());
    let still = |run: &'a Run| Workload { rate: Rate::Idle, ..run.guest.clone() };
    let guests = group(rated, |run| (run.scenario.as_str(), run.link, still(run)));
    let several = |runs: &[&Run]| group(runs.iter().copied(), share).len() > 1;
    guests.into_iter().filter(|(_, runs)| several(runs)).collect()
}

/// The rate at which a run's guest wrote, as a share of the link's.
#[must_use]
pub const fn share(run: &Run) -> Option<f64> {
    match run.guest.rate {
        Rate::OfLink(share) => Some(share),
        Rate::Idle | Rate::Max => None,
    }
}

/// The highest share below which, and at which, every counted run of a variant came over; `None` when that is so at none.
fn limit(runs: &[&Run]) -> Option<f64> {
    let mut shares = group(runs.iter().copied().filter(|run| !run.warm_up), share);
    shares.sort_by(|(a, _), (b, _)| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    let converged = |runs: &[&Run]| runs.iter().all(|run| run.outcome == Outcome::Completed);
    shares.iter().take_while(|(_, runs)| converged(runs)).last()?.0
}

/// A table in Markdown of the highest rates that were tried with success; empty where nothing was tried at several.
/// Settings in which something was lost are left out by the caller.
pub(super) fn limits<'a>(runs: impl IntoIterator<Item = &'a Run>) -> String {
    let guests = over_rates(runs);
    let rows = guests.iter().flat_map(|((scenario, link, guest), runs)| {
        let row = move |(variant, runs): (Variant, Vec<&Run>)| {
            let most = limit(&runs).map_or_else(|| "none".into(), |share| format!("{share} × link"));
            let guest = format!(
                "{link}, {} MiB hot of {}, {}",
                guest.hot_mib,
                guest.memory_mib,
                guest.content.name()
            );
            vec![(*scenario).to_owned(), guest, variant.to_string(), most]
        };
        by_variant(runs.iter().copied()).into_iter().map(row)
    });
    let rows: Vec<_> = rows.collect();
    if rows.is_empty() {
        return String::new();
    }
    let head = "\n### The highest dirty rate, of those tried, up to which every run converged\n\n";
    format!("{head}{}\n", table(&["scenario", "guest", "variant", "rate"], rows))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{migrated, run};
    use super::*;
    use crate::matrix::Way;

    #[test]
    fn the_limit_is_below_the_first_rate_at_which_a_run_got_stuck() {
        let at = |share, outcome| {
            let mut run = run(migrated(Way::Precopy), 1.0);
            (run.guest.rate, run.outcome) = (Rate::OfLink(share), outcome);
            run
        };
        let (done, stuck) = (Outcome::Completed, Outcome::NotConverged);
        let mut runs = vec![at(0.9, done), at(0.1, done), at(0.5, done), at(0.5, stuck)];
        assert!(limits(&runs).contains("| pre-copy | 0.1 × link |"), "{}", limits(&runs));
        runs.retain(|run| run.outcome == done);
        assert!(limits(&runs).contains("| pre-copy | 0.9 × link |"), "{}", limits(&runs));
        runs[1].outcome = stuck;
        assert!(limits(&runs).contains("| pre-copy | none |"), "{}", limits(&runs));
        assert_eq!(limits(&runs[..1]), "", "one rate is no limit");
    }
}
