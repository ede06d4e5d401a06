use migrated_wire::{FrameHead, FrameKind, ToDestination, VerifyWhen};

use super::common::Common;
use super::lanes::{Lanes, Mark};
use super::{DestinationEvent, State};
use crate::record::Verify;

/// The guest runs here; nothing that happens to the link can change that.
pub(super) struct Running {
    lanes: Lanes,
    /// The iteration of pages that followed the guest: some were sent twice and may still come.
    late: Option<u32>,
    hashes_sent: Option<u64>,
    hashes_here: bool,
    compares: bool,
}

impl Running {
    pub(super) fn begin(lanes: Lanes, verify: VerifyWhen) -> Self {
        let compares = verify == VerifyWhen::After;
        Self { lanes, late: None, hashes_sent: None, hashes_here: false, compares }
    }

    /// All pages that followed the guest in this iteration are here.
    pub(super) fn after(iteration: u32, channels: u16, verify: VerifyWhen) -> Self {
        Self { late: Some(iteration), ..Self::begin(Lanes::at(channels, iteration + 1), verify) }
    }

    /// Whether the frame brings pages that are here already.
    pub(super) fn is_late(&self, head: &FrameHead) -> bool {
        head.kind == FrameKind::Pages && self.late == Some(head.iteration)
    }

    pub(super) const fn lanes(&self) -> &Lanes {
        &self.lanes
    }

    pub(super) const fn lanes_mut(&mut self) -> &mut Lanes {
        &mut self.lanes
    }

    pub(super) fn on(mut self: Box<Self>, common: &mut Common, event: DestinationEvent) -> State {
        match event {
            DestinationEvent::Marker { channel, iteration, pages } => {
                match self.lanes.mark(channel, iteration, pages) {
                    Mark::Partial => {}
                    Mark::Complete { .. } => self.hashes_here = true,
                    Mark::Wrong(_) => return common.end(Ok(())),
                }
                self.report_when_complete(common);
            }
            DestinationEvent::Message(ToDestination::HashesSent { pages }) => {
                self.hashes_sent = Some(pages);
                self.report_when_complete(common);
            }
            DestinationEvent::Observed { wire_received, guest_gap_us, first_packet_us } => {
                for message in common.observed(wire_received, guest_gap_us, first_packet_us) {
                    common.send(message);
                }
            }
            DestinationEvent::Message(ToDestination::LateInput(inputs)) => common.deliver(inputs),
            DestinationEvent::Message(ToDestination::Goodbye) => {
                common.goodbye = true;
                return common.end(Ok(()));
            }
            DestinationEvent::LinkLost(_) | DestinationEvent::PeerMisbehaved(_) => return common.end(Ok(())),
            DestinationEvent::PagesLost(_) if self.compares => return common.end(Ok(())),
            DestinationEvent::Tick if common.silence().is_some() => return common.end(Ok(())),
            _ => {}
        }
        State::Running(self)
    }

    fn report_when_complete(&mut self, common: &mut Common) {
        if self.compares && self.hashes_here && self.hashes_sent.is_some() {
            self.compares = false;
            common.report_comparison(Verify::After);
        }
    }
}
