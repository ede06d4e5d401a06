//! The destination's memory of a commit.
//!
//! Before the guest's first instruction runs at the destination, the committed epoch stands in a file
//! there. So whoever looks later, after any crash of any process, knows whether the guest may have run.
//!
//! The record is *armed* while the destination gets ready: the file gets its size, its contents and a
//! sync, so a full disk is found long before the guest is paused. Committing then overwrites a few
//! bytes that the file has already and does not sync: that is the one thing a disk could do to a
//! downtime, and it takes milliseconds. What an unsynced write does not survive is a crash of the
//! whole host; so the record carries the boot's id, and an armed record of another boot says nothing.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// What a record says about its epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EpochState {
    /// No commit came while this boot lasts; without its VM process none ever will.
    Armed,
    /// The guest was committed here.
    Committed,
    /// The epoch is void: its guest never ran here and never will.
    NeverRan,
    /// The host has booted anew since the record was armed: a commit may have been lost with it.
    Unknown,
}

impl EpochState {
    /// Fixed width, so that a change overwrites what is there.
    const fn word(self) -> &'static str {
        match self {
            Self::Armed => "armed    ",
            Self::Committed => "committed",
            Self::NeverRan => "never-ran",
            Self::Unknown => "unknown  ",
        }
    }
}

/// The record of one migration's epoch, open for the moment of its commit.
#[derive(Debug)]
pub struct EpochRecord {
    file: File,
    epoch: u64,
}

/// Where the state's word begins.
const STATE_AT: u64 = 0;

impl EpochRecord {
    /// Makes the record at `path`, on disk when this returns.
    ///
    /// # Errors
    /// The system's, e.g. a full disk or a record that is there already: the guest must then not come here.
    pub fn arm(path: &Path, epoch: u64) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(path)?;
        let armed = (|| {
            let text = format!("{} {epoch} {}\n", EpochState::Armed.word(), boot_id()?);
            file.write_all_at(text.as_bytes(), 0)?;
            file.sync_all()?;
            File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
        })();
        if let Err(error) = armed {
            // Best effort: a record that is half written does not parse, and so says nothing.
            let _ = std::fs::remove_file(path);
            return Err(error);
        }
        Ok(Self { file, epoch })
    }

    /// Records that `epoch` is committed. When this returns every process of this host can read it.
    ///
    /// # Errors
    /// The system's, or `InvalidInput` for an epoch that was not armed.
    pub fn commit(&self, epoch: u64) -> io::Result<()> {
        self.set(epoch, EpochState::Committed)
    }

    /// Records that `epoch` will never run here.
    ///
    /// # Errors
    /// As [`EpochRecord::commit`].
    pub fn never_ran(&self, epoch: u64) -> io::Result<()> {
        self.set(epoch, EpochState::NeverRan)
    }

    fn set(&self, epoch: u64, state: EpochState) -> io::Result<()> {
        if epoch != self.epoch {
            let text = format!("epoch {epoch} was not armed, {} was", self.epoch);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        self.file.write_all_at(state.word().as_bytes(), STATE_AT)
    }
}

/// The epoch recorded at `path` and what became of it; `None` when none was ever armed.
///
/// # Errors
/// The system's, or `InvalidData` for a file that is no record: then nobody may conclude anything from it.
pub fn read_epoch(path: &Path) -> io::Result<Option<(u64, EpochState)>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, format!("{text:?} is no epoch record"));
    let words: Vec<&str> = text.split_whitespace().collect();
    let [word, epoch, boot] = words[..] else { return Err(invalid()) };
    let epoch = epoch.parse().map_err(|_| invalid())?;
    let states = [EpochState::Armed, EpochState::Committed, EpochState::NeverRan];
    let state = states.into_iter().find(|state| state.word().trim_end() == word).ok_or_else(invalid)?;
    let state = match state {
        EpochState::Armed if boot != boot_id()? => EpochState::Unknown,
        state => state,
    };
    Ok(Some((epoch, state)))
}

fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}
