//! The destination's memory of a commit.
//!
//! Before the guest's first instruction runs at the destination, the committed epoch is on disk
//! there. So whoever looks later, after any crash, knows whether the guest may have run: no file
//! and no process means it never did and never will.

use std::io;
use std::path::Path;

use crate::write_atomic;

/// Records that `epoch` is committed. When this returns it is on disk.
///
/// # Errors
/// The system's, e.g. a full disk: the guest must then not run here.
pub fn record_epoch(path: &Path, epoch: u64) -> io::Result<()> {
    write_atomic(path, format!("{epoch}\n").as_bytes())
}

/// The epoch recorded at `path`, or `None` when no commit was.
///
/// # Errors
/// The system's, or `InvalidData` for a file that is no epoch: then nobody may conclude anything from it.
pub fn read_epoch(path: &Path) -> io::Result<Option<u64>> {
    match std::fs::read_to_string(path) {
        Ok(text) => match text.trim_end().parse() {
            Ok(epoch) => Ok(Some(epoch)),
            Err(_) => Err(io::Error::new(io::ErrorKind::InvalidData, format!("{text:?} is not an epoch"))),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}
