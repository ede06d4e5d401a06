//! The page channels' threads at the destination: from frames on the wire to pages in place.

use std::sync::Arc;

use migrated_engine::destination::{DestinationEvent, Due};
use migrated_pages::PageRun;
use migrated_transport::DataReceiver;
use migrated_wire::{
    FRAME_HEAD_LEN, FrameHead, FrameRun, MAX_HASH_PAGES, MAX_RUNS, PageClass, RUN_LEN, VerifyWhen,
    decode_table,
};
use vm_memory::VolatileSlice;

use super::Shared;
use super::blocks::BlockReader;
use super::link::LinkEvents;
use crate::error::ChannelFault;
use crate::priority;
use crate::threads;
use crate::traffic::Odometer;

/// Which pages a channel brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lane {
    /// Any, in bulk.
    Page(u16),
    /// Those that somebody waits for.
    Urgent,
}

/// Starts the thread of a page channel. It ends with its channel.
pub(super) fn start(shared: &Arc<Shared>, events: LinkEvents, lane: Lane, receiver: Box<dyn DataReceiver>) {
    let mut thread = PageThread {
        lane,
        receiver,
        shared: shared.clone(),
        events,
        table: vec![0; MAX_RUNS * RUN_LEN].into_boxed_slice(),
        runs: Vec::new(),
        blocks: BlockReader::new(),
        hashes: Vec::new(),
        odometer: Odometer::default(),
    };
    let name = match lane {
        Lane::Page(channel) => format!("dst-page{channel}"),
        Lane::Urgent => "dst-urgent".into(),
    };
    threads::start(name, move || {
        if lane == Lane::Urgent {
            priority::raise();
        }
        let event = match thread.run() {
            ChannelFault::Lost(reason) => DestinationEvent::PagesLost(reason),
            ChannelFault::Misbehaved(what) => DestinationEvent::PeerMisbehaved(what),
        };
        thread.shared.restoring.link_ended(thread.events.link);
        // The session may have ended, which is why the channel did.
        thread.events.send(event);
    });
}

/// The runs whose pages are in a frame's payload, in the order in which they are there.
pub(super) fn payload_runs(runs: &[FrameRun]) -> impl Iterator<Item = PageRun> + Clone {
    let whole = runs.iter().filter(|run| run.class == PageClass::Data);
    let compressed = runs.iter().filter(|run| matches!(run.class, PageClass::Lz4 { .. }));
    whole.chain(compressed).map(|run| run.pages)
}

pub(super) struct PageThread {
    lane: Lane,
    pub(super) receiver: Box<dyn DataReceiver>,
    pub(super) shared: Arc<Shared>,
    pub(super) events: LinkEvents,
    /// Space for the longest table, so that a frame allocates nothing.
    table: Box<[u8]>,
    pub(super) runs: Vec<FrameRun>,
    pub(super) blocks: BlockReader,
    pub(super) hashes: Vec<u64>,
    odometer: Odometer,
}

impl PageThread {
    fn run(&mut self) -> ChannelFault {
        loop {
            let received = self.frame();
            self.shared.traffic.add_received(self.odometer.advance(self.receiver.bytes_received()));
            match received {
                Ok(None) => {}
                Ok(Some(marker)) => {
                    if !self.events.send(marker) {
                        return ChannelFault::Lost("the session is over".into());
                    }
                }
                Err(fault) => return fault,
            }
        }
    }

    /// Takes in one frame; a marker becomes an event. Nothing of a frame is read before what was read of it
    /// has been checked.
    fn frame(&mut self) -> Result<Option<DestinationEvent>, ChannelFault> {
        let mut head = [0; FRAME_HEAD_LEN];
        self.receiver.read_exact(&mut head)?;
        let head = FrameHead::decode(&head)?;
        let (channel, due) = {
            let engine = self.events.engine(&self.shared)?;
            match self.lane {
                Lane::Page(channel) => (channel, engine.admit(channel, &head)?),
                Lane::Urgent => (0, engine.admit_urgent(&head)?),
            }
        };
        let table = &mut self.table[..head.table_len()];
        self.receiver.read_exact(table)?;
        let payload = decode_table(&head, table, self.shared.ram.layout(), &mut self.runs)?;
        match due {
            Due::Marker => {
                let FrameHead { iteration, pages, .. } = head;
                return Ok(Some(DestinationEvent::Marker { channel, iteration, pages }));
            }
            Due::Pages => self.place(channel)?,
            Due::Following => self.follow()?,
            Due::Hashes => self.compare(channel, payload)?,
        }
        Ok(None)
    }

