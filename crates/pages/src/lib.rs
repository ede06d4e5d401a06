//! The vocabulary of guest memory in a migration.
//!
//! A page of guest RAM is named by ([`BlockId`], page index), never by a host or guest-physical
//! address: those may differ between hosts and devices, the pair may not. This crate has no unsafe
//! code, does no I/O and knows no other crate of the workspace.

mod bitmap;
mod layout;
mod received;
mod run;
mod set;

pub use bitmap::{PageBitmap, Runs};
pub use layout::{LayoutError, MAX_BLOCKS, MAX_PAGES, RamBlock, RamLayout};
pub use received::ReceivedMap;
pub use run::{BlockId, PAGE_SHIFT, PAGE_SIZE, PageRun};
pub use set::PageSet;
