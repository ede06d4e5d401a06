//! The source's end of a migration.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use migrated_control::{ControlError, ErrorKind, Event, ExitReport, MigratePlan, PendingResolution, VmState};
use migrated_engine::source::SourceConfig;
use migrated_engine::{MigrationRecord, RecordRole, Verify};
use migrated_session::{Clock, SourceEnd, SourceRemote, SourceRequest, SourceSession, send};
use migrated_transport::{Endpoint, Transport};
use migrated_vmm::{RunningVm, Vm};
use migrated_wire::VerifyWhen;

use super::migration::{Active, Publisher};
use super::process::Process;
use super::{describe, errors, incoming, workload};

/// Page channels on this host: one for each two cores, at most 8. One fills a 10 Gbit/s link; and a page thread
/// that takes a core from a vCPU shows in the guest as a gap longer than the downtime.
fn default_channels() -> u16 {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u16::try_from(cores / 2).unwrap_or(u16::MAX).clamp(1, 8)
}

/// Begins to send the guest away; the rest is told in events.
pub fn start(process: &Arc<Process>, vm: &Vm, plan: MigratePlan) -> Result<(), ControlError> {
    process.refuse_if_arriving()?;
    let transport = incoming::transport(plan.transport, plan.tls.as_ref())?;
    let endpoint = |addr: &SocketAddr| Endpoint { addr: *addr, server_name: plan.server_name.clone() };
    let mut endpoints = plan.endpoints.iter().map(endpoint);
    let Some(peer) = endpoints.next() else {
        let message = "the destination named no endpoint to connect to";
        return Err(ControlError::new(ErrorKind::InvalidInput, "no_endpoint", message));
    };
    let identity = describe::identity(&describe::describe(process, vm))?;
    // Until this function has the guest.
    let _departure = process.watching.end();
    let guest =
        vm.outgoing().map_err(|error| errors::conflict("migration_in_progress", error.to_string()))?;
    let record = MigrationRecord {
        id: plan.migration.to_string(),
        vm: plan.vm.clone(),
        role: RecordRole::Source,
        peer: plan.peer.clone(),
        mode: plan.mode,
        transport: transport.name().to_owned(),
        started_unix_ms: plan.started.unix_ms,
        ..MigrationRecord::default()
    };
    let config = SourceConfig {
        identity,
        epoch: plan.epoch,
        mode: plan.mode,
        channels: plan.channels.unwrap_or_else(default_channels),
        verify: verify_when(plan.verify),
        compression: plan.compression,
        limits: plan.limits.into(),
        guest_clock: workload::clock(vm),
        peer: plan.peer.clone(),
    };
    let pending = PendingResolution { migration: plan.migration, epoch: plan.epoch, peer: plan.peer.clone() };
    let (events, asked) = (process.events.clone(), pending.clone());
    let (session, remote) = send(SourceRequest {
        migration: plan.migration,
        token: plan.token,
        peer: peer.clone(),
        other_addresses: endpoints.collect(),
        config,
        record,
        clock: Clock::started_before(
            Duration::try_from_secs_f64(plan.started.elapsed_ms / 1e3).unwrap_or_default(),
        ),
        seeker: Box::new(move || events.send(Event::NeedsResolution(asked.clone()))),
    });
    *process.migration.lock() = Some(Active::source(pending, peer, remote.clone()));
    let process = Arc::clone(process);
    let spawned = std::thread::Builder::new()
        .name("src-engine".into())
        .spawn(move || run(&process, session, &remote, guest, &transport));
    spawned.map_err(|error| ControlError::new(ErrorKind::Internal, "no_thread", error.to_string()))?;
    Ok(())
}

pub const fn verify_when(verify: Verify) -> VerifyWhen {
    match verify {
        Verify::Off => VerifyWhen::Off,
        Verify::Before => VerifyWhen::Before,
        Verify::After => VerifyWhen::After,
    }
}

fn run(
    process: &Arc<Process>,
    session: SourceSession,
    remote: &SourceRemote,
    guest: RunningVm,
    transport: &Arc<dyn Transport>,
) {
    let of = remote.clone();
    let mut publisher = Publisher::start(process, move || of.record());
    let end = session.run(guest, transport, || {
        let state = remote.state();
        if !state.is_final() {
            publisher.look(|| remote.record(), state);
        }
    });
    drop(publisher);
    let record = Box::new(remote.record());
    let tell_end = |record| process.events.send(Event::MigrationRecord(record));
    match end {
        SourceEnd::Moved => {
            tell_end(record.clone());
            process.end(ExitReport {
                state: VmState::MigratedAway,
                code: "migrated_away".into(),
                message: format!("the guest runs at {}", record.peer),
                record: Some(record),
            });
        }
        SourceEnd::Kept(guest, failure) => {
            // Before the end is told: the next migration, which may come at once, can then have the guest.
            drop(guest);
            tracing::warn!(code = failure.code.as_str(), "{}", failure.message);
            process.announce();
            tell_end(record);
        }
        SourceEnd::Stuck(failure) => {
            tracing::error!(code = failure.code.as_str(), "{}", failure.message);
            process.announce();
            tell_end(record);
        }
    }
}
