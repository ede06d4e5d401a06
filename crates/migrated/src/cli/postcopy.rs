//! What happened to pages that followed a guest, for people.

use migrated_api::{LatencyHistogram, MigrationRecord, Postcopy, RecordRole, Recovery, ThreadWaits};

use crate::units::{show_bit_rate, show_us};

/// Rows of a report: none where no page followed the guest.
pub fn rows(record: &MigrationRecord) -> Vec<Vec<String>> {
    let Some(followed) = &record.postcopy else { return Vec::new() };
    let mut rows = vec![vec!["post-copy".into(), pages(followed, record.role)]];
    let mut row = |name: &str, value: Option<String>| {
        rows.extend(value.map(|value| vec![name.to_owned(), value]));
    };
    row("faults", Some(faults(followed, record.role)));
    row("fault latency", latency(&followed.fault_latency));
    let parts = &followed.fault_parts;
    row("  request", latency(&parts.request));
    row("  wire", latency(&parts.wire));
    row("  place", latency(&parts.place));
    row("  wake", latency(&parts.wake));
    row("blocked", blocked(followed));
    row("push", push(followed));
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
    let Postcopy {
        faults, faults_shared, requests_duplicate, faults_per_second, faults_per_second_peak, ..
    } = followed;
    match role {
        RecordRole::Source => format!("{faults} pages asked for, {requests_duplicate} were on their way"),
        RecordRole::Destination => format!(
            "{faults}, and {faults_shared} on a page that was waited for; {faults_per_second:.0} a second, \
             at most {faults_per_second_peak:.0}"
        ),
    }
}

/// How long whom missing pages kept waiting.
fn blocked(followed: &Postcopy) -> Option<String> {
    let threads = followed.blocked.iter().map(|thread| {
        let ThreadWaits { thread, name, faults, blocked_us } = thread;
        let name = if name.is_empty() { format!("thread {thread}") } else { name.clone() };
        format!("{name} {} in {faults} faults", show_us(*blocked_us))
    });
    let threads: Vec<_> = threads.collect();
    let all = format!("all at once {}", show_us(followed.all_blocked_us));
    (!threads.is_empty()).then(|| format!("{}; {all}", threads.join(", ")))
}

/// To what the background push was limited, and why.
fn push(followed: &Postcopy) -> Option<String> {
    let push = format!("limited to {}", show_bit_rate(followed.push_bps?));
    Some(match followed.link_bps {
        Some(link) => format!("{push}, as queues stood on the way at {}", show_bit_rate(link)),
        None => push,
    })
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
        followed.fault_parts.wire.add(std::time::Duration::from_micros(70));
        followed.push_bps = Some(970e6);
        let waits = ThreadWaits { name: "vcpu1:g".into(), faults: 3, blocked_us: 2e3, ..Default::default() };
        followed.blocked.push(waits);
        let destination = text(RecordRole::Destination, &followed);
        for part in ["max 90", "wire p50 <= 70", "vcpu1:g 2", "in 3 faults", "limited to 970"] {
            assert!(destination.contains(part), "{part}: {destination}");
        }
        assert!(rows(&MigrationRecord::default()).is_empty());
    }
}
