//! How much of a guest's RAM has content, found out by looking at some of it.

use migrated_pages::PageRun;

use crate::{GuestRam, PageClass};

/// Pages looked at in one place: the fewest for which never-touched memory is left untouched, see
/// [`GuestRam::split_zero`].
const TOGETHER: u64 = 16;
/// Places looked at: at most 64 Ki pages in all, 256 MiB, which takes some ten ms. Were the places independent, the
/// share's standard error would be √(¼ ÷ 4096) = 0.8 % at most.
const PLACES: u64 = 4096;
/// The golden ratio's fraction in 64 bits. Its multiples, modulo 1, fall evenly and in no rhythm (Weyl's sequence), so
/// that no rhythm of the guest's own is mistaken for the whole.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

impl GuestRam {
    /// About how many pages are not all zero now: exact for a guest of 256 MiB or less, else from one place in
    /// each of 4096 equal parts. The guest may run; memory that it never touched is not touched here either.
    #[must_use]
    pub fn estimate_nonzero(&self) -> u64 {
        let total = self.layout().total_pages();
        // In a large guest a run begins anywhere in its part and may leave it, so that all pages are as likely.
        let part = total.div_ceil(PLACES);
        let (part, room) = if part <= TOGETHER { (TOGETHER, 1) } else { (part, part) };
        let (mut seen, mut nonzero, mut places, mut pieces) = (0, 0, 0_u64, Vec::new());
        for (id, block) in self.layout().ids().zip(self.layout().blocks()) {
            for start in (0..block.pages).step_by(part as usize) {
                let first = (start + scaled(places.wrapping_mul(GOLDEN), room)).min(block.pages - 1);
                let count = TOGETHER.min(block.pages - first);
                places += 1;
                self.split_zero(PageRun { block: id, first, count }, &mut pieces);
                seen += count;
                let data = pieces.drain(..).filter(|(_, class)| *class == PageClass::Data);
                nonzero += data.map(|(run, _)| run.count).sum::<u64>();
            }
        }
        (u128::from(nonzero) * u128::from(total) / u128::from(seen.max(1))) as u64
    }
}

/// A fraction in 64 bits of `room`, which it does not reach.
const fn scaled(fraction: u64, room: u64) -> u64 {
    ((fraction as u128 * room as u128) >> 64) as u64
}
