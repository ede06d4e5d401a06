use super::axis::Axis;
use super::chart::{Chart, Line};
use super::{Plot, file_name};
use crate::matrix::{Run, by_variant, group, median};

/// For each guest that was moved over several links: the gap that it saw, over the link's rate. That is the measure
/// which both systems have in every mode.
pub(super) fn plots(runs: &[Run]) -> Vec<Plot> {
    let guests = group(runs, |run| (run.scenario.as_str(), run.guest.to_string()));
    let several = |runs: &[&Run]| group(runs.iter().copied(), |run| run.link).len() > 1;
    let guests = guests.into_iter().filter(|(_, runs)| several(runs));
    guests.map(|((scenario, guest), runs)| plot(scenario, &guest, &runs)).collect()
}

fn plot(scenario: &str, guest: &str, runs: &[&Run]) -> Plot {
    let lines = by_variant(runs.iter().copied()).into_iter().map(|(variant, runs)| {
        let mut links = group(runs, |run| run.link);
        // What is unshaped is fastest.
        links.sort_by_key(|(link, _)| (link.0.is_none(), *link));
        let point = |runs: &[&Run]| Some((runs[0].payload_bps / 1e6, median(runs, |run| run.seen.gap_ms)?));
        let points = links.iter().filter_map(|(_, runs)| point(runs)).collect();
        Line { name: variant.to_string(), points, marks: Vec::new() }
    });
    let chart = Chart {
        title: format!("Gap over link speed: {scenario}, {guest}"),
        x: Axis::logarithmic("TCP payload rate of the link, Mbit/s"),
        y: Axis::logarithmic("gap the guest saw, median, ms"),
        lines: lines.collect(),
        bands: Vec::new(),
    };
    (file_name(&["gap-over-links", scenario, guest]), vec![chart])
}
