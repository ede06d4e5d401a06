//! A migration at its destination: admitted, prepared, and cleared away when the guest doesn't come.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use migrated_api::{MigrationRecord, MigrationState, PrepareIncoming, Prepared, RecordRole};
use migrated_control::{ClientError, IncomingPlan, Request, StartedAt, VmStart, VmState};
use migrated_engine::{RECONNECT_WINDOW, patience_for};
use migrated_wire::Token;

use super::admission::{Admitted, Refusal};
use super::clocks::AskedAt;
use super::migration::Migration;
use super::network::named_taps;
use super::vm::{Vm, unix_ms};
use super::{Daemon, DaemonError, fill_random};

/// How long an incoming VM may take to go away when its source gave up.
const CLEARING: Duration = Duration::from_secs(5);

impl Daemon {
    /// Gets ready for a guest: an empty VM process listens for it when this returns.
    pub async fn prepare(self: &Arc<Self>, request: PrepareIncoming) -> Result<Prepared, DaemonError> {
        let asked = AskedAt::now();
        let admitted = match self.admit(&request) {
            Ok(admitted) => admitted,
            Err(mut refusal) => {
                refusal.reasons.extend(self.registration_faults(&request));
                if refusal.cpu.is_some() {
                    self.metrics.cpu_refused("admission");
                }
                return Err(DaemonError::AdmissionRefused(refusal));
            }
        };
        self.wait_for_former(&request).await;
        let registered = self.register(request.vm.clone(), request.spec.clone(), VmState::Incoming);
        let vm = registered.map_err(|_| {
            let reasons = self.registration_faults(&request);
            DaemonError::AdmissionRefused(Refusal { reasons, cpu: None })
        })?;
        match self.enter_incoming(&request, &admitted) {
            Ok(migration) => {
                let prepared = self.launch_incoming(&vm, &migration, request, admitted).await?;
                Ok(Prepared { clock: Some(asked.answered()), ..prepared })
            }
            Err(e) => {
                self.forget(&vm);
                Err(e)
            }
        }
    }

    /// The one who sends a guest may know more of what was here before than this host has heard yet: that
    /// the guest which left here has arrived there, or that an attempt to send it here is over.
    async fn wait_for_former(&self, request: &PrepareIncoming) {
        let Some(former) = self.vms.lock().get(&request.vm).cloned() else { return };
        let migration = former.migration().and_then(|id| self.migration(&id).ok());
        if former.state().0 == VmState::Incoming {
            self.clear_attempt(&former, migration.as_deref(), &request.source).await;
        } else if let Some(departure) = migration.filter(|migration| migration.role() == RecordRole::Source) {
            let left = |record: &MigrationRecord| {
                record.state.is_some_and(|state| state.is_final() || state == MigrationState::Settling)
            };
            let leaving =
                matches!(departure.state(), MigrationState::StopAndCopy | MigrationState::Switchover);
            if leaving || departure.pages_follow() {
                // Whatever comes of it is seen when the guest is registered.
                let _ = tokio::time::timeout(CLEARING, departure.watch().wait_for(left)).await;
            }
        }
        // What has a name of its own is free again when its process is gone, which is a matter of moments.
        if !former.is_here() && named_taps(&request.spec).next().is_some() {
            former.wait_gone(CLEARING).await;
        }
    }

    /// A source has one attempt at a time under way: what waits here for an earlier one waits in vain.
    async fn clear_attempt(&self, former: &Vm, attempt: Option<&Migration>, source: &str) {
        match attempt {
            Some(attempt) if attempt.peer != source => return,
            Some(attempt) => {
                if let Ok(client) = former.client() {
                    // Refused when it is ending already, which is as good.
                    let _ = client.perform(Request::CancelMigration { migration: attempt.id }).await;
                }
            }
            None => {}
        }
        former.wait_gone(CLEARING).await;
    }

