//! Making, pausing, resuming and deleting a VM.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use migrated_api::MigrationState;
use migrated_control::{
    BootPlan, BootSource, ClientError, ControlClient, Request, Response, VmSpec, VmStart, VmState,
};

use super::process::{Exit, ProcessId};
use super::vm::Vm;
use super::{Daemon, DaemonError, new_id, spec};

/// How long a new VM process may take to answer at all.
const GREETING: Duration = Duration::from_secs(20);
/// How long a VM process may take to exit when it was asked to.
const EXIT: Duration = Duration::from_secs(10);
/// How long a VM process that can't make its VM may take to leave.
const LEAVE: Duration = Duration::from_secs(2);
/// Slowest first touch of memory to reckon with, in bytes a second.
const SLOWEST_PREFAULT: u64 = 100 << 20;

impl Daemon {
    /// Makes a VM and boots it.
    pub async fn create_vm(self: &Arc<Self>, mut spec: VmSpec) -> Result<Arc<Vm>, DaemonError> {
        let mut faults = spec::faults(&spec, self.kvm()?.max_vcpus);
        self.choose_macs(&mut spec)?;
        let (networks, lacking) = self.plan_networks(None, &spec);
        if !faults.is_empty() {
            faults.extend(lacking);
            return Err(DaemonError::Invalid(faults));
        }
        if !lacking.is_empty() {
            return Err(DaemonError::Network(lacking));
        }
        let cpu = self.cpu_for(&spec)?;
        let vm = self.register(new_id()?.to_string(), spec.clone(), VmState::Starting)?;
        let plan = BootPlan { spec, networks, cpu, simulated: self.is_simulated(), again: false };
        self.launch(&vm, VmStart::Boot(Box::new(plan))).await?;
        Ok(vm)
    }

    /// Starts a registered VM's process and waits until the VM is made. When it can't be, nothing is left of it.
    pub(super) async fn launch(
        self: &Arc<Self>,
        vm: &Arc<Vm>,
        start: VmStart,
    ) -> Result<Vec<SocketAddr>, DaemonError> {
        let launched = self.try_launch(vm, start).await;
        if launched.is_err() {
            // Having said why, it exits by itself.
            if let Some(process) = vm.process()
                && !vm.wait_gone(LEAVE).await
            {
                process.kill();
                vm.wait_gone(EXIT).await;
            }
            self.forget(vm);
        }
        launched
    }

    async fn try_launch(
        self: &Arc<Self>,
        vm: &Arc<Vm>,
        start: VmStart,
    ) -> Result<Vec<SocketAddr>, DaemonError> {
        let local = |what: &str| {
            DaemonError::local(format!("can't start the VM process of {}: {what}", vm.spec.name))
        };
        self.store.create_vm(&vm.dir, &vm.spec).map_err(local("its directory"))?;
        vm.dir.write_start(&start).map_err(|e| local("its start file")(std::io::Error::other(e)))?;
        let client = self.start_process(vm).await?;
        self.await_ready(vm, client).await
    }

    /// Starts a VM's process, whose directory is ready, and a supervisor for it. Gives the connection to it, or why
    /// there is none: it may come yet, or the process has ended, which is taken note of.
    pub(super) async fn start_process(
        self: &Arc<Self>,
        vm: &Arc<Vm>,
    ) -> Result<Result<ControlClient, ClientError>, DaemonError> {
        let local = |what: &str| {
            DaemonError::local(format!("can't start the VM process of {}: {what}", vm.spec.name))
        };
        let child = self.ground.vm_command.spawn(&vm.dir).map_err(local("its program"))?;
        let process = child.id().and_then(ProcessId::of);
        let mut exit = Exit::Child(child);
        let Some(process) = process else {
            let how = exit.wait().await;
            self.on_exit(vm, how);
            return Ok(Err(ClientError::Closed));
        };
        vm.set_process(process.clone());
        if vm.is_doomed() {
            // Whoever deletes it found no process to end.
            process.kill();
        }
        self.store.write_process(&vm.dir, &process).map_err(local("its pid file"))?;
        let socket = vm.dir.control_socket();
        let connected = tokio::select! {
            connected = ControlClient::connect(&socket, GREETING) => connected,
            how = exit.wait() => {
                self.on_exit(vm, how);
                return Ok(Err(ClientError::Closed));
            }
        };
        // From here the supervisor waits for its end, also when it gave no greeting.
        let (client, events) = match connected {
            Ok((client, events)) => {
                vm.set_client(Some(client.clone()));
                (Ok(client), Some(events))
            }
            Err(e) => (Err(e), None),
        };
        tokio::spawn(Arc::clone(self).supervise(Arc::clone(vm), events, exit));
        Ok(client)
    }

    async fn await_ready(
        &self,
        vm: &Vm,
        client: Result<ControlClient, ClientError>,
    ) -> Result<Vec<SocketAddr>, DaemonError> {
        let asked = match client {
            Ok(client) => ready_and_state(&client, vm).await,
            Err(e) => Err(e),
        };
        match asked {
            Ok(endpoints) => Ok(endpoints),
            Err(ClientError::Refused(refusal)) => return Err(DaemonError::Vm(refusal)),
            // It can't be reached because it died: its own reason says more.
            Err(_) if vm.wait_gone(Duration::from_secs(1)).await => {
                return Err(vm.died());
            }
            Err(e) => Err(e),
        }
        .map_err(|source| DaemonError::VmUnreachable { vm: vm.spec.name.clone(), source })
    }

