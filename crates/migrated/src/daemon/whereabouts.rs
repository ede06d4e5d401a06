//! Where the guest of a VM is, for who wants to talk to it: here, or at the host that it went to from here.
//!
//! A daemon knows the next host only. Who asks it for a guest that went on from there is passed on by that host's
//! daemon, and each hop is counted, because a guest that comes back meanwhile could make them pass in a circle.

use std::sync::Arc;

use migrated_api::{MigrationState, RecordRole};

use super::migration::Migration;
use super::postcopy::pages_follow;
use super::vm::Vm;
use super::{Daemon, DaemonError};
use crate::client::ApiClient;

/// Most daemons that pass a caller on.
const MAX_HOPS: u8 = 4;

/// Where a guest is.
pub enum Whereabouts {
    /// On this host.
    Here(Arc<Vm>),
    /// It went to another.
    Gone(Onward),
}

/// The next daemon on the way to a guest.
pub struct Onward {
    /// Its name or URL.
    pub peer: String,
    /// Its API.
    pub api: ApiClient,
    /// The VM's id, which is the same there.
    pub id: String,
    /// How often the caller has been passed on, with this time.
    pub hops: u8,
}

impl Daemon {
    /// Where the guest of that id or name is, for a caller that was passed on `hops` times. A name is known as long as
    /// the VM is on this host, an id as long as its migrations are.
    pub fn whereabouts(&self, key: &str, hops: u8) -> Result<Whereabouts, DaemonError> {
        let id = match self.vm(key) {
            Ok(vm) if !self.has_left(&vm) => return Ok(Whereabouts::Here(vm)),
            Ok(vm) => vm.id.clone(),
            Err(_) => {
                let vms = self.vms.lock();
                let leaving = vms.values().find(|vm| vm.spec.name == key && !vm.is_here());
                leaving.map_or_else(|| key.to_owned(), |vm| vm.id.clone())
            }
        };
        let peer = self.went_to(&id).ok_or_else(|| DaemonError::VmNotFound(key.to_owned()))?;
        self.onward(peer, id, hops)
    }

    fn onward(&self, peer: String, id: String, hops: u8) -> Result<Whereabouts, DaemonError> {
        if hops >= MAX_HOPS {
            return Err(DaemonError::Peer {
                peer,
                code: "guest_not_found".into(),
                detail: format!(
                    "the guest was not found at any of {hops} hosts; it may be between two, ask again"
                ),
            });
        }
        let api = self.peer(&peer)?;
        Ok(Whereabouts::Gone(Onward { peer, api, id, hops: hops + 1 }))
    }

    /// The host that the guest of a VM went to when it was here last.
    fn went_to(&self, id: &str) -> Option<String> {
        let away = self.vms.lock().get(id).is_some_and(|vm| !vm.is_here());
        let mut passages = self.migrations();
        passages.retain(|migration| migration.vm() == id && has_passed(migration, away));
        let last = passages.into_iter().next()?;
        (last.role() == RecordRole::Source).then(|| last.peer.clone())
    }

    /// Whether the guest runs at another host, while its VM may be on this one still.
    pub(super) fn has_left(&self, vm: &Vm) -> bool {
        !vm.is_here()
            || self
                .migration_of(vm)
                .is_some_and(|migration| migration.role() == RecordRole::Source && migration.pages_follow())
    }

    /// Waits until the guest of a VM runs at another host, if it is on the way there.
    pub(super) async fn leaves(&self, vm: &Vm) {
        let departure = self.migration_of(vm).filter(|migration| migration.role() == RecordRole::Source);
        if let Some(departure) = departure {
            let gone = |state| pages_follow(state) || is_settled(state);
            let left = departure.watch().wait_for(|record| record.state.is_some_and(gone)).await.is_ok();
            if left {
                return;
            }
        }
        std::future::pending().await
    }
}

const fn is_settled(state: MigrationState) -> bool {
    matches!(state, MigrationState::Settling | MigrationState::Completed)
}

/// Whether a migration has brought the guest to its destination; `away`, when the guest is known to have left, also
/// one whose record doesn't say so yet.
fn has_passed(migration: &Migration, away: bool) -> bool {
    let state = migration.state();
    match migration.role() {
        RecordRole::Source => {
            let failed = matches!(state, MigrationState::Failed | MigrationState::Cancelled);
            pages_follow(state) || is_settled(state) || away && !failed
        }
        RecordRole::Destination => {
            pages_follow(state) || is_settled(state) || state == MigrationState::Running
        }
    }
}
