//! What happened to pages that followed a guest, for people.

use migrated_api::{LatencyHistogram, MigrationRecord, Postcopy, RecordRole, Recovery};

use crate::units::show_us;

/// Rows of a report: none where no page followed the guest.
pub fn rows(record: &MigrationRecord) -> Vec<Vec<String>> {
    let Some(followed) = &record.postcopy else { return Vec::new() };
    let mut rows = vec![vec!["post-copy".into(), pages(followed, record.role)]];
    let mut row = |name: &str, value: Option<String>| {
        rows.extend(value.map(|value| vec![name.to_owned(), value]));
    };
    row("faults", Some(faults(followed, record.role)));
    row("fault latency", latency(&followed.fault_latency));
    row("last page", followed.last_page_ms.map(|ms| format!("{} after the switch", show_us(ms * 1e3))));
    rows.extend(losses(&followed.recoveries));
    rows
}

/// Rows of a report for links that were lost.
pub fn losses(recoveries: &[Recovery]) -> impl Iterator<Item = Vec<String>> {
    recoveries.iter().map(|recovery| {
        let end = match recovery.recovered_ms {
            Some(ms) => {
                format!("until {}, then {} pages were missing", show_us(ms * 1e3), recovery.missing_pages)
            }
            None => "and is still".to_owned(),
        };
        let what = format!("at {}, {end}: {}", show_us(recovery.lost_ms * 1e3), recovery.reason);
        vec!["link lost".to_owned(), what]
    })
}

fn pages(followed: &Postcopy, role: RecordRole) -> String {
    let Postcopy { missing_pages, pages_push, pages_fault, pages_prefetch, pages_duplicate, .. } = followed;
    match role {
        RecordRole::Source => format!(
            "{missing_pages} pages followed the guest: {pages_push} pushed, {pages_fault} by fault, \
             {pages_prefetch} prefetched"
        ),
        RecordRole::Destination => {
            format!("{missing_pages} pages followed the guest, {pages_duplicate} came twice")
        }
    }
}

fn faults(followed: &Postcopy, role: RecordRole) -> String {
    let Postcopy { faults, faults_shared, requests_duplicate, .. } = followed;
    match role {
        RecordRole::Source => format!("{faults} pages asked for, {requests_duplicate} were on their way"),
        RecordRole::Destination => format!("{faults}, and {faults_shared} on a page that was waited for"),
    }
}

/// Quantiles of what was counted, if anything was.
fn latency(times: &LatencyHistogram) -> Option<String> {
    let quantile = |share| times.quantile_us(share).map(|us| show_us(us as f64));
    let (p50, p90, p99, p999) = (quantile(0.5)?, quantile(0.9)?, quantile(0.99)?, quantile(0.999)?);
    let max = show_us(times.max_us as f64);
    Some(format!("p50 <= {p50}, p90 <= {p90}, p99 <= {p99}, p99.9 <= {p999}, max {max}"))
}

/// Where a guest stands whose pages follow it, in one line.
pub fn progress(record: &MigrationRecord, followed: &Postcopy) -> String {
    let times = &followed.fault_latency;
    let waits = times.quantile_us(0.99).map(|us| format!(", p99 of their waits {}", show_us(us as f64)));
    format!(
        "{} of {} pages missing, {} faults{}",
        record.remaining_pages,
        followed.missing_pages,
        followed.faults,
        waits.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_tell_what_they_know() {
        let mut followed =
            Postcopy { missing_pages: 9, pages_push: 7, pages_fault: 2, ..Postcopy::default() };
        followed.last_page_ms = Some(12.0);
        followed.recoveries.push(Recovery { reason: "cut".into(), ..Default::default() });
        let text = |role, followed: &Postcopy| {
            let record =
                MigrationRecord { role, postcopy: Some(followed.clone()), ..MigrationRecord::default() };
            rows(&record).concat().join(" ")
        };
        let source = text(RecordRole::Source, &followed);
        for part in ["7 pushed, 2 by fault", "12", "and is still: cut"] {
            assert!(source.contains(part), "{part}: {source}");
        }
        assert!(!source.contains("latency"), "{source}");
        followed.fault_latency.add(std::time::Duration::from_micros(90));
        let destination = text(RecordRole::Destination, &followed);
        assert!(destination.contains("max 90"), "{destination}");
        assert!(rows(&MigrationRecord::default()).is_empty());
    }
}
