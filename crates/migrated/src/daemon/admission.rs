//! Whether a guest can come here: everything that would stop it later is found now, before its
//! first byte moves, and all of it is told at once.

use migrated_api::{Admission, CpuReport, MemoryBacking, PrepareIncoming, Reason};
use migrated_control::{NetworkPlan, TlsFiles};
use migrated_guest::PostcopyRam;
use migrated_wire::{MigrationId, PROTOCOL, VersionRange};

use super::clocks::AskedAt;
use super::vm::Vm;
use super::{Daemon, DaemonError, network, spec};
use crate::config::MAX_CHANNELS;

/// A guest that may come.
pub struct Admitted {
    /// The migration's id, parsed.
    pub migration: MigrationId,
    /// Our identity for its transport.
    pub tls: Option<TlsFiles>,
    /// Its network interfaces as this host makes them.
    pub networks: Vec<NetworkPlan>,
    /// Most page channels to accept.
    pub max_channels: u16,
}

/// Why a guest may not come.
#[derive(Debug)]
pub struct Refusal {
    /// Every reason; one of the code [`CPU_INCOMPATIBLE`] for each thing that the CPU lacks.
    pub reasons: Vec<Reason>,
    /// What the CPU lacks, where it lacks something.
    pub cpu: Option<Box<CpuReport>>,
}

/// Code of what is wrong with a guest's CPU.
pub const CPU_INCOMPATIBLE: &str = "cpu_incompatible";

impl Refusal {
    /// Whether all that is wrong is the CPU.
    pub fn is_for_cpu_alone(&self) -> bool {
        self.cpu.is_some() && self.others().next().is_none()
    }

    /// What is wrong besides the CPU.
    fn others(&self) -> impl Iterator<Item = &Reason> {
        self.reasons.iter().filter(|reason| reason.code != CPU_INCOMPATIBLE)
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let others = self.others().map(|reason| reason.detail.clone());
        let cpu = self.cpu.as_ref().map(|report| cpu_in_words("this host", report));
        f.write_str(&others.chain(cpu).collect::<Vec<_>>().join("; "))
    }
}

/// A refusal because of the CPU in one sentence: its reasons are told one by one beside it.
pub fn cpu_in_words(host: &str, report: &CpuReport) -> String {
    let CpuReport { mismatches, made_from, guest_baseline, host_baseline, fix, .. } = report;
    let name = |baseline: &Option<String>| baseline.clone().unwrap_or_else(|| "no named baseline".into());
    let things = if mismatches.len() == 1 { "thing" } else { "things" };
    format!(
        "the CPU of {host} does not fit the guest's (made from {made_from}) in {} {things}; the guest has {}, \
         {host} offers {}{}",
        mismatches.len(),
        name(guest_baseline),
        name(host_baseline),
        fix.first().map(|fix| format!("; {fix}")).unwrap_or_default()
    )
}

/// Each thing that the CPU lacks, as a reason.
pub fn cpu_reasons(report: &CpuReport) -> impl Iterator<Item = Reason> {
    report
        .mismatches
        .iter()
        .map(|mismatch| Reason { code: CPU_INCOMPATIBLE.into(), detail: mismatch.to_string() })
}