    /// Stops a VM's vCPUs.
    pub async fn pause(&self, vm: &Vm) -> Result<(), DaemonError> {
        self.switch(vm, Request::Pause, VmState::Paused).await
    }

    /// Runs a VM's vCPUs.
    pub async fn resume(&self, vm: &Vm) -> Result<(), DaemonError> {
        self.switch(vm, Request::Resume, VmState::Running).await
    }

    /// Presses a VM's power button; what comes of it is the guest's affair.
    pub async fn shut_down(&self, vm: &Vm) -> Result<(), DaemonError> {
        if matches!(vm.spec.boot, BootSource::Workload { .. }) {
            return Err(DaemonError::NoPowerButton(vm.spec.name.clone()));
        }
        vm.ask_running(Request::PressPowerButton).await
    }

    /// Asks a VM's guest to give up so many bytes of its RAM in all; it takes its time, also while it migrates.
    pub async fn set_balloon(&self, vm: &Vm, bytes: u64) -> Result<(), DaemonError> {
        if matches!(vm.spec.boot, BootSource::Workload { .. }) {
            return Err(DaemonError::NoBalloon(vm.spec.name.clone()));
        }
        vm.ask_running(Request::SetBalloon { bytes }).await
    }

    async fn switch(&self, vm: &Vm, request: Request, to: VmState) -> Result<(), DaemonError> {
        self.refuse_if_migrating(vm)?;
        let (state, _) = vm.state();
        if !matches!(state, VmState::Running | VmState::Paused) {
            let vm = vm.spec.name.clone();
            return Err(DaemonError::WrongState { vm, state, wanted: "running or paused" });
        }
        vm.client()?.perform(request).await.map_err(|e| vm.failed(e))?;
        vm.set_state(to, None);
        Ok(())
    }

    /// Ends a VM and removes everything of it.
    pub async fn delete(&self, vm: &Vm) -> Result<(), DaemonError> {
        self.give_up_unresolved(vm);
        self.refuse_if_migrating(vm)?;
        vm.doom();
        if !vm.is_gone() {
            let asked = match vm.client() {
                Ok(client) => client.perform(Request::Shutdown).await.is_ok(),
                Err(_) => false,
            };
            if !(asked && vm.wait_gone(EXIT).await) {
                tracing::warn!(vm = vm.id, "the VM process does not exit when asked: killing it");
                vm.process().inspect(ProcessId::kill);
                vm.wait_gone(EXIT).await;
            }
        }
        self.forget(vm);
        Ok(())
    }

    /// A copy that stands still, or is dead, while a destination doesn't say what became of its commit may be
    /// deleted: that runs no second one, and nobody else can end the waiting if the destination never answers. Not
    /// one with pages that the guest may lack there.
    fn give_up_unresolved(&self, vm: &Vm) {
        let Some(migration) = vm.migration().and_then(|id| self.migration(&id).ok()) else { return };
        let indeterminate = migration.state() == MigrationState::Indeterminate;
        if vm.is_gone() || indeterminate && !migration.switched() {
            let message = format!(
                "the VM was deleted here before {} had said whether the guest runs there",
                migration.peer
            );
            self.end(&migration, MigrationState::Failed, "vm_deleted", message);
        }
    }
}

/// Waits until the VM is made, and learns what it does then.
pub(super) async fn ready_and_state(client: &ControlClient, vm: &Vm) -> Result<Vec<SocketAddr>, ClientError> {
    let patience = GREETING + Duration::from_secs(vm.spec.memory_bytes / SLOWEST_PREFAULT);
    let Response::Ready { endpoints } = client.request_within(Request::AwaitReady, patience).await? else {
        return Err(ClientError::Unexpected("another answer than that it is ready"));
    };
    let status = client.status().await?;
    // An event may have told more since.
    if vm.state().0 == VmState::Starting {
        vm.set_state(status.state, status.reason);
    }
    Ok(endpoints)
}

impl Vm {
    /// Asks something of its process that only a guest that runs can do.
    async fn ask_running(&self, request: Request) -> Result<(), DaemonError> {
        let (state, _) = self.state();
        if state != VmState::Running {
            let vm = self.spec.name.clone();
            return Err(DaemonError::WrongState { vm, state, wanted: "running" });
        }
        self.client()?.perform(request).await.map_err(|e| self.failed(e))
    }

    /// How its process died, as the reason why it could not be made.
    fn died(&self) -> DaemonError {
        match self.death() {
            Some(death) => DaemonError::Vm(death.to_error()),
            None => DaemonError::VmUnreachable { vm: self.spec.name.clone(), source: ClientError::Closed },
        }
    }

    /// An error of the connection to its process, as the daemon's.
    pub(super) fn failed(&self, error: ClientError) -> DaemonError {
        match error {
            ClientError::Refused(refusal) => DaemonError::Vm(refusal),
            source => DaemonError::VmUnreachable { vm: self.spec.name.clone(), source },
        }
    }
}
