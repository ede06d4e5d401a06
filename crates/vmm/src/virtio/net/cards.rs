use std::time::Duration;

use migrated_guest::{LateDelivery, LateInput};

use super::NetHandle;

/// All of a guest's cards, for those who have to do with them while their workers stand still or go on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cards {
    /// Each with its slot on the bus, which is the same on every host.
    cards: Vec<(u32, NetHandle)>,
}

impl Cards {
    pub(crate) fn add(&mut self, slot: u32, card: NetHandle) {
        self.cards.push((slot, card));
    }

    /// What waits in the TAPs of a guest that runs elsewhere, `limit` bytes of it at most.
    pub(crate) fn late_input(&self, limit: usize) -> Vec<LateInput> {
        let mut left = limit;
        let mut inputs = Vec::new();
        for (slot, card) in &self.cards {
            for data in card.take_late(left) {
                left -= data.len();
                inputs.push(LateInput { device: *slot, data });
            }
        }
        inputs
    }

    /// The time from the guest's arrival to the first packet that any of its cards sent or was sent.
    pub(crate) fn first_packet(&self) -> Option<Duration> {
        self.cards.iter().filter_map(|(_, card)| card.first_packet()).min()
    }
}

impl LateDelivery for Cards {
    fn deliver(&mut self, inputs: Vec<LateInput>) {
        let given = inputs.len();
        let taken: usize = inputs
            .into_iter()
            .filter_map(|LateInput { device, data }| {
                let (_, card) = self.cards.iter().find(|(slot, _)| *slot == device)?;
                Some(card.deliver(vec![data]))
            })
            .sum();
        if taken < given {
            tracing::warn!(
                lost = given - taken,
                "late frames are lost: too many, or for no card of this guest"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::bench::{Cable, MAC, frame_to};
    use super::super::{MAX_FRAME, Net};
    use super::*;

    #[test]
    fn frames_find_their_card_and_no_other() {
        let cables = [Cable::new(), Cable::new()];
        let mut here = Cards::default();
        for (slot, cable) in (2..).zip(&cables) {
            cable.coming.lock().push_back(frame_to(MAC, 100 + slot as usize));
            here.add(slot, Net::new(MAC, None, cable.clone()).unwrap().handle());
        }
        let late = here.late_input(MAX_FRAME);
        assert_eq!(
            late.iter().map(|late| (late.device, late.data.len())).collect::<Vec<_>>(),
            [(2, 102), (3, 103)]
        );
        cables[1].coming.lock().extend([frame_to(MAC, 300), frame_to(MAC, 310)]);
        assert_eq!(here.late_input(400).len(), 1, "a limit for all of them");

        let mut there = Cards::default();
        let nets = [2, 3].map(|slot| (slot, Net::new(MAC, None, Cable::new()).unwrap()));
        nets.iter().for_each(|(slot, net)| there.add(*slot, net.handle()));
        let stray = LateInput { device: 4, data: frame_to(MAC, 60) };
        there.deliver([late, vec![stray]].concat());
        for (slot, net) in nets {
            assert_eq!(net.handle().delivered(), [frame_to(MAC, 100 + slot as usize)]);
        }
    }
}
