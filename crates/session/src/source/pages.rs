//! The page channels' threads at the source: from the engine's runs to frames on the wire.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::{self, JoinHandle};

use migrated_engine::source::{BATCH_RUNS, Encoding, Next, Sent, SourceEvent};
use migrated_guest::{GuestRam, PageClass as ScanClass};
use migrated_pages::PageRun;
use migrated_transport::{DataSender, TransportError};
use migrated_wire::{FrameHead, FrameKind, FrameRun, PageClass, SendPace, encode_run};
use parking_lot::MutexGuard;
use vm_memory::VolatileSlice;

use super::compress::Blocks;
use super::{Happening, Shared};
use crate::priority;
use crate::threads;
use crate::traffic::Odometer;

/// Which pages a channel carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// Any, in bulk.
    Page(u16),
    /// Those that somebody waits for.
    Urgent,
}

/// Starts a channel's thread. It ends with the engine, or with its channel.
pub(super) fn start(
    shared: &Arc<Shared>,
    events: &Sender<Happening>,
    ram: &GuestRam,
    lane: Lane,
    sender: Box<dyn DataSender>,
) -> JoinHandle<()> {
    let (shared, events, ram) = (shared.clone(), events.clone(), ram.clone());
    let mut thread = PageThread {
        lane,
        sender,
        shared,
        ram,
        head: Vec::new(),
        odometer: Odometer::default(),
        pace: SendPace::default(),
        encoding: Encoding::default(),
        blocks: Blocks::default(),
    };
    let name = match lane {
        Lane::Page(channel) => format!("src-page{channel}"),
        Lane::Urgent => "src-urgent".into(),
    };
    threads::start(name, move || {
        if lane == Lane::Urgent {
            priority::raise();
        }
        if let Err(error) = thread.run(&events) {
            // The session may have ended, which is why the channel did.
            let _ = events.send(Happening::Event(SourceEvent::LinkLost(error.to_string())));
        }
    })
}

struct PageThread {
    lane: Lane,
    sender: Box<dyn DataSender>,
    shared: Arc<Shared>,
    ram: GuestRam,
    /// A frame's head and table, reused.
    head: Vec<u8>,
    odometer: Odometer,
    /// How the transport was told to send.
    pace: SendPace,
    /// How the next batch is to travel.
    encoding: Encoding,
    blocks: Blocks,
}

impl PageThread {
    fn run(&mut self, events: &Sender<Happening>) -> Result<(), TransportError> {
        let mut runs = Vec::with_capacity(BATCH_RUNS);
        let mut classes = Vec::with_capacity(BATCH_RUNS);
        loop {
            runs.clear();
            match self.next(&mut runs) {
                Next::Pages { iteration } => {
                    let sent = self.send_pages(iteration, &runs, &mut classes)?;
                    self.report(sent);
                }
                Next::Hashes { iteration } => {
                    self.set_pace(SendPace::default());
                    for run in &runs {
                        self.send_hashes(iteration, *run)?;
                    }
                }
                Next::Marker { iteration, pages } => {
                    self.head.clear();
                    FrameHead::marker(iteration, pages).encode(&mut self.head);
                    self.send(&[])?;
                    self.shared.engine.lock().marker_sent(self.shared.clock.now());
                    // The engine may have something to say now, and the session's thread waits for events.
                    let _ = events.send(Happening::Event(SourceEvent::Tick));
                }
                Next::Ended => return Ok(()),
                Next::Wait | Next::WaitUntil(_) => {}
            }
        }
    }

    /// Tells the engine of a batch that was handed to the transport, and what the transport knows of the way.
    fn report(&mut self, sent: Sent) {
        let channel = match self.lane {
            Lane::Page(channel) => Some(channel),
            Lane::Urgent => None,
        };
        let path = self.sender.path();
        let now = self.shared.clock.now();
        let mut engine = self.shared.engine.lock();
        engine.batch_sent(now, sent);
        if let Some(sample) = path {
            engine.path_seen(now, channel, &sample);
        }
        let (pace, encoding) = (engine.lane_pace(), engine.lane_encoding());
        drop(engine);
        if self.lane != Lane::Urgent {
            self.set_pace(pace);
            self.encoding = encoding;
        }
    }

