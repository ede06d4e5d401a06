use migrated_pages::{PAGE_SIZE, PageRun};
use vm_memory::{VolatileMemory, VolatileSlice};

use super::{Armed, PostcopyError};

/// A run of zero pages of up to this length may well answer a fault, so it gets memory at once.
const ZERO_AT_ONCE: u64 = 16;

/// Pages that one thread may write. Dropping it gives them up: they are missing as before.
#[derive(Debug)]
#[must_use = "what is claimed must be placed"]
pub struct Claim<'a> {
    armed: &'a Armed,
    /// What was asked for, in order, and whether the pages are this claim's.
    pieces: Vec<(PageRun, bool)>,
}

impl<'a> Claim<'a> {
    pub(super) fn new(armed: &'a Armed, runs: impl IntoIterator<Item = PageRun>) -> Self {
        let mut pieces = Vec::new();
        for run in runs {
            assert!(armed.ram().layout().contains(run), "{run:?} is outside of guest RAM");
            armed.missing().claim(run, &mut pieces);
        }
        Self { armed, pieces }
    }

    /// The runs that are claimed, in the order asked for.
    pub fn runs(&self) -> impl Iterator<Item = PageRun> + '_ {
        self.pieces.iter().filter(|(_, mine)| *mine).map(|(run, _)| *run)
    }

    /// Appends memory for exactly the pages asked for, in order, as for one scattering read. What comes for
    /// pages that are not this claim's goes where nobody reads it.
    pub fn slices(&self, out: &mut Vec<VolatileSlice<'a>>) {
        for (run, mine) in &self.pieces {
            if *mine {
                out.push(self.armed.staging.slice(*run));
                continue;
            }
            let (mut rest, discard) = (run.bytes() as usize, &self.armed.discard);
            while rest > 0 {
                let length = rest.min(discard.size());
                out.push(discard.get_slice(0, length).expect("no longer than the place is"));
                rest -= length;
            }
        }
    }

    /// Lets the guest have the pages, wakes who waits for them, and appends the runs that had been missing
    /// until now to `placed`. All that [`slices`](Self::slices) gave must have been written.
    ///
    /// # Errors
    /// [`PostcopyError::Userfaultfd`]; `placed` is right all the same, and the others are given up.
    pub fn place(mut self, placed: &mut Vec<PageRun>) -> Result<(), PostcopyError> {
        for (run, mine) in self.pieces.iter_mut().filter(|(_, mine)| *mine) {
            let result = self.armed.map(*run);
            let done =
                result.as_ref().map_or_else(|partly| (partly.bytes / PAGE_SIZE) as u64, |()| run.count);
            if done > 0 {
                let there = PageRun { count: done, ..*run };
                self.armed.missing().placed(there);
                placed.push(there);
            }
            if let Err(partly) = result {
                // Only the rest is still to be given up.
                *run = PageRun { first: run.first + done, count: run.count - done, ..*run };
                return Err(partly.error.into());
            }
            *mine = false;
        }
        Ok(())
    }

    /// As [`place`](Self::place), of zero pages.
    pub(super) fn place_zero(mut self, placed: &mut Vec<PageRun>) -> Result<(), PostcopyError> {
        let (mut empty, mut pieces) = (Vec::new(), Vec::new());
        self.runs().for_each(|run| self.split_empty(run, &mut empty, &mut pieces));
        self.pieces = pieces;
        // Who waits for an empty page must fault once more to be seen by the fault reader, which provides
        // what is not missing. So the pages are placed first, and then woken.
        empty.iter().for_each(|run| self.armed.missing().placed(*run));
        placed.extend(&empty);
        empty.iter().try_for_each(|run| self.armed.wake(*run))?;
        self.runs().for_each(|run| self.armed.staging.zero(run));
        self.place(placed)
    }

    /// Splits off long stretches that the file has no memory for.
    fn split_empty(&self, run: PageRun, empty: &mut Vec<PageRun>, rest: &mut Vec<(PageRun, bool)>) {
        if run.count <= ZERO_AT_ONCE {
            return rest.push((run, true));
        }
        let (mut at, end) = (run.first, run.first + run.count);
        while at < end {
            let data = self.armed.next_data(PageRun { first: at, count: end - at, ..run });
            if data > at {
                empty.push(PageRun { first: at, count: data - at, ..run });
            }
            at = (data + ZERO_AT_ONCE).min(end);
            if at > data {
                rest.push((PageRun { first: data, count: at - data, ..run }, true));
            }
        }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.runs().for_each(|run| self.armed.missing().give_up(run));
    }
}
