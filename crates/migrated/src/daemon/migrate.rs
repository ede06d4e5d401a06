//! A migration at its source: checked here, prepared at the destination, handed to the VM process.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use migrated_api::{
    MigrationRecord, MigrationState, Mode, PrepareIncoming, Prepared, Reason, RecordError, RecordRole,
    StartMigration, TransportKind, Verify, Versions,
};
use migrated_control::{GuestDescription, Limits, MigratePlan, Request, StartedAt, TlsFiles};
use migrated_engine::{MAX_RECONNECT_WINDOW, RECONNECT_WINDOW};
use migrated_wire::{MigrationId, PROTOCOL, Token};

use super::clocks::{AskedAt, CLOCKS_DISAGREE};
use super::migration::Migration;
use super::vm::{Vm, unix_ms};
use super::{Daemon, DaemonError, new_id};
use crate::client::{ApiClient, ApiClientError, is_unauthorized};
use crate::config::{MAX_CHANNELS, MigrationDefaults};

/// How long a destination may take to get ready, besides touching the guest's memory.
const PREPARE: Duration = Duration::from_secs(60);
/// Slowest first touch of memory to reckon with, in bytes a second.
const SLOWEST_PREFAULT: u64 = 100 << 20;
/// A migration has one commit, so one epoch.
const EPOCH: u64 = 1;

/// A migration that passed the checks of this host.
struct Departure {
    request: StartMigration,
    limits: Limits,
    transport: TransportKind,
    tls: Option<TlsFiles>,
    peer: ApiClient,
    begun: Instant,
}

/// Why a migration ended before the VM process had it.
struct Abort {
    state: MigrationState,
    error: RecordError,
}

impl Abort {
    fn failed(code: &str, message: impl Into<String>, phase: MigrationState) -> Self {
        let error =
            RecordError { code: code.to_owned(), message: message.into(), phase: Some(phase), details: None };
        Self { state: MigrationState::Failed, error }
    }
}

impl Daemon {
    /// Begins to move a VM away. What this host can check is checked at once; the rest shows in the record.
    pub fn migrate(
        self: &Arc<Self>,
        key: &str,
        request: StartMigration,
    ) -> Result<Arc<Migration>, DaemonError> {
        let begun = Instant::now();
        let vm = self.vm(key)?;
        let limits = Limits {
            prefetch_pages: self.config.testing.prefetch_pages,
            ..limits(&request, &self.config.migration.defaults)?
        };
        let peer = self.peer(&request.to)?;
        let transport = request.transport.unwrap_or_else(|| self.config.default_transport());
        let tls = self.config.transport(transport).map_err(DaemonError::Transport)?;
        vm.client()?;
        let id = new_id()?;
        vm.begin_migration(&id.to_string())?;
        let record = MigrationRecord {
            id: id.to_string(),
            vm: vm.id.clone(),
            role: RecordRole::Source,
            peer: request.to.clone(),
            mode: request.mode,
            transport: transport.name().to_owned(),
            state: Some(MigrationState::Negotiating),
            started_unix_ms: unix_ms(SystemTime::now()),
            ..MigrationRecord::default()
        };
        let entered = self.enter(Migration::new(id, request.to.clone(), EPOCH, record));
        let migration = entered.inspect_err(|_| vm.end_migration(&id.to_string()))?;
        let departure = Departure { request, limits, transport, tls, peer, begun };
        tokio::spawn(Arc::clone(self).depart(vm, Arc::clone(&migration), departure));
        Ok(migration)
    }

    async fn depart(self: Arc<Self>, vm: Arc<Vm>, migration: Arc<Migration>, departure: Departure) {
        let prepared = tokio::select! {
            prepared = self.prepare_peer(&vm, &migration, &departure) => prepared,
            () = migration.cancelled() => Err(Abort {
                state: MigrationState::Cancelled,
                error: RecordError {
                    code: "cancelled".into(),
                    message: "cancelled before the destination was ready".into(),
                    phase: Some(migration.state()),
                    details: None,
                },
            }),
        };
        let handed_over = match prepared {
            Ok(prepared) => self.hand_over(&vm, &migration, &departure, prepared).await,
            Err(abort) => Err(abort),
        };
        if handed_over.is_ok() && migration.is_cancelled() {
            // Whoever cancelled it meanwhile was told so by us, not by the VM process.
            let _ = self.cancel(&migration).await;
        }
        if let Err(Abort { state, error }) = handed_over {
            self.update(&migration, migration.ended(state, Some(error)));
            // The destination may have prepared for nothing; when it can't be told, it gives up by itself.
            let _ = departure.peer.delete(&format!("/v1/incoming/{}", migration.id)).await;
        }
    }

