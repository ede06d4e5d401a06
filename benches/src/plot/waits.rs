use migrated_api::LatencyHistogram;

use super::axis::Axis;
use super::chart::{Chart, Line};
use super::{Plot, file_name};
use crate::matrix::{Run, by_variant, group};

/// For each setting in which guests waited for pages: which share of the waits took at most how long, over all runs of
/// a variant.
pub(super) fn plots(runs: &[Run]) -> Vec<Plot> {
    let waiting = runs.iter().filter(|run| run.counts() && run.waits().is_some());
    let settings = group(waiting, |run| (run.scenario.as_str(), run.setting()));
    settings.into_iter().map(|((scenario, setting), runs)| plot(scenario, &setting, &runs)).collect()
}

fn plot(scenario: &str, setting: &str, runs: &[&Run]) -> Plot {
    let lines = by_variant(runs.iter().copied()).into_iter().map(|(variant, runs)| Line {
        name: variant.to_string(),
        points: distribution(runs.iter().filter_map(|run| run.waits())),
        marks: Vec::new(),
    });
    let chart = Chart {
        title: format!("Waits for pages: {scenario}, {setting}"),
        x: Axis::logarithmic("time that a fault waited at most, µs"),
        y: Axis::linear("share of faults"),
        lines: lines.collect(),
        bands: Vec::new(),
    };
    (file_name(&["waits", scenario, setting]), vec![chart])
}

/// The share of all times up to the bound of each bucket, as steps: within a bucket nothing is known.
fn distribution<'a>(histograms: impl Iterator<Item = &'a LatencyHistogram>) -> Vec<(f64, f64)> {
    let (mut buckets, mut longest): (Vec<u64>, u64) = (Vec::new(), 0);
    for histogram in histograms {
        buckets.resize(buckets.len().max(histogram.buckets.len()), 0);
        buckets.iter_mut().zip(&histogram.buckets).for_each(|(sum, times)| *sum += times);
        longest = longest.max(histogram.max_us);
    }
    let all: u64 = buckets.iter().sum();
    let (mut points, mut below) = (Vec::new(), 0);
    for (bucket, times) in buckets.iter().enumerate().filter(|(_, times)| **times > 0) {
        let bound = (1u64 << bucket).min(longest) as f64;
        points.push((bound, below as f64 / all as f64));
        below += times;
        points.push((bound, below as f64 / all as f64));
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_add_up_to_steps() {
        let one = LatencyHistogram { buckets: vec![0, 1], max_us: 2, sum_us: 2 };
        let other = LatencyHistogram { buckets: vec![0, 1, 0, 2], max_us: 7, sum_us: 16 };
        let steps = distribution([one, other].iter());
        assert_eq!(steps, [(2.0, 0.0), (2.0, 0.5), (7.0, 0.5), (7.0, 1.0)]);
    }
}
