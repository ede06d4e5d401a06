use std::sync::atomic::{AtomicBool, Ordering};

use migrated_api::{MigrationRecord, MigrationState, RecordError, RecordRole};
use migrated_wire::MigrationId;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// One migration that this host takes or took part in.
#[derive(Debug)]
pub struct Migration {
    /// Its id, the same at both ends.
    pub id: MigrationId,
    /// The other host: at the source as it was named, at the destination as the source calls itself.
    pub peer: String,
    /// The epoch that its commit carries.
    pub epoch: u64,
    record: watch::Sender<MigrationRecord>,
    cancelled: watch::Sender<bool>,
    resolving: AtomicBool,
}

/// A migration as it is kept on disk.
#[derive(Debug, Serialize, Deserialize)]
pub struct StoredMigration {
    /// The other host.
    pub peer: String,
    /// The epoch that its commit carries.
    pub epoch: u64,
    /// As far as it got.
    pub record: MigrationRecord,
}

/// What an update did to a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The record is final already: nothing.
    Ignored,
    /// Figures.
    Progress,
    /// It is in another state now.
    State,
    /// It has ended.
    Ended,
}

impl Migration {
    /// A migration with its first record, or with the one kept on disk.
    pub fn new(id: MigrationId, peer: String, epoch: u64, record: MigrationRecord) -> Self {
        Self {
            id,
            peer,
            epoch,
            record: watch::Sender::new(record),
            cancelled: watch::Sender::new(false),
            resolving: AtomicBool::new(false),
        }
    }

    /// The record as it is now.
    pub fn record(&self) -> MigrationRecord {
        self.record.borrow().clone()
    }

    /// The record as it goes on.
    pub fn watch(&self) -> watch::Receiver<MigrationRecord> {
        self.record.subscribe()
    }

    /// Where it is.
    pub fn state(&self) -> MigrationState {
        self.record.borrow().state.unwrap_or(MigrationState::Negotiating)
    }

    /// Id of the VM.
    pub fn vm(&self) -> String {
        self.record.borrow().vm.clone()
    }

    /// Which end this host is.
    pub fn role(&self) -> RecordRole {
        self.record.borrow().role
    }

    /// Share of its time that the most throttled vCPU is made to sleep now, in percent.
    pub fn throttle_percent(&self) -> f64 {
        let record = self.record.borrow();
        let over = record.state.is_some_and(MigrationState::is_final);
        record.throttle.as_ref().filter(|_| !over).map_or(0.0, |throttled| throttled.percent)
    }

    /// Replaces the record. A final one never changes.
    pub fn update(&self, record: MigrationRecord) -> Change {
        let mut change = Change::Ignored;
        self.record.send_if_modified(|current| {
            if current.state.is_some_and(MigrationState::is_final) {
                return false;
            }
            change = match record.state {
                Some(state) if state.is_final() => Change::Ended,
                state if state != current.state => Change::State,
                _ => Change::Progress,
            };
            *current = record;
            true
        });
        change
    }

    /// The record with an end put to it.
    pub fn ended(&self, state: MigrationState, error: Option<RecordError>) -> MigrationRecord {
        let mut record = self.record();
        let phase = record.state;
        record.state = Some(state);
        record.error = error.map(|error| RecordError { phase: error.phase.or(phase), ..error });
        let elapsed = super::vm::unix_ms(std::time::SystemTime::now()).saturating_sub(record.started_unix_ms);
        record.total_ms = record.total_ms.max(elapsed as f64);
        record
    }

    /// Asks whoever prepares it to stop.
    pub fn cancel(&self) {
        self.cancelled.send_replace(true);
    }

    /// Whether it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        *self.cancelled.borrow()
    }

    /// Waits until it is cancelled.
    pub async fn cancelled(&self) {
        // The sender lives as long as `self`.
        let _ = self.cancelled.subscribe().wait_for(|cancelled| *cancelled).await;
    }

    /// Whether the caller is to find out what became of the commit, because nobody does yet.
    pub fn begin_resolving(&self) -> bool {
        !self.resolving.swap(true, Ordering::AcqRel)
    }

    /// Nobody tries to find out any more.
    pub fn end_resolving(&self) {
        self.resolving.store(false, Ordering::Release);
    }

    /// As it is kept on disk.
    pub fn to_stored(&self) -> StoredMigration {
        StoredMigration { peer: self.peer.clone(), epoch: self.epoch, record: self.record() }
    }
}
