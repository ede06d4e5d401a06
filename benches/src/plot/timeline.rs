use migrated_api::MigrationRecord;

use super::axis::Axis;
use super::chart::{Chart, Line};
use super::{Plot, file_name};
use crate::matrix::{Run, by_variant, group, median};

/// Bits of a page.
const PAGE_BITS: f64 = 4096.0 * 8.0;

/// For each of our variants in each setting: the course of the migration whose total time is closest to the median.
pub(super) fn plots(runs: &[Run]) -> Vec<Plot> {
    let settings = group(runs, |run| (run.scenario.as_str(), run.setting()));
    let variants = settings.iter().flat_map(|(_, runs)| by_variant(runs.iter().copied()));
    variants.filter_map(|(_, runs)| plot(typical(&runs)?)).collect()
}

fn typical<'a>(runs: &[&'a Run]) -> Option<&'a Run> {
    let median = median(runs, |run| Some(run.seen.total_s))?;
    let far = |run: &Run| (run.seen.total_s - median).abs();
    let counted = runs.iter().copied().filter(|run| run.counts() && run.record.is_some());
    counted.min_by(|a, b| far(a).total_cmp(&far(b)))
}

fn plot(run: &Run) -> Option<Plot> {
    let record = run.record.as_ref()?;
    let name = format!("{}: {}, {}, round {}", run.scenario, run.setting(), run.variant, run.round);
    let bands: Vec<_> = blackout(record).into_iter().collect();
    let chart = |title: String, y: &str, lines: Vec<Line>| Chart {
        title,
        x: Axis::linear("since the request, s"),
        y: Axis::linear(y),
        lines,
        bands: bands.clone(),
    };
    let line = |name: &str, points| Line { name: name.into(), points, marks: Vec::new() };
    let sent = steps(record, |bytes, seconds, _, _| bytes * 8.0 / seconds / 1e6);
    let dirtied = steps(record, |_, _, pages, _| pages * PAGE_BITS / 1e6);
    let throttle = steps(record, |_, _, _, percent| percent);
    let rates = vec![line("payload sent", sent), line("dirtied", dirtied)];
    let mut charts = vec![chart(name, "Mbit/s", rates)];
    if record.throttle.is_some() {
        let title = "Most throttled vCPU".to_owned();
        charts.push(chart(title, "% of its time", vec![line("throttle", throttle)]));
    }
    let file = file_name(&["timeline", &run.scenario, &run.setting(), &run.variant.to_string()]);
    Some((file, charts))
}

/// A figure of each round as steps over the time, in seconds; out of payload bytes, seconds, pages dirtied a second, and
/// throttle in percent.
fn steps(record: &MigrationRecord, of: impl Fn(f64, f64, f64, f64) -> f64) -> Vec<(f64, f64)> {
    let mut begin = record.setup_ms / 1e3;
    let mut points = Vec::new();
    for round in &record.iterations {
        let seconds = round.duration_ms / 1e3;
        let figure = of(round.bytes as f64, seconds, round.dirty_rate_pps, round.throttle_percent);
        // A round without a duration has no rate.
        if figure.is_finite() {
            points.extend([(begin, figure), (begin + seconds, figure)]);
        }
        begin += seconds;
    }
    points
}

/// When the guest stood still. Its end is known where pages followed it: as long before the end as the last of them came
/// after the commit; else its beginning, the decision to stop.
fn blackout(record: &MigrationRecord) -> Option<(String, f64, f64)> {
    let length = record.downtime_us.total / 1e6;
    let followed = record.postcopy.as_ref().and_then(|postcopy| postcopy.last_page_ms);
    let begin = match followed {
        // The commit comes before the guest's first instruction.
        Some(ms) => (record.total_ms - ms + record.downtime_us.resume / 1e3) / 1e3 - length,
        None => {
            let stop = record.decisions.iter().rev().find(|decision| decision.decision == "stop_and_copy")?;
            stop.at_ms / 1e3
        }
    };
    Some((format!("blackout, {:.2} ms", length * 1e3), begin, begin + length))
}
