//! Why a guest can't run on a host, as a table.

use migrated_api::{CpuReport, Mismatch, RecordError};

use crate::cli::output::table;

/// A report with its verdict.
pub fn for_people(report: &CpuReport) -> String {
    let verdict = match (report.admitted, report.mismatches.len()) {
        (true, _) => "admitted: the guest can run there".to_owned(),
        (false, 1) => "refused for 1 reason".to_owned(),
        (false, n) => format!("refused for {n} reasons"),
    };
    format!("{verdict}\n\n{}", details(report))
}

/// What of the guest's CPU kept a migration from coming about, when that was it.
pub fn of_record(error: Option<&RecordError>) -> Option<String> {
    let cpu = error?.details.as_ref()?.get("cpu")?;
    let report: CpuReport = serde_json::from_value(cpu.clone()).ok()?;
    Some(details(&report))
}

/// All mismatches, both baselines, and what to do.
pub fn details(report: &CpuReport) -> String {
    let CpuReport {
        mismatches,
        warnings,
        made_from,
        guest_baseline,
        host_baseline,
        common_baseline,
        fix,
        ..
    } = report;
    let name = |baseline: &Option<String>| baseline.clone().unwrap_or_else(|| "no named baseline".into());
    let mut rows = vec![
        vec!["guest".into(), format!("{} (made from {made_from})", name(guest_baseline))],
        vec!["host".into(), name(host_baseline)],
    ];
    rows.extend(common_baseline.clone().map(|common| vec!["both".into(), common]));
    let list = |title: &str, items: Vec<String>| {
        let items: String = items.iter().map(|item| format!("\n  - {item}")).collect();
        (!items.is_empty()).then(|| format!("{title}:{items}"))
    };
    let warnings = warnings.iter().map(|warning| format!("{}: {}", warning.field, warning.detail)).collect();
    let mismatches = (!mismatches.is_empty())
        .then(|| table(&["feature", "where", "guest", "host", "rule", "cause"], mismatches.iter().map(row)));
    let parts =
        [mismatches, Some(table(&[], rows)), list("what to do", fix.clone()), list("good to know", warnings)];
    parts.into_iter().flatten().collect::<Vec<_>>().join("\n\n")
}

fn row(mismatch: &Mismatch) -> Vec<String> {
    vec![
        mismatch.field.clone(),
        mismatch.place.map(|place| place.to_string()).unwrap_or_default(),
        mismatch.guest.to_string(),
        mismatch.host.to_string(),
        format!("{:?}", mismatch.kind).to_lowercase(),
        mismatch.cause.in_words().to_owned(),
    ]
}
