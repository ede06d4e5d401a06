//! What is counted of a migration when it ends.

use metrics::{Histogram, counter, histogram};
use migrated_api::{
    Encodings, FaultParts, LatencyHistogram, MigrationRecord, MigrationState, Mode, Postcopy, RecordRole,
};

use super::{
    BYTES, DIRTY_RATE, DOWNTIME_SECONDS, FIRST_PACKET_SECONDS, ITERATIONS, LATE_FRAMES, MIGRATION_SECONDS,
    MIGRATIONS, POSTCOPY_BLOCKED_SECONDS, POSTCOPY_FAULT_PART_SECONDS, POSTCOPY_FAULT_SECONDS,
    POSTCOPY_FAULTS, POSTCOPY_LINK_LOSSES, POSTCOPY_PAGES, POSTCOPY_SECONDS, PRECOPY_LINK_LOSSES,
    SETUP_SECONDS, THROTTLED_SECONDS, THROUGHPUT, WIRE_RATIO, role,
};

/// Counts it, with the recorder that is set.
pub fn count(record: &MigrationRecord) {
    let outcome = record.state.map_or("unknown", MigrationState::name);
    let mode = mode(record);
    counter!(MIGRATIONS, "role" => role(record.role), "mode" => mode, "outcome" => outcome).increment(1);
    counter!(PRECOPY_LINK_LOSSES, "role" => role(record.role)).increment(record.reconnects.len() as u64);
    if let Some(followed) = &record.postcopy {
        count_followed(record.role, mode, followed);
    }
    for (fate, frames) in [("carried", record.late_frames.frames), ("dropped", record.late_frames.dropped)] {
        counter!(LATE_FRAMES, "role" => role(record.role), "fate" => fate).increment(frames);
    }
    if record.role != RecordRole::Source {
        // Measured here; the source's record repeats it.
        if let Some(us) = record.first_packet_us {
            histogram!(FIRST_PACKET_SECONDS, "mode" => mode).record(us / 1e6);
        }
        return;
    }
    histogram!(MIGRATION_SECONDS, "mode" => mode, "outcome" => outcome).record(record.total_ms / 1e3);
    let data = record.iterations.iter().map(|iteration| iteration.bytes).sum::<u64>();
    let zero = record.ram.pages_zero.saturating_mul(PAGE_SIZE);
    let Encodings { lz4, saved_bytes, .. } = record.encodings;
    counter!(BYTES, "class" => "data").increment(data.saturating_sub(lz4.bytes));
    counter!(BYTES, "class" => "lz4").increment(lz4.bytes);
    counter!(BYTES, "class" => "saved").increment(saved_bytes);
    counter!(BYTES, "class" => "zero").increment(zero);
    counter!(BYTES, "class" => "state").increment(record.wire_bytes.sent.saturating_sub(data));
    if let Some(throttled) = &record.throttle {
        histogram!(THROTTLED_SECONDS, "mode" => mode).record(throttled.lost_ms / 1e3);
    }
    for iteration in &record.iterations {
        histogram!(DIRTY_RATE).record(iteration.dirty_rate_pps);
    }
    if record.state == Some(MigrationState::Completed) {
        completed(record, mode);
    }
}

