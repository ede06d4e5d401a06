//! Second-stage page tables for pages that have come, before the guest runs.
//!
//! A guest that arrives has all its memory and no page tables for it in KVM: the first access to each page leaves
//! guest mode, a microsecond on hardware and far more under nested virtualization, and all of a working set's
//! come at once, right behind the downtime. While rounds still go on, a thread makes them (KVM_PRE_FAULT_MEMORY)
//! for what a round has brought; later rounds overwrite the same pages in place. It holds a vCPU for a piece at
//! a time, so that whoever needs that waits little, and it only reads: a page without memory stays without.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use migrated_guest::GuestRam;
use migrated_kernel::{can_pre_fault, pre_fault};
use migrated_pages::{PAGE_SIZE, PageSet};

use crate::state::Hardware;
use crate::vcpu::Vcpu;

/// Pages that are mapped at a time: a huge page's worth.
const PIECE: u64 = 512;

/// The thread, while it has something to do.
#[derive(Debug, Default)]
pub(crate) struct WarmUp(Option<Running>);

#[derive(Debug)]
struct Running {
    pages: Sender<PageSet>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl WarmUp {
    /// Begins with these pages, or does so after those that it has.
    pub(crate) fn add(&mut self, hardware: &Hardware, ram: &GuestRam, pages: PageSet) {
        if !can_pre_fault(&hardware.vm) {
            return;
        }
        if self.0.is_none() {
            self.0 = Running::start(hardware.vcpus[0].clone(), ram.clone());
        }
        if let Some(running) = &self.0 {
            // It ends early only where KVM refuses, and then there is nothing to add.
            let _ = running.pages.send(pages);
        }
    }

    /// Ends it, however far it has come; at once but for the piece in hand.
    pub(crate) fn stop(&mut self) {
        if let Some(Running { pages, stop, thread }) = self.0.take() {
            stop.store(true, Ordering::Relaxed);
            drop(pages);
            if thread.join().is_err() {
                tracing::error!("the thread that makes page tables panicked");
            }
        }
    }
}

impl Drop for WarmUp {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Running {
    fn start(vcpu: Vcpu, ram: GuestRam) -> Option<Self> {
        let (pages, coming) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::Builder::new()
            .name("warm-up".into())
            .spawn(move || warm_up(&vcpu, &ram, &coming, &stopped))
            .inspect_err(|error| tracing::warn!("no thread for page tables: {error}"))
            .ok()?;
        Some(Self { pages, stop, thread })
    }
}

fn warm_up(vcpu: &Vcpu, ram: &GuestRam, coming: &Receiver<PageSet>, stop: &AtomicBool) {
    let mut done = PageSet::empty(ram.layout());
    let mut parts = Vec::new();
    for pages in coming {
        for run in pages.runs() {
            parts.clear();
            ram.populated(run, &mut parts);
            for piece in parts.iter().flat_map(|part| part.pieces(PIECE)) {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                // All of them were mapped by an earlier round, unless one is new.
                if done.insert(piece) == 0 {
                    continue;
                }
                let base = ram.layout().blocks()[piece.block.index()].guest_base;
                let gpa = base + piece.first * PAGE_SIZE as u64;
                if let Err(error) = pre_fault(&vcpu.lock(), gpa, piece.bytes()) {
                    tracing::debug!("page tables are left to the guest: {error}");
                    return;
                }
            }
        }
    }
}
