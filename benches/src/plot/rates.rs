use super::axis::Axis;
use super::chart::{Chart, Line};
use super::{Plot, file_name};
use crate::matrix::{Outcome, Run, by_variant, group, median, over_rates, share};

/// For each guest that wrote at several shares of the link's rate: the total time over the share; runs that did not
/// converge are crosses, at the time at which they were given up.
pub(super) fn plots(runs: &[Run]) -> Vec<Plot> {
    over_rates(runs).iter().map(|(_, runs)| plot(runs)).collect()
}

fn plot(runs: &[&Run]) -> Plot {
    let lines = by_variant(runs.iter().copied()).into_iter().map(|(variant, runs)| {
        let mut shares = group(runs.iter().copied(), share);
        shares.sort_by(|(a, _), (b, _)| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
        let point =
            |share: Option<f64>, runs: &[&Run]| Some((share?, median(runs, |run| Some(run.seen.total_s))?));
        let points = shares.iter().filter_map(|(share, runs)| point(*share, runs)).collect();
        let stuck = runs.iter().filter(|run| !run.warm_up && run.outcome == Outcome::NotConverged);
        let marks = stuck.filter_map(|run| Some((share(run)?, run.seen.total_s))).collect();
        Line { name: variant.to_string(), points, marks }
    });
    let Run { scenario, link, guest, .. } = runs[0];
    let hot = format!("{} MiB hot of {} MiB, {}", guest.hot_mib, guest.memory_mib, guest.pattern.name());
    let chart = Chart {
        title: format!("Total time over dirty rate: {scenario}, {link}, {hot} (× did not converge)"),
        x: Axis::linear("pages written, as a share of the link's payload rate"),
        y: Axis::logarithmic("total time, median, s"),
        lines: lines.collect(),
        bands: Vec::new(),
    };
    (file_name(&["total-over-rates", scenario, &link.to_string(), &hot, guest.content.name()]), vec![chart])
}
