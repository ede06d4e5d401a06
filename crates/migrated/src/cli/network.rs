//! What became of a guest's network in a move, for people.

use migrated_api::{LateFrames, MigrationRecord};

use crate::units::{show_bytes, show_us};

/// Rows of a report: none of a guest without a network.
pub fn rows(record: &MigrationRecord) -> Vec<Vec<String>> {
    let LateFrames { frames, bytes, dropped } = record.late_frames;
    let first = record.first_packet_us.map(|us| format!("{} after the guest ran again", show_us(us)));
    let late = (frames + dropped > 0)
        .then(|| format!("{frames} ({}) handed on to the destination, {dropped} dropped", show_bytes(bytes)));
    let row = |name: &str, value: Option<String>| value.map(|value| vec![name.to_owned(), value]);
    row("first packet", first).into_iter().chain(row("late frames", late)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_guest_with_a_network_has_rows() {
        assert!(rows(&MigrationRecord::default()).is_empty());
        let record = MigrationRecord {
            first_packet_us: Some(1500.0),
            late_frames: LateFrames { frames: 3, bytes: 180, dropped: 1 },
            ..MigrationRecord::default()
        };
        let text = rows(&record).concat().join(" ");
        for part in ["1.50 ms after the guest ran again", "3 (180 B) handed on", "1 dropped"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
