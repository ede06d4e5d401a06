//! The guest's way: made at the first host, moved to and fro, looked at, and ended.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use migrated_api::{
    MigrationRecord, MigrationState, StartMigration, Vm, VmList, VmSpec, VmState, WorkloadCounters,
};

use super::guest::NAME;
use super::host::{Host, LOOK};
use super::say;
use crate::cli::progress;
use crate::client::{ApiClient, ApiClientError};
use crate::daemon::ProcessId;
use crate::units::show_bytes;

/// Making the guest touches all of its memory, and it fills it: how long that may take at least.
const MAKING: Duration = Duration::from_secs(60);
/// Slowest touching and filling of memory to reckon with, in bytes a second.
const SLOWEST: u64 = 50 << 20;
/// How long a guest may seem to stand still before it is held for dead.
const STILL: Duration = Duration::from_secs(10);
/// How long a VM process may take to end when its VM is gone.
const LEAVING: Duration = Duration::from_secs(10);

/// What is to be done.
#[derive(Debug)]
pub struct Tour {
    /// The guest.
    pub spec: VmSpec,
    /// How it moves.
    pub migration: StartMigration,
    /// How often.
    pub migrations: u32,
    /// Whether somebody watches.
    pub show: bool,
}

/// What was seen.
#[derive(Debug, Default)]
pub struct Toured {
    /// Each migration's record, as its source has it; after one that did not complete there is none.
    pub migrations: Vec<MigrationRecord>,
    /// Each one's record as its destination has it, of those that completed.
    pub arrivals: Vec<MigrationRecord>,
    /// What the guest counted, at the end.
    pub workload: Option<WorkloadCounters>,
    /// Everything that is not as it should be and that no record tells.
    pub problems: Vec<String>,
}

impl Tour {
    /// Does it. What goes wrong with the guest or a migration is seen, what keeps us from looking is an error.
    pub async fn run(&self, hosts: &mut [Host; 2]) -> Result<Toured> {
        for host in hosts.iter_mut() {
            host.await_ready().await?;
        }
        let hosts = &*hosts;
        self.make_guest(&hosts[0]).await?;
        let (mut toured, mut processes) = (Toured::default(), Vec::new());
        for n in 0..self.migrations as usize {
            let (from, to) = (&hosts[n % 2], &hosts[(n + 1) % 2]);
            processes.extend(process_of(&show(from).await?));
            let (record, arrival) = self.migrate(from, to).await?;
            toured.migrations.push(record);
            match arrival {
                Some(arrival) => toured.arrivals.push(arrival),
                None => break,
            }
        }
        look_at_the_end(hosts, &mut toured).await?;
        remove_guest(hosts, processes, &mut toured).await?;
        Ok(toured)
    }

    async fn make_guest(&self, host: &Host) -> Result<()> {
        say(&format!("booting a guest of {} at {}", show_bytes(self.spec.memory_bytes), host.name));
        let patience = MAKING + Duration::from_secs(self.spec.memory_bytes / SLOWEST);
        let deadline = Instant::now() + patience;
        let _: Vm = host.api.post("/v1/vms", &self.spec, patience).await?;
        loop {
            let vm = show(host).await?;
            if vm.workload.is_some_and(|workload| workload.ready) {
                return Ok(());
            }
            ensure!(
                vm.state == VmState::Running,
                "the guest is {}: {}",
                vm.state,
                vm.error.unwrap_or_default()
            );
            ensure!(Instant::now() < deadline, "the guest has not filled its memory within {patience:?}");
            tokio::time::sleep(LOOK).await;
        }
    }

    /// One migration's record at its source, and at its destination if the guest came there.
    async fn migrate(&self, from: &Host, to: &Host) -> Result<(MigrationRecord, Option<MigrationRecord>)> {
        say(&format!("{} -> {}", from.name, to.name));
        let request = StartMigration { to: to.name.into(), ..self.migration.clone() };
        let path = format!("/v1/vms/{NAME}/migrations");
        let begun: MigrationRecord = from.api.post(&path, &request, ApiClient::PATIENCE).await?;
        let ended = progress::watch(&from.api, &begun.id, self.show).await?;
        if ended.state != Some(MigrationState::Completed) {
            return Ok((ended, None));
        }
        // Its own end comes a moment later; only then may the guest move on.
        let arrived = progress::watch(&to.api, &begun.id, false).await?;
        let there = arrived.state.map_or("nothing", MigrationState::name);
        ensure!(
            arrived.state == ended.state,
            "migration {} completed by {}'s account, by {}'s it is {there}",
            ended.id,
            from.name,
            to.name
        );
        Ok((ended, Some(arrived)))
    }
}

async fn show(host: &Host) -> Result<Vm, ApiClientError> {
    host.api.get(&format!("/v1/vms/{NAME}")).await
}

/// The guest as each host knows it.
async fn list(hosts: &[Host; 2]) -> Result<Vec<(&Host, Vm)>> {
    let mut known = Vec::new();
    for host in hosts {
        let list: VmList = host.api.get("/v1/vms").await?;
        known.extend(list.vms.into_iter().map(|vm| (host, vm)));
    }
    Ok(known)
}

/// The guest must run, on one host and no other.
async fn look_at_the_end(hosts: &[Host; 2], toured: &mut Toured) -> Result<()> {
    let known = list(hosts).await?;
    let runs: Vec<_> = known.iter().filter(|(_, vm)| vm.state == VmState::Running).collect();
    match runs[..] {
        [(host, _)] => match await_heartbeat(host).await {
            Ok(workload) => toured.workload = Some(workload),
            Err(error) => toured.problems.push(format!("the guest at {}: {error:#}", host.name)),
        },
        _ => {
            let seen: Vec<_> =
                known.iter().map(|(host, vm)| format!("{} at {}", vm.state, host.name)).collect();
            toured.problems.push(format!("the guest should run on one host; it is: {}", seen.join(", ")));
        }
    }
    Ok(())
}

/// Waits until the guest is seen to run, and gives its counters.
async fn await_heartbeat(host: &Host) -> Result<WorkloadCounters> {
    let look = async || show(host).await?.workload.context("it has no counters");
    let (before, deadline) = (look().await?, Instant::now() + STILL);
    loop {
        let now = look().await?;
        if now.heartbeat != before.heartbeat {
            return Ok(now);
        }
        if Instant::now() >= deadline {
            bail!("it stands still");
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Ends the guest wherever it is known, and sees that all processes that it ever had are gone.
async fn remove_guest(hosts: &[Host; 2], mut processes: Vec<ProcessId>, toured: &mut Toured) -> Result<()> {
    for (host, vm) in list(hosts).await? {
        processes.extend(process_of(&vm));
        host.api.delete(&format!("/v1/vms/{}", vm.id)).await?;
    }
    let deadline = Instant::now() + LEAVING;
    for process in processes {
        while process.is_alive() && Instant::now() < deadline {
            tokio::time::sleep(LOOK).await;
        }
        if process.is_alive() {
            process.kill();
            toured.problems.push(format!("VM process {} outlived its VM: it was killed", process.pid));
        }
    }
    Ok(())
}

fn process_of(vm: &Vm) -> Option<ProcessId> {
    vm.pid.and_then(ProcessId::of)
}
