//! Virtio's memory balloon (virtio 1.3, section 5.5): the guest gives RAM to the host, because it is asked to
//! (inflate) or because it has no use for it just now (free page reporting).

mod control;
mod free_pages;
mod requests;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use rustix::event::PollFlags;
use serde::{Deserialize, Serialize};

use super::{DeviceError, DeviceKind, Queues, Served, VirtioDevice, Watched};
use crate::state::section::{decode, encode};

pub(crate) use control::BalloonControl;
pub use control::BalloonStatus;
pub(crate) use free_pages::FreePages;
use requests::{BUDGET, Position, Progress};

/// The balloon takes pages even from a guest that runs out of memory, and then gives them back by itself.
const VIRTIO_BALLOON_F_DEFLATE_ON_OOM: u64 = 1 << 2;
/// The driver says what it fills free pages with.
const VIRTIO_BALLOON_F_PAGE_POISON: u64 = 1 << 4;
/// The driver reports free pages.
const VIRTIO_BALLOON_F_REPORTING: u64 = 1 << 5;

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
/// Reports come in queue 4 by the specification. Linux does not count queues of features that are not there
/// (statistics and hints, 2 and 3), so with many of its versions they come in queue 2.
const REPORTS: [usize; 2] = [2, 4];
/// Linux wants room for 32 buffers of a report, and puts 256 page numbers into one.
const QUEUE_SIZES: [u16; 5] = [128; 5];

/// Offsets of `struct virtio_balloon_config` (include/uapi/linux/virtio_balloon.h), all fields little-endian u32.
const NUM_PAGES: usize = 0;
const ACTUAL: usize = 4;
const POISON_VAL: usize = 12;
const CONFIG_LEN: usize = 16;

/// A guest's balloon.
#[derive(Debug)]
pub(crate) struct Balloon {
    pages: FreePages,
    control: Arc<BalloonControl>,
    features: u64,
    /// What the guest fills free pages with, if it accepted [`VIRTIO_BALLOON_F_PAGE_POISON`].
    poison: u32,
    positions: [Position; QUEUE_SIZES.len()],
    /// That the kernel did not take a page has been logged.
    complained: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct State {
    target: u32,
    actual: u32,
    poison: u32,
    given_back_bytes: u64,
}

impl Balloon {
    pub(crate) fn new(pages: FreePages, control: Arc<BalloonControl>) -> Self {
        let positions = [Position::default(); QUEUE_SIZES.len()];
        Self { pages, control, features: 0, poison: 0, positions, complained: false }
    }

    fn config(&self) -> [u8; CONFIG_LEN] {
        let mut config = [0; CONFIG_LEN];
        let fields =
            [(NUM_PAGES, self.control.target()), (ACTUAL, self.control.actual()), (POISON_VAL, self.poison)];
        for (offset, value) in fields {
            config[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
        }
        config
    }

    /// Whether free pages may come back as zero. Linux keeps what it writes into pages as it frees them, to find
    /// out who writes them later (page_poison), and then wants to see it again; but zeros (init_on_free) are just what
    /// it gets. A driver that fills free pages and can't say so doesn't report them.
    fn may_zero(&self) -> bool {
        self.features & VIRTIO_BALLOON_F_PAGE_POISON == 0 || self.poison == 0
    }

    fn serve_pages(&mut self, queue: usize, queues: &mut Queues<'_>) -> Result<Served, DeviceError> {
        let Self { pages, control, positions, complained, .. } = self;
        let mut free = |address, len| match pages.give_back(address, len) {
            Ok(bytes) => control.add_given_back(bytes),
            // The page keeps its content, and the guest need not know.
            Err(error) if !*complained => {
                tracing::warn!("the host does not take free pages of the guest back: {error}");
                *complained = true;
            }
            Err(_) => {}
        };
        let (at, mut budget) = (&mut positions[queue], BUDGET);
        let mut served = Served::More;
        while budget > 0 {
            let Some(chain) = queues.take(queue)? else {
                served = Served::All;
                break;
            };
            // An empty request costs as well.
            budget -= 1;
            let head = chain.head_index();
            let progress = if queue == INFLATE {
                requests::inflate(queue, chain, queues.memory(), at, &mut budget, &mut free)?
            } else {
                requests::report(chain, at, &mut budget, &mut free)
            };
            if progress == Progress::Partly {
                queues.put_back(queue);
                break;
            }
            *at = Position::default();
            queues.complete(queue, head, 0)?;
        }
        queues.interrupt(queue)?;
        Ok(served)
    }
}

impl VirtioDevice for Balloon {
    fn kind(&self) -> DeviceKind {
        // PCI: a device that fits into no class.
        DeviceKind { id: 5, name: "balloon", pci_class: 0x00ff00, version: 1 }
    }

