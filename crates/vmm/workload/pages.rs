//! What a page holds, as a function of its number and its generation.
//!
//! A page's *generation* counts the writes to it. Writing all 4096 bytes each time would measure the
//! memory bus instead of dirtying pages, so a write of generation g rewrites three of the page's 64
//! lines of 64 bytes: the first and the last, which are stamped with page number and generation, and
//! one of the 62 between, which take turns: line 1 + g mod 62. What every line holds thus follows from
//! the page's generation alone: a middle line dates from the last generation whose turn it was. So the three
//! lines that the next write replaces are checked before (the two youngest and the oldest of the page),
//! and the checker can check all 64 at any time.
//!
//! A page that went back in time has an older stamp than the table of generations says; had the
//! table's page gone back instead, the stamp would be newer than it says. If both did, pages of the
//! table's page that were written since betray it, and the sum in `vcpu.rs`. A page of which only a part went
//! back is found by its lines.

use crate::memory::{load, store};
use crate::params::{Content, PAGE_SIZE};
use crate::random::{GOLDEN, mix};

const LINES: u64 = 64;
const LINE_SIZE: u64 = 64;
const LINE_WORDS: u64 = LINE_SIZE / 8;
/// Lines that take turns.
const TURNS: u64 = LINES - 2;
const LAST: u64 = LINES - 1;

/// Filler of constant and compressible content.
const TEXT: u64 = u64::from_le_bytes(*b"migrated");

/// A word that is not what it should be.
pub struct Mismatch {
    pub address: u64,
    pub expected: u64,
    pub found: u64,
}

/// How pages are filled.
pub struct Pages {
    pub content: Content,
    pub seed: u64,
}

impl Pages {
    /// Writes a whole page.
    pub fn write_all(&self, address: u64, page: u64, generation: u64) {
        for line in 0..LINES {
            self.write_line(address, page, line, generation);
        }
    }

    /// Writes what a new generation changes.
    pub fn write(&self, address: u64, page: u64, generation: u64) {
        self.write_line(address, page, 0, generation);
        self.write_line(address, page, turn(generation), generation);
        self.write_line(address, page, LAST, generation);
    }

    /// Checks what the next generation will change.
    pub fn check(&self, address: u64, page: u64, generation: u64) -> Result<(), Mismatch> {
        self.check_line(address, page, 0, generation)?;
        self.check_line(address, page, turn(generation + 1), generation)?;
        self.check_line(address, page, LAST, generation)
    }

    /// Checks a whole page.
    pub fn check_all(&self, address: u64, page: u64, generation: u64) -> Result<(), Mismatch> {
        (0..LINES).try_for_each(|line| self.check_line(address, page, line, generation))
    }

    fn write_line(&self, address: u64, page: u64, line: u64, generation: u64) {
        let first = address + line * LINE_SIZE;
        let words = self.line(page, line, generation);
        for (word, value) in (0..LINE_WORDS).zip(words) {
            store(first + word * 8, value);
        }
    }

    #[inline]
    fn check_line(&self, address: u64, page: u64, line: u64, generation: u64) -> Result<(), Mismatch> {
        let first = address + line * LINE_SIZE;
        let words = self.line(page, line, generation);
        for (word, expected) in (0..LINE_WORDS).zip(words) {
            let found = load(first + word * 8);
            if found != expected {
                return Err(Mismatch { address: first + word * 8, expected, found });
            }
        }
        Ok(())
    }

    /// What a line holds when its page is of this generation.
    #[inline]
    fn line(&self, page: u64, line: u64, generation: u64) -> [u64; LINE_WORDS as usize] {
        let stamped = line == 0 || line == LAST;
        let written = if stamped { generation } else { last_turn(line, generation) };
        let mut random =
            self.seed.wrapping_add(page.wrapping_mul(PAGE_SIZE) + line).wrapping_mul(GOLDEN) ^ written;
        random = mix(random);
        let mut words = match self.content {
            Content::Zero => return [0; LINE_WORDS as usize],
            Content::Constant => [TEXT; LINE_WORDS as usize],
            Content::Compressible => {
                let mut words = [TEXT; LINE_WORDS as usize];
                words[2] = random;
                words
            }
            Content::Random => core::array::from_fn(|word| {
                let x = (random ^ word as u64).wrapping_mul(GOLDEN);
                x ^ (x >> 32)
            }),
        };
        if stamped {
            words[0] = generation;
            words[1] = page;
        }
        words
    }
}

/// The middle line whose turn it is.
const fn turn(generation: u64) -> u64 {
    1 + generation % TURNS
}

/// The last generation up to `generation` that wrote this middle line; 0, the first fill, wrote them all.
const fn last_turn(line: u64, generation: u64) -> u64 {
    let behind = (generation % TURNS + TURNS - (line - 1)) % TURNS;
    generation.saturating_sub(behind)
}