impl Daemon {
    /// Judges a guest by what its source says of it. Name, id and memory are judged when it is registered.
    pub(super) fn admit(&self, request: &PrepareIncoming) -> Result<Admitted, Refusal> {
        let mut reasons = Vec::new();
        let mut refuse = |code: &str, detail: String| reasons.push(Reason { code: code.into(), detail });

        let theirs = VersionRange { min: request.protocol.min, max: request.protocol.max };
        if PROTOCOL.common(theirs).is_none() {
            refuse(
                "protocol_version",
                format!(
                    "the source speaks versions {} to {} of the protocol, this host {} to {}; update the older",
                    theirs.min, theirs.max, PROTOCOL.min, PROTOCOL.max
                ),
            );
        }
        let migration = request.migration.parse::<MigrationId>();
        if migration.is_err() || !spec::is_id(&request.migration) || !spec::is_id(&request.vm) {
            refuse("invalid_id", "`migration` and `vm` must be 32 hex digits".into());
        } else if self.migration(&request.migration).is_ok() {
            refuse(
                "migration_id_taken",
                format!("this host knows a migration {} already", request.migration),
            );
        }
        let tls = self.config.transport(request.transport).unwrap_or_else(|why| {
            refuse("transport_unavailable", why);
            None
        });
        if request.channels.is_some_and(|n| !(1..=MAX_CHANNELS).contains(&n)) {
            refuse("invalid_channels", format!("`channels` must be 1 to {MAX_CHANNELS}"));
        }
        let ram = &request.description.ram;
        if let Err(e) = ram.validate() {
            refuse("invalid_ram_layout", e.to_string());
        } else if ram.total_bytes() != request.spec.memory_bytes {
            refuse(
                "invalid_ram_layout",
                format!(
                    "{} bytes in RAM blocks, {} in the specification",
                    ram.total_bytes(),
                    request.spec.memory_bytes
                ),
            );
        }
        if request.description.simulated != self.is_simulated() {
            refuse(
                "simulated_cpu",
                "one of both hosts only pretends to have its CPU (`testing.simulate_cpu`), for tests: guests move \
                 among such hosts, or among real ones"
                    .into(),
            );
        }
        match self.kvm() {
            Ok(kvm) => reasons.extend(spec::faults(&request.spec, kvm.max_vcpus)),
            Err(e) => reasons.push(e.to_reason()),
        }
        let (networks, lacking) = self.plan_networks(Some(&request.vm), &request.spec);
        reasons.extend(lacking);
        let mut cpu = None;
        match self.host_cpu() {
            Ok(host) => {
                let report = CpuReport::of(&request.description.cpu, host);
                if !report.admitted {
                    reasons.extend(cpu_reasons(&report));
                    cpu = Some(Box::new(report));
                }
            }
            Err(e) => reasons.push(e.to_reason()),
        }
        match (migration, reasons.is_empty()) {
            (Ok(migration), true) => {
                let max_channels = request.channels.unwrap_or(MAX_CHANNELS);
                Ok(Admitted { migration, tls, networks, max_channels })
            }
            _ => Err(Refusal { reasons, cpu }),
        }
    }

    /// What [`prepare`](Self::prepare) would come to, as far as it can be said without beginning anything.
    pub fn check_incoming(&self, request: &PrepareIncoming) -> Admission {
        let asked = AskedAt::now();
        let (mut reasons, cpu) = match self.admit(request) {
            Ok(_) => (Vec::new(), None),
            Err(refusal) => (refusal.reasons, refusal.cpu.map(|cpu| *cpu)),
        };
        reasons.extend(self.registration_faults(request));
        // Its VM process would have this process's permissions.
        let no_postcopy = match request.spec.backing {
            MemoryBacking::Memfd | MemoryBacking::Thp => {
                PostcopyRam::permitted().err().map(|error| error.to_string())
            }
            MemoryBacking::Hugetlb2m => {
                Some("the guest's RAM is in huge pages of hugetlbfs; it can move by pre-copy".to_owned())
            }
        };
        Admission { reasons, cpu, no_postcopy, clock: Some(asked.answered()) }
    }

    /// What would also be refused at registration, for a guest that is refused already.
    pub(super) fn registration_faults(&self, request: &PrepareIncoming) -> Vec<Reason> {
        let vms = self.vms.lock();
        let mut reasons = Vec::new();
        if vms.get(&request.vm).is_some_and(|vm| vm.is_here()) {
            reasons.push(DaemonError::IdTaken(request.vm.clone()).to_reason());
        }
        if vms.values().any(|vm| vm.is_here() && vm.spec.name == request.spec.name) {
            reasons.push(DaemonError::NameTaken(request.spec.name.clone()).to_reason());
        }
        let room =
            super::memory::check_room(&self.config.guests, &request.spec, vms.values().map(AsRef::as_ref));
        reasons.extend(room.map_err(|e| DaemonError::NoRoom(e).to_reason()).err());
        // One that has the id is told of already, and has the addresses as well.
        let others = vms.values().map(AsRef::as_ref).filter(|vm: &&Vm| vm.id != request.vm);
        reasons.extend(network::macs_in_use(&request.spec, others));
        reasons
    }
}