    async fn prepare_peer(
        &self,
        vm: &Vm,
        migration: &Migration,
        departure: &Departure,
    ) -> Result<Prepared, Abort> {
        let client =
            vm.client().map_err(|e| Abort::failed(e.code(), e.to_string(), MigrationState::Negotiating))?;
        let description = client.describe().await.map_err(|e| {
            let e = vm.failed(e);
            Abort::failed(e.code(), e.to_string(), MigrationState::Negotiating)
        })?;
        let request =
            self.incoming_request(vm, migration.id, description, departure.transport, &departure.request);
        let patience = PREPARE + Duration::from_secs(vm.spec.memory_bytes / SLOWEST_PREFAULT);
        let asked = AskedAt::now();
        let prepared: Prepared = departure
            .peer
            .post("/v1/incoming", &request, patience)
            .await
            .map_err(|e| abort_of(&migration.peer, &e))?;
        let compared = prepared.clock.map_or(Ok(()), |clock| asked.compare(&migration.peer, clock));
        compared.map_err(|why| Abort::failed(CLOCKS_DISAGREE, why, MigrationState::Preflight))?;
        Ok(prepared)
    }

    /// What a destination is asked to get ready for.
    pub(super) fn incoming_request(
        &self,
        vm: &Vm,
        migration: MigrationId,
        description: GuestDescription,
        transport: TransportKind,
        request: &StartMigration,
    ) -> PrepareIncoming {
        let defaults = &self.config.migration.defaults;
        let window = request.reconnect_window_ms.unwrap_or(defaults.reconnect_window_ms);
        PrepareIncoming {
            protocol: Versions { min: PROTOCOL.min, max: PROTOCOL.max },
            migration: migration.to_string(),
            vm: vm.id.clone(),
            spec: vm.spec.clone(),
            description,
            transport,
            channels: request.channels,
            mode: request.mode,
            verify: request.verify.unwrap_or(defaults.verify),
            // Hosts that don't know it yet need not be told of a window that they wait for anyway.
            reconnect_window_ms: Some(window).filter(|ms| u128::from(*ms) > RECONNECT_WINDOW.as_millis()),
            epoch: EPOCH,
            source: self.config.name.clone(),
        }
    }

    async fn hand_over(
        &self,
        vm: &Vm,
        migration: &Migration,
        departure: &Departure,
        prepared: Prepared,
    ) -> Result<(), Abort> {
        let token = Token::from_hex(&prepared.token).map_err(|e| {
            let message = format!("{} answered with no token: {e}", migration.peer);
            Abort::failed("peer_not_migrated", message, MigrationState::Negotiating)
        })?;
        let defaults = &self.config.migration.defaults;
        let wanted = departure.request.channels.or(defaults.channels);
        let plan = MigratePlan {
            migration: migration.id,
            vm: vm.id.clone(),
            peer: migration.peer.clone(),
            transport: departure.transport,
            tls: departure.tls.clone(),
            endpoints: prepared.endpoints,
            server_name: prepared.server_name,
            token,
            epoch: migration.epoch,
            mode: departure.request.mode,
            channels: wanted.map(|wanted| wanted.min(prepared.max_channels)),
            limits: departure.limits,
            verify: departure.request.verify.unwrap_or(defaults.verify),
            compression: departure.request.compression,
            started: StartedAt {
                unix_ms: migration.record().started_unix_ms,
                elapsed_ms: departure.begun.elapsed().as_secs_f64() * 1e3,
            },
        };
        let failed = |e: DaemonError| Abort::failed(e.code(), e.to_string(), MigrationState::Negotiating);
        let client = vm.client().map_err(failed)?;
        client.perform(Request::Migrate(Box::new(plan))).await.map_err(|e| failed(vm.failed(e)))
    }

    /// Tells a destination that prepared for nothing.
    pub(super) async fn give_up_at_peer(&self, migration: &Migration) -> Result<(), String> {
        let peer = self.peer(&migration.peer).map_err(|e| e.to_string())?;
        peer.delete(&format!("/v1/incoming/{}", migration.id)).await.map_err(|e| e.to_string())
    }

    /// Gives a migration up, unless it is too late.
    pub async fn cancel(&self, migration: &Migration) -> Result<(), DaemonError> {
        let id = migration.id.to_string();
        let state = migration.state();
        let too_late = matches!(
            state,
            MigrationState::Switchover
                | MigrationState::Indeterminate
                | MigrationState::Running
                | MigrationState::Settling
        );
        if state.is_final() || too_late || migration.pages_follow() {
            return Err(DaemonError::NotCancellable { id, state });
        }
        migration.cancel();
        let vm = self.vms.lock().get(&migration.vm()).cloned();
        let Some(vm) = vm else { return Ok(()) };
        match vm.client()?.perform(Request::CancelMigration { migration: migration.id }).await {
            Ok(()) => Ok(()),
            // Not handed to the VM process yet: whoever prepares it has heard.
            Err(migrated_control::ClientError::Refused(refusal)) if refusal.code == "migration_not_found" => {
                Ok(())
            }
            Err(e) => Err(vm.failed(e)),
        }
    }
}

