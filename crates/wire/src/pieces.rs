//! Sets of pages on the control channel: what is missing at the switch, what is there after a lost link.
//!
//! A set travels as pieces, each about one stretch of a RAM block and small enough for a message. A piece is
//! written as raw bits or as run lengths, whichever is shorter: a guest of which everything is missing needs
//! a few bytes, one that wrote every other page needs a bit for each page, and nothing needs more than that.

use bytes::Bytes;
use migrated_pages::{BlockId, PageBitmap, PageRun, PageSet, RamLayout};
use serde::{Deserialize, Serialize};

use crate::WireError;

/// Most pages that a piece is about: 512 KiB as raw bits, so that it fits a message.
pub const MAX_PIECE_PAGES: u64 = 1 << 22;

/// Which pages of one stretch of a block are in a set. At least one is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageSetPiece {
    /// The block.
    pub block: BlockId,
    /// Index of the stretch's first page in the block.
    pub first: u64,
    /// Length of the stretch in pages.
    pub pages: u64,
    /// The pages of the stretch that are in the set.
    pub bits: PieceBits,
}

/// A bit for each page, in the shorter of two forms.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PieceBits {
    /// Little-endian 64-bit words, least significant bit first.
    Words(Bytes),
    /// LEB128 numbers: pages to skip, pages in the set, pages to skip, and so on.
    Runs(Bytes),
}

impl PageSetPiece {
    /// Cuts `set` into pieces.
    #[must_use]
    pub fn cut(set: &PageSet, layout: &RamLayout) -> Vec<Self> {
        let mut pieces = Vec::new();
        for block in layout.ids() {
            let bitmap = set.block(block);
            let words_per_piece = (MAX_PIECE_PAGES / 64) as usize;
            for (index, words) in bitmap.words().chunks(words_per_piece).enumerate() {
                let Some(start) = words.iter().position(|word| *word != 0) else { continue };
                let end = words.iter().rposition(|word| *word != 0).map_or(start, |last| last + 1);
                let first = index as u64 * MAX_PIECE_PAGES + start as u64 * 64;
                let pages = ((end - start) as u64 * 64).min(bitmap.pages() - first);
                let bits = encode(bitmap, first, pages, &words[start..end]);
                pieces.push(Self { block, first, pages, bits });
            }
        }
        pieces
    }

    /// Adds the piece's pages to `set` and returns how many they are. They are all new there, and at least
    /// one, so a peer can't send pieces without end. After an error `set` is of no use.
    ///
    /// # Errors
    /// [`WireError`] when the stretch is not in `layout` or too long, its bits are not exactly as many as it
    /// has pages, no page is named, or one that `set` has already.
    pub fn add_to(&self, set: &mut PageSet, layout: &RamLayout) -> Result<u64, WireError> {
        let stretch = PageRun { block: self.block, first: self.first, count: self.pages };
        if self.pages > MAX_PIECE_PAGES {
            let (what, got) = ("pages of a page set's piece", self.pages);
            return Err(WireError::TooLarge { what, got, limit: MAX_PIECE_PAGES });
        }
        if !layout.contains(stretch) {
            return Err(malformed(format!("{stretch:?} is outside of guest RAM")));
        }
        let bits = match &self.bits {
            PieceBits::Words(bytes) => from_words(bytes, self.pages)?,
            PieceBits::Runs(bytes) => from_runs(bytes, self.pages)?,
        };
        let (mut named, mut new) = (0, 0);
        for (first, count) in bits.runs() {
            named += count;
            new += set.insert(PageRun { block: self.block, first: self.first + first, count });
        }
        match (named, new) {
            (0, _) => Err(malformed("it names no page".into())),
            (named, new) if named != new => Err(malformed("it names a page again".into())),
            _ => Ok(new),
        }
    }
}

fn malformed(reason: String) -> WireError {
    WireError::Malformed { what: "page set", reason }
}

fn encode(bitmap: &PageBitmap, first: u64, pages: u64, words: &[u64]) -> PieceBits {
    let mut runs = Vec::new();
    let mut at = first;
    for (start, count) in bitmap.runs_from(first).take_while(|(start, _)| *start < first + pages) {
        let end = (start + count).min(first + pages);
        push_number(&mut runs, start - at);
        push_number(&mut runs, end - start);
        at = end;
        if runs.len() >= words.len() * 8 {
            return PieceBits::Words(words.iter().flat_map(|word| word.to_le_bytes()).collect());
        }
    }
    PieceBits::Runs(runs.into())
}

fn push_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn from_words(bytes: &[u8], pages: u64) -> Result<PageBitmap, WireError> {
    if bytes.len() as u64 != pages.div_ceil(64) * 8 {
        return Err(malformed(format!("{} bytes of bits for {pages} pages", bytes.len())));
    }
    let words: Vec<u64> =
        bytes.as_chunks().0.iter().map(|chunk: &[u8; 8]| u64::from_le_bytes(*chunk)).collect();
    let tail = pages % 64;
    if tail != 0 && words.last().is_some_and(|last| last >> tail != 0) {
        return Err(malformed("bits behind its last page".into()));
    }
    let mut bitmap = PageBitmap::new(pages);
    bitmap.or_words(&words);
    Ok(bitmap)
}

