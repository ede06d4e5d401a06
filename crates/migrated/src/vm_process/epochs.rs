use std::io;

use migrated_control::EpochRecord;
use migrated_session::EpochLog;

/// The record of this process's one commit, in the file that the daemon reads when the process is gone.
pub struct Epochs(pub EpochRecord);

impl EpochLog for Epochs {
    fn record_commit(&mut self, epoch: u64) -> io::Result<()> {
        self.0.commit(epoch)
    }

    fn record_never_ran(&mut self, epoch: u64) -> io::Result<()> {
        self.0.never_ran(epoch)
    }
}
