//! Frames of pages that follow a guest which runs here.

use std::time::Instant;

use migrated_pages::PageRun;
use migrated_wire::{PageClass, VerifyWhen};

use super::pages::PageThread;
use crate::error::ChannelFault;

impl PageThread {
    /// Receives pages straight to where they belong, by the second mapping, and lets the guest have them. What
    /// is here already is read and thrown away: the guest may have written to it.
    pub(super) fn follow(&mut self) -> Result<(), ChannelFault> {
        let shared = self.shared.clone();
        let Some(following) = shared.following.get() else {
            return Err(ChannelFault::Misbehaved("pages came before they could be missing".into()));
        };
        let of = |class| self.runs.iter().filter(move |run| run.class == class).map(|run| run.pages);
        let mut claimed = Vec::new();
        let verify = {
            let mut engine = self.events.engine(&shared)?;
            engine.claim(self.runs.iter().map(|run| run.pages), &mut claimed);
            engine.verify()
        };
        let claim = following.ram.claim(of(PageClass::Data));
        let mut slices = Vec::new();
        claim.slices(&mut slices);
        let mut placed = Vec::new();
        let received = match slices.is_empty() {
            true => Ok(()),
            false => self.receiver.read_payload(&slices).map_err(ChannelFault::from),
        };
        let result = received.and_then(|()| {
            if verify == VerifyWhen::After {
                // From the moment that they are placed the guest writes them.
                claim.runs().for_each(|run| {
                    shared.hashes.record(following.ram.staging(), run, &mut self.hashes);
                });
            }
            let failed = |error: migrated_guest::PostcopyError| ChannelFault::Lost(error.to_string());
            claim.place(&mut placed).map_err(failed)?;
            let data = placed.len();
            of(PageClass::Zero)
                .try_for_each(|run| following.ram.place_zero(run, &mut placed))
                .map_err(failed)?;
            if verify == VerifyWhen::After {
                placed[data..].iter().for_each(|run| shared.hashes.record_zero(*run));
            }
            Ok(())
        });
        self.account(&placed, &claimed);
        result
    }

    /// Tells the engine what was placed and what was not.
    fn account(&self, placed: &[PageRun], claimed: &[PageRun]) {
        let shared = &self.shared;
        let Some(following) = shared.following.get() else { return };
        let woken = Instant::now();
        let pages = |runs: &[PageRun]| runs.iter().map(|run| run.count).sum::<u64>();
        let (news, request) = {
            let now = shared.clock.now();
            let mut engine = shared.engine.lock();
            let mut news = engine.placed_claims(now, placed.iter().copied());
            for took in following.served(placed, woken) {
                engine.fault_served(took);
            }
            if pages(placed) < pages(claimed) {
                news |= engine.unclaim(now, claimed.iter().copied());
            }
            (news, engine.take_request())
        };
        self.wake_if(news);
        shared.send_requests(request);
    }
}