fn from_runs(mut bytes: &[u8], pages: u64) -> Result<PageBitmap, WireError> {
    let mut bitmap = PageBitmap::new(pages);
    let mut at = 0u64;
    while !bytes.is_empty() {
        let first = at + take_number(&mut bytes)?;
        let count = take_number(&mut bytes)?;
        if first + count > pages {
            return Err(malformed("a run behind its last page".into()));
        }
        bitmap.set_range(first, count);
        at = first + count;
    }
    Ok(bitmap)
}

/// A number of at most five bytes: below 2^35, so that sums of a few don't overflow.
fn take_number(bytes: &mut &[u8]) -> Result<u64, WireError> {
    let mut number = 0;
    for shift in (0..35).step_by(7) {
        let Some((byte, rest)) = bytes.split_first() else { break };
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(malformed("a run length does not end".into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MAX_MESSAGE, ToDestination, encode_message};
    use migrated_pages::RamBlock;
    use proptest::prelude::*;

    fn layout() -> RamLayout {
        let block = |name: &str, base, pages| RamBlock { name: name.into(), guest_base: base, pages };
        RamLayout::new(vec![block("a", 0, 3000), block("b", 1 << 40, MAX_PIECE_PAGES + 77)]).unwrap()
    }

    fn back(pieces: &[PageSetPiece]) -> Result<PageSet, WireError> {
        let mut set = PageSet::empty(&layout());
        pieces.iter().try_for_each(|piece| piece.add_to(&mut set, &layout()).map(|_| ()))?;
        Ok(set)
    }

    #[test]
    fn a_full_set_is_a_few_bytes_and_a_scattered_one_fits_its_messages() {
        let full = PageSet::full(&layout());
        let pieces = PageSetPiece::cut(&full, &layout());
        assert_eq!(pieces.len(), 3);
        assert!(pieces.iter().all(|piece| matches!(&piece.bits, PieceBits::Runs(b) if b.len() <= 6)));
        assert_eq!(back(&pieces).unwrap(), full);

        let mut scattered = PageSet::empty(&layout());
        for page in (0..MAX_PIECE_PAGES).step_by(2) {
            scattered.insert(PageRun { block: BlockId(1), first: page, count: 1 });
        }
        let pieces = PageSetPiece::cut(&scattered, &layout());
        for piece in &pieces {
            assert!(matches!(piece.bits, PieceBits::Words(_)));
            assert!(encode_message(&ToDestination::Missing(piece.clone())).len() <= MAX_MESSAGE);
        }
        assert_eq!(back(&pieces).unwrap(), scattered);
    }

    #[test]
    fn a_piece_that_names_nothing_or_a_page_again_or_more_than_ram_is_refused() {
        let mut set = PageSet::empty(&layout());
        set.insert(PageRun { block: BlockId(0), first: 2900, count: 100 });
        let pieces = PageSetPiece::cut(&set, &layout());
        assert!(pieces[0].add_to(&mut set, &layout()).is_err(), "again");
        let piece = |first, pages, bits: &'static [u8]| PageSetPiece {
            block: BlockId(0),
            first,
            pages,
            bits: PieceBits::Runs(Bytes::from_static(bits)),
        };
        assert!(back(&[piece(0, 10, &[0, 10])]).is_ok());
        for wrong in [
            piece(0, 10, &[]),
            piece(0, 10, &[1, 10]),
            piece(0, 10, &[0, 0]),
            piece(2999, 2, &[0, 1]),
            piece(0, 10, &[0xff; 9]),
            piece(u64::MAX, 2, &[0, 1]),
            PageSetPiece { bits: PieceBits::Words(Bytes::from_static(&[0xff; 8])), ..piece(0, 10, &[]) },
            PageSetPiece { bits: PieceBits::Words(Bytes::from_static(&[1; 16])), ..piece(0, 10, &[]) },
        ] {
            assert!(back(std::slice::from_ref(&wrong)).is_err(), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn sets_survive_the_wire(runs in prop::collection::vec((0u16..2, 0u64..2900, 1u64..100), 1..60)) {
            let mut set = PageSet::empty(&layout());
            for (block, first, count) in runs {
                set.insert(PageRun { block: BlockId(block), first, count });
            }
            prop_assert_eq!(back(&PageSetPiece::cut(&set, &layout())).unwrap(), set);
        }

        #[test]
        fn any_piece_is_added_or_refused(
            first in 0u64..4000,
            pages in 0u64..4000,
            words: bool,
            bytes in prop::collection::vec(any::<u8>(), 0..600),
        ) {
            let bits = if words { PieceBits::Words(bytes.into()) } else { PieceBits::Runs(bytes.into()) };
            let mut set = PageSet::empty(&layout());
            let piece = PageSetPiece { block: BlockId(0), first, pages, bits };
            if let Ok(new) = piece.add_to(&mut set, &layout()) {
                prop_assert_eq!(new, set.len());
            }
        }
    }
}