    fn set_pace(&mut self, pace: SendPace) {
        if self.pace != pace {
            self.sender.set_pace(pace);
            self.pace = pace;
        }
    }

    /// The next piece of work; waits where the engine says so.
    fn next(&self, runs: &mut Vec<PageRun>) -> Next {
        let mut engine = self.shared.engine.lock();
        if self.lane != Lane::Urgent && engine.has_urgent() {
            // Its thread is awake, and may be waiting for this core or this lock.
            MutexGuard::unlocked(&mut engine, thread::yield_now);
        }
        loop {
            let (next, work) = match self.lane {
                Lane::Page(channel) => {
                    (engine.next_batch(self.shared.clock.now(), channel, runs), &self.shared.work)
                }
                Lane::Urgent => (engine.next_urgent(runs), &self.shared.urgent_work),
            };
            match next {
                Next::Wait => work.wait(&mut engine),
                Next::WaitUntil(at) => _ = work.wait_until(&mut engine, self.shared.clock.instant(at)),
                next => return next,
            }
        }
    }

    /// Zero pages become runs without bytes; the others go from guest RAM to the socket, or are compressed on the way. The
    /// pages' dirty bits were cleared before these runs were handed out: what the guest writes from then on comes again.
    fn send_pages(
        &mut self,
        iteration: u32,
        runs: &[PageRun],
        classes: &mut Vec<(PageRun, ScanClass)>,
    ) -> Result<Sent, TransportError> {
        let began = self.shared.clock.now();
        classes.clear();
        runs.iter().for_each(|run| self.ram.split_zero(*run, classes));
        let mut sent = Sent { lz4: self.blocks.fill(&self.ram, classes, self.encoding), ..Sent::default() };
        let ram = self.ram.clone();
        let mut payload = Vec::with_capacity(classes.len() + 1);
        self.head.clear();
        let count = self.blocks.runs().len() as u32;
        FrameHead { kind: FrameKind::Pages, iteration, runs: count, pages: 0 }.encode(&mut self.head);
        for run in self.blocks.runs() {
            encode_run(run, &mut self.head);
            match run.class {
                PageClass::Zero => sent.zero_pages += run.pages.count,
                PageClass::Data => {
                    sent.data_pages += run.pages.count;
                    sent.bytes += run.pages.bytes();
                    payload.push(ram.slice(run.pages));
                }
                PageClass::Lz4 { len } => {
                    sent.data_pages += run.pages.count;
                    sent.bytes += u64::from(len);
                }
            }
        }
        payload.extend(self.blocks.payload());
        let ready = self.shared.clock.now();
        let result = self.sender.send(&self.head, &payload);
        drop(payload);
        self.count_sent();
        let done = self.shared.clock.now();
        (sent.busy, sent.sending) = (done.saturating_sub(began), done.saturating_sub(ready));
        result.map(|()| sent)
    }

    fn send_hashes(&mut self, iteration: u32, pages: PageRun) -> Result<(), TransportError> {
        let mut hashes = Vec::with_capacity(pages.count as usize);
        self.ram.hash_pages(pages, &mut hashes);
        self.head.clear();
        FrameHead { kind: FrameKind::Hashes, iteration, runs: 1, pages: 0 }.encode(&mut self.head);
        encode_run(&FrameRun { pages, class: PageClass::Data }, &mut self.head);
        hashes.iter().for_each(|hash| self.head.extend_from_slice(&hash.to_le_bytes()));
        self.send(&[])
    }

    fn send(&mut self, payload: &[VolatileSlice<'_>]) -> Result<(), TransportError> {
        let result = self.sender.send(&self.head, payload);
        self.count_sent();
        result
    }

    fn count_sent(&mut self) {
        self.shared.traffic.add_sent(self.odometer.advance(self.sender.bytes_sent()));
    }
}