    fn features(&self) -> u64 {
        VIRTIO_BALLOON_F_DEFLATE_ON_OOM | VIRTIO_BALLOON_F_PAGE_POISON | VIRTIO_BALLOON_F_REPORTING
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.config();
        let from = config.get(offset as usize..).unwrap_or_default();
        let len = from.len().min(data.len());
        let (known, past) = data.split_at_mut(len);
        known.copy_from_slice(&from[..len]);
        past.fill(0);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let mut config = self.config();
        let Some(to) = config.get_mut(offset as usize..) else { return };
        let len = to.len().min(data.len());
        to[..len].copy_from_slice(&data[..len]);
        let field = |offset: usize| {
            u32::from_le_bytes(config[offset..offset + 4].try_into().expect("a field has 4 bytes"))
        };
        self.control.store_actual(field(ACTUAL));
        self.poison = field(POISON_VAL);
    }

    fn activate(&mut self, features: u64) {
        self.features = features;
        self.control.set_driven(true);
    }

    fn reset(&mut self) {
        self.features = 0;
        self.poison = 0;
        self.positions = Default::default();
        self.control.store_actual(0);
        self.control.set_driven(false);
    }

    fn serve_queue(&mut self, queue: usize, queues: &mut Queues<'_>) -> Result<Served, DeviceError> {
        match queue {
            INFLATE => self.serve_pages(queue, queues),
            // The guest simply uses them again.
            DEFLATE => queues.serve(queue, |_, _| Ok(0)),
            _ if !REPORTS.contains(&queue) => Ok(Served::All),
            _ if self.may_zero() => self.serve_pages(queue, queues),
            _ => queues.serve(queue, |_, _| Ok(0)),
        }
    }

    fn watched(&self, watched: &mut Vec<Watched>) {
        watched.push(Watched { fd: self.control.changed().clone(), interest: PollFlags::IN, token: 0 });
    }

    fn serve_host(&mut self, _token: usize, queues: &mut Queues<'_>) -> Result<(), DeviceError> {
        self.control.take_change();
        queues.config_changed();
        Ok(())
    }

    /// The target may have changed just before the guest left, and nobody told it.
    fn arrived(&mut self, queues: &mut Queues<'_>) -> Result<(), DeviceError> {
        if self.control.target() != self.control.actual() {
            queues.config_changed();
        }
        Ok(())
    }

    fn save(&self) -> Vec<u8> {
        encode(&State {
            target: self.control.target(),
            actual: self.control.actual(),
            poison: self.poison,
            given_back_bytes: self.control.given_back_bytes(),
        })
    }

    fn restore(&mut self, data: &[u8]) -> Result<(), String> {
        let State { target, actual, poison, given_back_bytes } = decode(data)?;
        if u64::from(target) > self.pages.total() {
            return Err(format!(
                "the balloon is to have {target} pages, the guest has {}",
                self.pages.total()
            ));
        }
        self.control.store_target(target);
        // What the driver says of itself may be anything.
        self.control.store_actual(actual);
        self.control.store_given_back(given_back_bytes);
        self.poison = poison;
        self.positions = Default::default();
        Ok(())
    }
}
