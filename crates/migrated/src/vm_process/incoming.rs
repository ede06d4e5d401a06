//! The destination's end of a migration.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use migrated_control::{
    ControlError, EpochRecord, ErrorKind, Event, ExitReport, IncomingPlan, TlsFiles, TransportKind, VmState,
};
use migrated_engine::destination::DestinationConfig;
use migrated_engine::{MigrationRecord, RecordRole};
use migrated_guest::IncomingGuest;
use migrated_session::{
    Clock, DestinationEnd, DestinationRemote, DestinationRequest, DestinationSession, Observation, receive,
};
use migrated_tcp::{TcpTransport, TlsConfig};
use migrated_transport::{Listener, Transport};
use migrated_vmm::{IncomingVm, RunningVm, Vm};

use super::epochs::Epochs;
use super::migration::{Active, Publisher};
use super::process::Process;
use super::{boot, describe, errors, network, workload};

/// How long this process answers for its commit when the link broke behind it; then the daemon does.
const LINGER: Duration = Duration::from_secs(60);

/// A VM that waits for its guest.
struct Prepared {
    guest: IncomingVm,
    session: DestinationSession,
    remote: DestinationRemote,
    listener: Box<dyn Listener>,
}

/// Makes an empty VM that listens for its guest.
pub fn start(process: &Arc<Process>, plan: IncomingPlan) {
    match prepare(process, &plan) {
        Ok(prepared) => {
            let listens_at = prepared.listener.local_addr();
            let endpoints = match plan.advertise.as_slice() {
                [] => vec![listens_at],
                told => told.iter().map(|ip| SocketAddr::new(*ip, listens_at.port())).collect(),
            };
            let active = Active::destination(plan.migration, plan.peer, plan.epoch, prepared.remote.clone());
            *process.migration.lock() = Some(active);
            let vm = prepared.guest.vm().clone();
            let receiver = Arc::clone(process);
            let spawned =
                std::thread::Builder::new().name("dst-engine".into()).spawn(move || run(&receiver, prepared));
            match spawned {
                Ok(_) => process.ready(&vm, endpoints),
                Err(error) => process.cannot(ControlError::new(
                    ErrorKind::Internal,
                    "no_thread",
                    format!("no thread for the migration: {error}"),
                )),
            }
        }
        Err(error) => process.cannot(error),
    }
}

/// The transport of that kind, with this host's identity where it needs one.
pub fn transport(kind: TransportKind, tls: Option<&TlsFiles>) -> Result<Arc<dyn Transport>, ControlError> {
    let unusable = |message: String| ControlError::new(ErrorKind::Unavailable, "tls_files", message);
    Ok(Arc::new(match (kind, tls) {
        (TransportKind::Tcp, _) => TcpTransport::plain(),
        (TransportKind::TcpTls, Some(files)) => {
            let config = TlsConfig::from_files(&files.ca, &files.cert, &files.key);
            TcpTransport::tls(config.map_err(|error| unusable(error.to_string()))?)
        }
        (TransportKind::TcpTls, None) => {
            return Err(unusable("tcp+tls needs `ca`, `cert` and `key` in the host's configuration".into()));
        }
    }))
}

fn prepare(process: &Arc<Process>, plan: &IncomingPlan) -> Result<Prepared, ControlError> {
    let transport = transport(plan.transport, plan.tls.as_ref())?;
    let cpu = process.cpu.to_run(&plan.description.cpu, plan.simulated);
    let config = boot::config(&process.dir, &plan.spec, &plan.networks, cpu);
    let guest = config.and_then(Vm::incoming).map_err(|error| errors::of_vmm(&error))?;
    let identity = describe::identity(&plan.description)?;
    process.cpu.check(&plan.description.cpu, guest.vm())?;
    let ours = describe::describe(process, guest.vm());
    let differing = describe::differing_sections(&ours.sections, &plan.description.sections);
    if !differing.is_empty() || ours.ram != plan.description.ram {
        let what = if differing.is_empty() { "the RAM layout differs".into() } else { differing.join("; ") };
        let message = format!("this host's VM is not what the guest needs: {what}");
        return Err(ControlError::new(ErrorKind::InvalidInput, "state_incompatible", message));
    }
    let rehearsal = rehearse(&guest);
    let epochs = EpochRecord::arm(&plan.epoch_file, plan.epoch).map_err(|error| {
        let file = plan.epoch_file.display();
        let message = format!("the commit could not be recorded in {file}: {error}; make room on that disk");
        ControlError::new(ErrorKind::Unavailable, "epoch_not_recorded", message)
    })?;
    let listener = transport
        .listen(plan.ip, plan.ports.range(), plan.migration)
        .map_err(|error| errors::of_transport(&error))?;
    let observed = guest.vm().clone();
    let (session, remote) = receive(
        DestinationRequest {
            migration: plan.migration,
            token: plan.token,
            max_channels: plan.max_channels,
            config: DestinationConfig {
                identity,
                epoch: plan.epoch,
                rehearsal,
                postcopy: guest.postcopy_support().map_err(|error| error.to_string()),
                patience: Duration::from_millis(plan.patience_ms),
                peer: plan.peer.clone(),
            },
            record: MigrationRecord {
                id: plan.migration.to_string(),
                vm: plan.vm.clone(),
                role: RecordRole::Destination,
                peer: plan.peer.clone(),
                mode: plan.mode,
                transport: transport.name().to_owned(),
                started_unix_ms: plan.started.unix_ms,
                ..MigrationRecord::default()
            },
            clock: Clock::started_before(Duration::ZERO),
            linger: LINGER,
            epochs: Box::new(Epochs(epochs)),
            observer: Box::new(move |since| Observation {
                guest_gap_us: since.and_then(|since| workload::gap_since(&observed, since)),
                first_packet_us: network::first_packet(&observed).map(|time| time.as_micros() as u64),
            }),
        },
        guest.vm().ram(),
    );
    Ok(Prepared { guest, session, remote, listener })
}

/// What saving and restoring state takes here: the measured part of a downtime that is still to come.
/// The first time is not measured: it makes the kernel touch what it never has, and then that is done.
fn rehearse(guest: &IncomingVm) -> Duration {
    let mut took = Duration::ZERO;
    for _ in 0..2 {
        let began = Instant::now();
        if let Err(error) = guest.rehearse() {
            tracing::warn!("the state could not be rehearsed: {error}");
        }
        took = began.elapsed();
    }
    took
}

fn run(process: &Arc<Process>, prepared: Prepared) {
    let Prepared { guest, session, remote, listener } = prepared;
    let of = remote.clone();
    let mut publisher = Publisher::start(process, move || of.record());
    let end = session.run(
        guest,
        listener,
        // It may be migrated on at once, while this session still answers for the move that is behind it.
        |running: RunningVm| drop(running),
        || publisher.look(|| remote.record(), remote.state()),
    );
    drop(publisher);
    let record = Box::new(remote.record());
    process.events.send(Event::MigrationRecord(record.clone()));
    match end {
        DestinationEnd::Runs => process.announce(),
        DestinationEnd::NeverRan(failure) => process.end(ExitReport {
            state: VmState::Failed,
            code: failure.code.as_str().to_owned(),
            message: failure.message,
            record: Some(record),
        }),
    }
}
