//! A host's CPU for people.

use migrated_api::{FeatureSet, HostCpuReport};

use super::list::wrapped;
use crate::cli::output::table;

/// The report as two columns.
pub fn for_people(report: &HostCpuReport) -> String {
    let none = || "none".to_owned();
    let identity = &report.identity;
    let signature = report.signature;
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut row = |name: String, value: String| rows.push(vec![name, value]);
    row("host".into(), identity.name.clone());
    if let Some(file) = &report.simulated {
        row("SIMULATED".into(), format!("FROM {file}: NOT THIS HOST'S OWN CPU, FOR TESTS ONLY"));
    }
    row("cpu".into(), identity.model_name.clone().unwrap_or_else(|| "unknown".into()));
    row("vendor".into(), report.vendor.clone());
    let numbers = format!("{}/{}/{}", signature.family, signature.model, signature.stepping);
    row("family/model/stepping".into(), numbers);
    row("microcode".into(), revision(identity.microcode));
    row("kernel".into(), identity.kernel.clone().unwrap_or_else(|| "unknown".into()));
    row("best baseline".into(), report.best.clone().unwrap_or_else(none));
    row("x86-64 level".into(), report.x86_64_level.clone().unwrap_or_else(none));
    if let Some(next) = &report.next {
        row("next level".into(), format!("{} lacks\n{}", next.level, wrapped(&next.lacks)));
    }
    row("hidden by configuration".into(), list(&report.hidden));
    let lost = report.lost.iter().map(|lost| {
        let [then, now] = [lost.microcode_then, lost.microcode_now].map(revision);
        format!("{} (microcode {then} then, {now} now)", lost.feature)
    });
    let lost: Vec<_> = lost.collect();
    row("lost since".into(), if lost.is_empty() { none() } else { lost.join("\n") });
    row(counted("offered to new guests", report.offered.len()), list(&report.offered));
    let withheld: FeatureSet = report.withheld.iter().map(|withheld| withheld.feature).collect();
    let accepted = report.accepted - report.offered - withheld - report.hidden;
    row(counted("only accepted with guests", accepted.len()), list(&accepted));
    let why: Vec<_> = report.withheld.iter().map(|w| format!("{}: {}", w.feature, w.why)).collect();
    row(counted("never given", why.len()), if why.is_empty() { none() } else { why.join("\n") });
    table(&[], rows)
}

fn counted(what: &str, n: usize) -> String {
    format!("{what} ({n})")
}

fn list(features: &FeatureSet) -> String {
    if features.is_empty() { "none".into() } else { wrapped(features) }
}

fn revision(microcode: Option<u64>) -> String {
    microcode.map_or_else(|| "unknown".into(), |revision| format!("{revision:#x}"))
}