    fn enter_incoming(
        &self,
        request: &PrepareIncoming,
        admitted: &Admitted,
    ) -> Result<Arc<Migration>, DaemonError> {
        let record = MigrationRecord {
            id: request.migration.clone(),
            vm: request.vm.clone(),
            role: RecordRole::Destination,
            peer: request.source.clone(),
            mode: request.mode,
            transport: request.transport.name().to_owned(),
            state: Some(MigrationState::Negotiating),
            started_unix_ms: unix_ms(SystemTime::now()),
            ..MigrationRecord::default()
        };
        self.enter(Migration::new(admitted.migration, request.source.clone(), request.epoch, record))
    }

    async fn launch_incoming(
        self: &Arc<Self>,
        vm: &Arc<Vm>,
        migration: &Arc<Migration>,
        request: PrepareIncoming,
        admitted: Admitted,
    ) -> Result<Prepared, DaemonError> {
        vm.set_migration(&request.migration);
        let mut secret = [0; 32];
        fill_random(&mut secret)?;
        let token = Token(secret);
        let window = request.reconnect_window_ms.map_or(RECONNECT_WINDOW, Duration::from_millis);
        let plan = IncomingPlan {
            migration: migration.id,
            vm: request.vm,
            token,
            epoch: request.epoch,
            spec: request.spec,
            networks: admitted.networks,
            description: request.description,
            simulated: self.is_simulated(),
            transport: request.transport,
            tls: admitted.tls,
            ip: self.config.migration_ip(),
            advertise: self.config.migration.advertise.clone(),
            ports: self.config.migration_ports(),
            mode: request.mode,
            verify: request.verify,
            max_channels: admitted.max_channels,
            epoch_file: self.store.epoch_file(&request.migration),
            peer: request.source,
            patience_ms: patience_for(window).as_millis() as u64,
            started: StartedAt { unix_ms: migration.record().started_unix_ms, elapsed_ms: 0.0 },
        };
        let launched = self.launch(vm, VmStart::Incoming(Box::new(plan))).await;
        let endpoints = launched.inspect_err(|e| {
            self.end(migration, MigrationState::Failed, e.code(), e.to_string());
        })?;
        Ok(Prepared {
            endpoints,
            server_name: Some(self.config.server_name().to_owned()),
            token: token.to_hex(),
            epoch: request.epoch,
            max_channels: admitted.max_channels,
            clock: None,
        })
    }

    /// The source gave up. A guest that was committed stays.
    pub async fn give_up_incoming(&self, id: &str) -> Result<(), DaemonError> {
        let migration = self.incoming(id)?;
        let vm = self.vms.lock().get(&migration.vm()).cloned();
        let Some(vm) = vm.filter(|vm| vm.state().0 == VmState::Incoming) else {
            return match migration.state() {
                MigrationState::Failed | MigrationState::Cancelled => Ok(()),
                state => Err(DaemonError::NotCancellable { id: id.to_owned(), state }),
            };
        };
        let asked = vm.client()?.perform(Request::CancelMigration { migration: migration.id }).await;
        match asked {
            Err(ClientError::Refused(refusal)) => Err(DaemonError::Vm(refusal)),
            // Gone is what it was asked to be, also when it went without an answer.
            _ if vm.wait_gone(CLEARING).await => Ok(()),
            Ok(()) => {
                tracing::warn!(
                    vm = vm.id,
                    migration = id,
                    "the VM process of a cancelled migration is still there"
                );
                Ok(())
            }
            Err(e) => Err(vm.failed(e)),
        }
    }

    /// The migration of that id that came, or was to come, here.
    pub(super) fn incoming(&self, id: &str) -> Result<Arc<Migration>, DaemonError> {
        let migration = self.migration(id)?;
        if migration.role() == RecordRole::Destination {
            Ok(migration)
        } else {
            Err(DaemonError::MigrationNotFound(id.to_owned()))
        }
    }
}
