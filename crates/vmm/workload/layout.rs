//! Where everything lies in guest-physical memory.
//!
//! Shared source: the guest lives by it, the host refuses parameters that don't fit by it.
//!
//! Below 1 MiB lie what the VMM hands over and the counters, from 1 MiB the image. The rest is the
//! *arena*: all RAM from 2 MiB up to the hole, then all RAM from 4 GiB, as one row of pages: page tables
//! for all but the first GiB, the table of generations, the working set, the fill. But a working set that fits above
//! 4 GiB lies there, where that leaves the fill enough below the hole: a guest that has such RAM should use it, also when
//! it writes little.

use super::params::{PAGE_SIZE, Params};

/// First byte of the counters: one page of header, then a page per vCPU.
pub const COUNTERS_BASE: u64 = 0x3_0000;
/// Most vCPUs that take part; their counters end below 640 KiB.
pub const MAX_VCPUS: u64 = 64;
/// First byte of the arena; the image ends before it.
pub const ARENA_BASE: u64 = 2 << 20;
/// First byte of RAM above the hole.
pub const HIGH_BASE: u64 = 4 << 30;
/// End of what one table of page directories maps; RAM from there on is left alone.
pub const MAPPED_END: u64 = 512 << 30;
/// What one page directory maps.
pub const DIRECTORY_SPAN: u64 = 1 << 30;

/// The arena's two pieces, as first byte and number of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arena {
    /// Pages from [`ARENA_BASE`] on.
    pub low_pages: u64,
    /// Pages from [`HIGH_BASE`] on.
    pub high_pages: u64,
}

impl Arena {
    /// The arena in RAM ranges of the form (first byte, end).
    pub fn new(ranges: impl Iterator<Item = (u64, u64)>) -> Self {
        let mut arena = Self { low_pages: 0, high_pages: 0 };
        for (start, end) in ranges {
            if start <= ARENA_BASE && end > ARENA_BASE {
                arena.low_pages = (end.min(HIGH_BASE) - ARENA_BASE) / PAGE_SIZE;
            }
            if start == HIGH_BASE {
                arena.high_pages = (end.min(MAPPED_END) - HIGH_BASE) / PAGE_SIZE;
            }
        }
        arena
    }

    /// Guest-physical address of a page of the row.
    pub const fn address(&self, page: u64) -> u64 {
        if page < self.low_pages {
            ARENA_BASE + page * PAGE_SIZE
        } else {
            HIGH_BASE + (page - self.low_pages) * PAGE_SIZE
        }
    }

    /// Page directories needed beside the image's own for the first GiB.
    pub const fn directories(&self) -> u64 {
        let end = if self.high_pages > 0 {
            HIGH_BASE + self.high_pages * PAGE_SIZE
        } else {
            ARENA_BASE + self.low_pages * PAGE_SIZE
        };
        end.div_ceil(DIRECTORY_SPAN) - 1
    }
}

/// How the arena's row of pages is used: the first page of each part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Table of generations, a `u64` per page of the working set. Page directories lie before it.
    pub generations: u64,
    /// Working set.
    pub hot: u64,
    /// Pages of the working set.
    pub hot_pages: u64,
    /// Fill.
    pub fill: u64,
    /// Pages of the fill.
    pub fill_pages: u64,
}

impl Plan {
    /// Lays out what `params` ask for.
    ///
    /// # Errors
    /// The number of arena pages that would be needed.
    pub fn new(arena: &Arena, params: &Params) -> Result<Self, u64> {
        let hot_pages = params.hot / PAGE_SIZE;
        let fill_pages = params.fill / PAGE_SIZE;
        let generations = arena.directories();
        let tables_end = generations + (hot_pages * 8).div_ceil(PAGE_SIZE);
        let needed = tables_end + hot_pages + fill_pages;
        let (hot, fill) = if hot_pages <= arena.high_pages && tables_end + fill_pages <= arena.low_pages {
            (arena.low_pages, tables_end)
        } else {
            (tables_end, tables_end + hot_pages)
        };
        // The tables are used by address, not by page: they must not reach over the hole.
        if tables_end > arena.low_pages || needed > arena.low_pages + arena.high_pages {
            return Err(needed);
        }
        Ok(Self { generations, hot, hot_pages, fill, fill_pages })
    }
}