/// What became of asking the peer, as the record's error.
fn abort_of(peer: &str, error: &ApiClientError) -> Abort {
    if is_unauthorized(error) {
        let message = format!(
            "{peer} does not know us: check `token_file` (or the client certificate) of its entry in [peers]"
        );
        return Abort::failed("peer_unauthorized", message, MigrationState::Negotiating);
    }
    let (phase, cpu) = match error {
        ApiClientError::Problem(problem) => (MigrationState::Preflight, problem.cpu.as_ref()),
        _ => (MigrationState::Negotiating, None),
    };
    let mut abort = Abort::failed(error.code(), format!("{peer}: {error}"), phase);
    abort.error.details = cpu.map(|cpu| serde_json::json!({ "cpu": cpu }));
    abort
}

/// What a migration keeps to, checked.
pub(super) fn limits(request: &StartMigration, defaults: &MigrationDefaults) -> Result<Limits, DaemonError> {
    let mut faults = Vec::new();
    let mut fault = |wrong: bool, detail: String| {
        if wrong {
            faults.push(Reason { code: "invalid_limit".into(), detail });
        }
    };
    let max_downtime_ms = request.max_downtime_ms.unwrap_or(defaults.max_downtime_ms);
    let max_total_ms = request.max_total_ms.or(defaults.max_total_ms);
    let timeout_s = request.timeout_s.unwrap_or(defaults.timeout_s);
    let bandwidth_bps = request.bandwidth_bps.or(defaults.bandwidth_bps);
    let max_slowdown_percent = request.max_slowdown_percent.unwrap_or(defaults.max_slowdown_percent);
    let max_iterations = request.max_iterations.unwrap_or(defaults.max_iterations);
    // A day: longer is a slip of the unit.
    let sane = |value: f64, max: f64| value.is_finite() && value > 0.0 && value <= max;
    fault(
        !sane(max_downtime_ms, 86_400e3),
        format!("max_downtime_ms is {max_downtime_ms}; it must be above 0"),
    );
    fault(
        max_total_ms.is_some_and(|time| !sane(time, 86_400e3)),
        format!(
            "max_total_ms is {}; it must be above 0, and a day at most",
            max_total_ms.unwrap_or_default()
        ),
    );
    fault(
        !sane(timeout_s, 86_400.0),
        format!("timeout_s is {timeout_s}; it must be above 0, and a day at most"),
    );
    fault(bandwidth_bps == Some(0), "bandwidth_bps is 0; leave it out for no limit".into());
    fault(
        max_slowdown_percent > 99,
        format!(
            "max_slowdown_percent is {max_slowdown_percent}; it must be 0 to 99: a vCPU that stands still looks dead"
        ),
    );
    fault(max_iterations == 0, "max_iterations is 0; it must be at least 1".into());
    fault(
        request.channels.is_some_and(|n| !(1..=MAX_CHANNELS).contains(&n)),
        format!("channels is {}; it must be 1 to {MAX_CHANNELS}", request.channels.unwrap_or_default()),
    );
    let reconnect_window_ms = request.reconnect_window_ms.unwrap_or(defaults.reconnect_window_ms);
    let longest = MAX_RECONNECT_WINDOW.as_millis() as u64;
    fault(
        reconnect_window_ms > longest,
        format!("reconnect_window_ms is {reconnect_window_ms}; it must be {longest} at most"),
    );
    let before = request.verify.unwrap_or(defaults.verify) == Verify::Before;
    fault(
        before && matches!(request.mode, Mode::Postcopy | Mode::Hybrid),
        "verify is `before`; a guest that runs before its memory is there can only be verified `after`"
            .into(),
    );
    if !faults.is_empty() {
        return Err(DaemonError::Invalid(faults));
    }
    Ok(Limits {
        max_downtime_us: (max_downtime_ms * 1e3) as u64,
        max_total_ms: max_total_ms.map(|time| (time as u64).max(1)),
        bandwidth_bps,
        timeout_ms: (timeout_s * 1e3) as u64,
        on_timeout: request.on_timeout.unwrap_or(defaults.on_timeout),
        max_iterations,
        allow_postcopy: request.allow_postcopy.unwrap_or(defaults.allow_postcopy),
        reconnect_window_ms,
        max_slowdown_percent,
        prefetch_pages: None,
    })
}