fn count_followed(end: RecordRole, mode: &'static str, followed: &Postcopy) {
    counter!(POSTCOPY_LINK_LOSSES, "role" => role(end)).increment(followed.recoveries.len() as u64);
    match end {
        RecordRole::Source => {
            let pages = [
                ("push", followed.pages_push),
                ("fault", followed.pages_fault),
                ("prefetch", followed.pages_prefetch),
            ];
            for (why, pages) in pages {
                counter!(POSTCOPY_PAGES, "why" => why).increment(pages);
            }
            if let Some(ms) = followed.last_page_ms {
                histogram!(POSTCOPY_SECONDS, "mode" => mode).record(ms / 1e3);
            }
        }
        RecordRole::Destination => {
            counter!(POSTCOPY_FAULTS).increment(followed.faults);
            record_times(&histogram!(POSTCOPY_FAULT_SECONDS), &followed.fault_latency);
            let FaultParts { request, wire, place, wake } = &followed.fault_parts;
            for (part, times) in [("request", request), ("wire", wire), ("place", place), ("wake", wake)] {
                record_times(&histogram!(POSTCOPY_FAULT_PART_SECONDS, "part" => part), times);
            }
            for thread in &followed.blocked {
                histogram!(POSTCOPY_BLOCKED_SECONDS, "who" => "each").record(thread.blocked_us / 1e6);
            }
            if !followed.blocked.is_empty() {
                histogram!(POSTCOPY_BLOCKED_SECONDS, "who" => "all").record(followed.all_blocked_us / 1e6);
            }
        }
    }
}

/// Each time as the bound of its bucket.
fn record_times(to: &Histogram, times: &LatencyHistogram) {
    for (bucket, times) in times.buckets.iter().enumerate() {
        to.record_many((1u64 << bucket) as f64 / 1e6, *times as usize);
    }
}

/// A page as records count them, in bytes.
const PAGE_SIZE: u64 = 4096;

fn completed(record: &MigrationRecord, mode: &'static str) {
    let downtime = &record.downtime_us;
    let parts = [
        ("total", downtime.total),
        ("pause", downtime.pause),
        ("final_pages", downtime.final_pages),
        ("export", downtime.export),
        ("send", downtime.send),
        ("import", downtime.import),
        ("resume", downtime.resume),
    ];
    for (part, us) in parts {
        histogram!(DOWNTIME_SECONDS, "mode" => mode, "part" => part).record(us / 1e6);
    }
    histogram!(SETUP_SECONDS, "mode" => mode).record(record.setup_ms / 1e3);
    histogram!(THROUGHPUT, "transport" => record.transport.clone()).record(record.throughput_bps);
    histogram!(ITERATIONS, "mode" => mode).record(record.iterations.len() as f64);
    if record.ram.bytes > 0 {
        let ratio = record.wire_bytes.sent as f64 / record.ram.bytes as f64;
        histogram!(WIRE_RATIO, "mode" => mode).record(ratio);
    }
}

const fn mode(record: &MigrationRecord) -> &'static str {
    match record.mode {
        Mode::Precopy => "precopy",
        Mode::Postcopy => "postcopy",
        Mode::Hybrid => "hybrid",
        Mode::Auto => "auto",
    }
}

#[cfg(test)]
mod tests {
    use migrated_api::LateFrames;

    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn a_guests_first_packet_is_counted_where_it_was_measured_and_late_frames_at_both_ends() {
        let metrics = Metrics::new().unwrap();
        let late_frames = LateFrames { frames: 5, bytes: 300, dropped: 2 };
        let of = |role, mode| MigrationRecord {
            role,
            mode,
            state: Some(MigrationState::Completed),
            first_packet_us: Some(700.0),
            late_frames,
            ..MigrationRecord::default()
        };
        metrics.migration_ended(&of(RecordRole::Source, Mode::Hybrid));
        metrics.migration_ended(&of(RecordRole::Destination, Mode::Precopy));
        let text = metrics.render(&[], &[], &[], 0.0, 0);
        for counted in [
            "migrated_late_frames_total{role=\"source\",fate=\"carried\"} 5\n",
            "migrated_late_frames_total{role=\"destination\",fate=\"carried\"} 5\n",
            "migrated_late_frames_total{role=\"destination\",fate=\"dropped\"} 2\n",
            "migrated_first_packet_seconds_count{mode=\"precopy\"} 1\n",
        ] {
            assert!(text.contains(counted), "{counted} is not in {text}");
        }
        assert!(!text.contains("migrated_first_packet_seconds_count{mode=\"hybrid\"}"));
    }
}
