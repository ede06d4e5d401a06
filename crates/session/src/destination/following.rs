//! Frames of pages that follow a guest which runs here.

use migrated_engine::destination::Arrived;
use migrated_pages::PageRun;
use migrated_wire::{PageClass, VerifyWhen};
use vm_memory::VolatileSlice;

use super::pages::{PageThread, payload_runs};
use crate::error::ChannelFault;

impl PageThread {
    /// Receives pages straight to where they belong, by the second mapping, and lets the guest have them. What
    /// is here already is read and thrown away: the guest may have written to it.
    pub(super) fn follow(&mut self) -> Result<(), ChannelFault> {
        let shared = self.shared.clone();
        let Some(following) = shared.following.get() else {
            return Err(ChannelFault::Misbehaved("pages came before they could be missing".into()));
        };
        let mut claimed = Vec::new();
        let verify = {
            let mut engine = self.events.engine(&shared)?;
            engine.claim(self.runs.iter().map(|run| run.pages), &mut claimed);
            engine.verify()
        };
        let claim = following.ram.claim(payload_runs(&self.runs));
        let mut slices = Vec::new();
        claim.slices(&mut slices);
        let whole = self.runs.iter().filter(|run| run.class == PageClass::Data);
        let whole = slices_of(whole.map(|run| run.pages.bytes()).sum(), &slices);
        let mut placed = Vec::new();
        let received = self.read_payload(&slices, whole);
        let read = shared.clock.now();
        let mut arrived = Arrived { read, ready: read, woken: read };
        let result = received.and_then(|()| {
            if verify == VerifyWhen::After {
                // From the moment that they are placed the guest writes them.
                claim.runs().for_each(|run| {
                    shared.hashes.record(following.ram.staging(), run, &mut self.hashes);
                });
            }
            arrived.ready = shared.clock.now();
            let failed = |error: migrated_guest::PostcopyError| ChannelFault::Lost(error.to_string());
            claim.place(&mut placed).map_err(failed)?;
            let data = placed.len();
            self.runs
                .iter()
                .filter(|run| run.class.is_zero())
                .try_for_each(|run| following.ram.place_zero(run.pages, &mut placed))
                .map_err(failed)?;
            arrived.woken = shared.clock.now();
            if verify == VerifyWhen::After {
                placed[data..].iter().for_each(|run| shared.hashes.record_zero(*run));
            }
            Ok(())
        });
        self.account(arrived, &placed, &claimed);
        result
    }

    /// Tells the engine what was placed and what was not.
    fn account(&self, arrived: Arrived, placed: &[PageRun], claimed: &[PageRun]) {
        let shared = &self.shared;
        let pages = |runs: &[PageRun]| runs.iter().map(|run| run.count).sum::<u64>();
        let (news, request) = {
            let now = shared.clock.now();
            let mut engine = shared.engine.lock();
            let mut news = engine.placed_claims(now, arrived, placed.iter().copied());
            if pages(placed) < pages(claimed) {
                news |= engine.unclaim(now, claimed.iter().copied());
            }
            (news, engine.take_request(now))
        };
        self.wake_if(news);
        shared.send_requests(request);
    }
}

/// How many slices hold the first `bytes` bytes. A claim has no slice for pages of two runs.
fn slices_of(bytes: u64, slices: &[VolatileSlice<'_>]) -> usize {
    let mut left = bytes;
    slices
        .iter()
        .take_while(|slice| {
            let is_within = left > 0;
            left = left.saturating_sub(slice.len() as u64);
            is_within
        })
        .count()
}
