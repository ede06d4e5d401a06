use migrated_api::MigrationRecord;
use serde_json::json;

use super::*;
use crate::matrix::testing::{migrated, run};
use crate::matrix::{Link, Outcome, Rate, Variant, Way, read};
use crate::qemu::Method;

/// A record of two rounds in one second, the second of them slowed, with waits where pages followed.
fn record(followed: bool) -> MigrationRecord {
    let round = |n: u32, ms: f64, throttle: f64| {
        json!({ "n": n, "pages": 1000, "bytes": 4_096_000, "duration_ms": ms, "dirty_rate_pps": 5000.0,
                "throttle_percent": throttle })
    };
    let mut record = serde_json::to_value(MigrationRecord::default()).unwrap();
    record["iterations"] = json!([round(1, 800.0, 0.0), round(2, 200.0, 40.0)]);
    record["total_ms"] = json!(1000.0);
    record["downtime_us"]["total"] = json!(5000.0);
    record["decisions"] = json!([{ "at_ms": 990.0, "decision": "stop_and_copy", "reason": "" }]);
    let mut record: MigrationRecord = serde_json::from_value(record).unwrap();
    if followed {
        let mut postcopy = migrated_api::Postcopy { last_page_ms: Some(700.0), ..Default::default() };
        postcopy.fault_latency.add(std::time::Duration::from_micros(90));
        postcopy.fault_latency.add(std::time::Duration::from_micros(400));
        record.postcopy = Some(postcopy);
    } else {
        record.throttle = Some(Default::default());
    }
    record
}

/// Lines as a matrix writes them: two links, two rates on one of them, two of our modes and one of QEMU's.
fn runs() -> String {
    let mut runs = Vec::new();
    for (link, share) in [(100_000_000, 0.5), (1_000_000_000, 0.5), (1_000_000_000, 1.5)] {
        for variant in [
            migrated(Way::PrecopyThrottle),
            migrated(Way::Postcopy),
            Variant::Qemu { method: Method::Precopy, channels: None },
        ] {
            let mut run = run(variant, 1.0);
            (run.link, run.payload_bps) = (Link(Some(link)), link as f64);
            run.guest.rate = Rate::OfLink(share);
            run.seen.gap_ms = Some(4.0);
            match variant {
                Variant::Qemu { .. } if share > 1.0 => run.outcome = Outcome::NotConverged,
                Variant::Qemu { .. } => {}
                Variant::Migrated { mode, .. } => {
                    run.record = Some(record(mode == Way::Postcopy));
                    run.arrival = run.record.clone();
                }
            }
            runs.push(serde_json::to_string(&run).unwrap());
        }
    }
    runs.join("\n")
}

#[test]
fn lines_become_plots_with_their_series() {
    let dir = tempfile::tempdir().unwrap();
    let lines = dir.path().join("runs.jsonl");
    std::fs::write(&lines, runs()).unwrap();
    let out = dir.path().join("plots");
    let files = draw(&read(&lines).unwrap(), &out).unwrap();
    let named = |start: &str| -> Vec<String> {
        let chosen =
            files.iter().filter(|file| file.file_name().unwrap().to_str().unwrap().starts_with(start));
        chosen.map(|file| std::fs::read_to_string(file).unwrap()).collect()
    };
    let has = |svg: &str, text: &str| svg.lines().any(|line| line.trim() == text);
    let modes = ["pre-copy, throttled", "post-copy", "QEMU pre-copy"];

    let [gaps] = &named("gap-over-links")[..] else { panic!("{files:?}") };
    assert!(modes.iter().all(|name| has(gaps, name)), "{gaps}");
    assert!(has(gaps, "gap the guest saw, median, ms"), "{gaps}");
    let [totals] = &named("total-over-rates")[..] else { panic!("{files:?}") };
    assert!(modes.iter().all(|name| has(totals, name)), "{totals}");

    let waits = named("waits");
    assert_eq!(waits.len(), 3, "a plot for each setting");
    assert!(has(&waits[0], "post-copy") && !has(&waits[0], "pre-copy, throttled"), "{}", waits[0]);

    let timelines = named("timeline");
    assert_eq!(timelines.len(), 6, "QEMU keeps no record of its rounds");
    assert!(timelines.iter().all(|svg| has(svg, "payload sent") && has(svg, "blackout, 5.00 ms")));
    assert_eq!(timelines.iter().filter(|svg| has(svg, "throttle")).count(), 3);
    assert_eq!(files.len(), 1 + 1 + 3 + 6);
}

#[test]
fn what_did_not_converge_is_marked() {
    let dir = tempfile::tempdir().unwrap();
    let read_back = |runs: &[Run]| {
        let files = draw(runs, dir.path()).unwrap();
        let file = files.iter().find(|file| file.to_str().unwrap().contains("total-over-rates")).unwrap();
        // A cross is two strokes.
        std::fs::read_to_string(file).unwrap().matches("<line").count()
    };
    let mut runs: Vec<Run> = runs().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let with = read_back(&runs);
    runs.iter_mut().for_each(|run| run.outcome = Outcome::Completed);
    assert_eq!(with, read_back(&runs) + 2);
}

#[test]
fn names_of_files_are_plain() {
    assert_eq!(file_name(&["waits", "a b: 0.5 × link", "(x)"]), "waits-a-b-0_5-link-x");
}