    /// Reads the payload straight into guest RAM, which nobody runs on yet.
    fn place(&mut self, channel: u16) -> Result<(), ChannelFault> {
        let ram = self.shared.placing().clone();
        let slices: Vec<_> = payload_runs(&self.runs).map(|run| ram.slice(run)).collect();
        self.events.engine(&self.shared)?.begin_placing();
        let whole = self.runs.iter().filter(|run| run.class == PageClass::Data).count();
        if let Err(fault) = self.read_payload(&slices, whole) {
            // What came of it must look like pages that never came: those are zero.
            payload_runs(&self.runs).for_each(|run| ram.zero_populated(run));
            let now = self.shared.clock.now();
            let news = self.shared.engine.lock().broke_off(now, payload_runs(&self.runs));
            self.wake_if(news);
            return Err(fault);
        }
        let zero_again = self.zero_again();
        zero_again.iter().for_each(|run| ram.zero_populated(*run));
        let mut engine = self.shared.engine.lock();
        if engine.verify() == VerifyWhen::After {
            // Hashing takes longer than the lock may be held; nobody else touches these pages.
            drop(engine);
            for run in &self.runs {
                match run.class {
                    PageClass::Data | PageClass::Lz4 { .. } => {
                        self.shared.hashes.record(&ram, run.pages, &mut self.hashes);
                    }
                    PageClass::Zero => self.shared.hashes.record_zero(run.pages),
                }
            }
            engine = self.shared.engine.lock();
        }
        let news = engine.placed(self.shared.clock.now(), channel, self.runs.iter().map(|run| run.pages));
        drop(engine);
        self.wake_if(news);
        Ok(())
    }

    /// Reads a frame's payload to where its pages belong. The first `whole` slices are for pages that come as they are, the
    /// others for those that are compressed.
    pub(super) fn read_payload(
        &mut self,
        slices: &[VolatileSlice<'_>],
        whole: usize,
    ) -> Result<(), ChannelFault> {
        let (whole, compressed) = slices.split_at(whole);
        if !whole.is_empty() {
            self.receiver.read_payload(whole)?;
        }
        self.blocks.read(self.receiver.as_mut(), &self.runs, compressed)
    }

    /// Makes the session look at what the engine wants done, if it wants something.
    pub(super) fn wake_if(&self, news: bool) {
        if news {
            self.events.wake();
        }
    }

    /// Zero pages that were placed before; the others are zero already.
    fn zero_again(&self) -> Vec<PageRun> {
        if !self.runs.iter().any(|run| run.class.is_zero()) {
            return Vec::new();
        }
        let engine = self.shared.engine.lock();
        let zero = self.runs.iter().filter(|run| run.class.is_zero()).map(|run| run.pages);
        let mut again: Vec<PageRun> = Vec::new();
        for run in zero {
            for page in (run.first..run.first + run.count).filter(|page| engine.has(run.block, *page)) {
                match again.last_mut() {
                    Some(last) if last.block == run.block && last.end() == Some(page) => last.count += 1,
                    _ => again.push(PageRun { first: page, count: 1, ..run }),
                }
            }
        }
        again
    }

    fn compare(&mut self, channel: u16, payload: usize) -> Result<(), ChannelFault> {
        let mut bytes = vec![0; payload.min(MAX_HASH_PAGES as usize * size_of::<u64>())];
        self.receiver.read_exact(&mut bytes)?;
        let ram = self.shared.placing().clone();
        self.hashes.clear();
        let placed = self.shared.engine.lock().verify() == VerifyWhen::After;
        for run in &self.runs {
            match placed {
                true => self.shared.hashes.placed(run.pages, &mut self.hashes),
                false => ram.hash_pages(run.pages, &mut self.hashes),
            }
        }
        let pages = self.runs.iter().flat_map(|run| {
            let run = run.pages;
            (run.first..run.first + run.count).map(move |page| (run.block, page))
        });
        let theirs = bytes.chunks_exact(size_of::<u64>());
        let (mut count, mut mismatches, mut detail) = (0, 0, None);
        for ((ours, theirs), (block, page)) in self.hashes.iter().zip(theirs).zip(pages) {
            count += 1;
            if ours.to_le_bytes() != *theirs {
                mismatches += 1;
                detail.get_or_insert_with(|| format!("page {page} of RAM block {}", block.0));
            }
        }
        self.shared.engine.lock().compared(channel, count, mismatches, detail);
        Ok(())
    }
}
