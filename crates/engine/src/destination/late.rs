use migrated_wire::{FIRST_PACKET_SINCE, LateInputs, ToSource};

use super::DestinationAction;
use super::common::Common;

impl Common {
    /// The source hands on what came there for the guest, which runs here. More than a migration carries is dropped.
    pub(super) fn deliver(&mut self, inputs: LateInputs) {
        let counts = &mut self.record.late_frames;
        let deliver = inputs.into_iter().filter(|input| {
            let carried = counts.has_room_for(input);
            counts.count(input, carried);
            carried
        });
        let deliver = deliver.collect();
        self.act(DestinationAction::Deliver(deliver));
    }

    /// Notes what was seen of the running guest, and gives what the source is told of it.
    pub(super) fn observed(
        &mut self,
        wire_received: u64,
        guest_gap_us: Option<u64>,
        first_packet_us: Option<u64>,
    ) -> Vec<ToSource> {
        self.record.guest_gap_us = guest_gap_us.map(|us| us as f64);
        self.record.first_packet_us = first_packet_us.map(|us| us as f64);
        let first_packet = first_packet_us
            .filter(|_| self.protocol >= FIRST_PACKET_SINCE)
            .map(|us| ToSource::FirstPacket { us });
        first_packet.into_iter().chain([ToSource::Summary { wire_received, guest_gap_us }]).collect()
    }
}
