use migrated_api::{CpuReport, MigrationState, Reason, VmState};
use migrated_control::{ClientError, ControlError};
use migrated_cpuid::{DumpError, PoolError};
use thiserror::Error;

use super::admission::{CPU_INCOMPATIBLE, Refusal, cpu_in_words, cpu_reasons};

/// Why the daemon does not do what it was asked. The text says what a person would do next.
#[derive(Debug, Error)]
pub enum DaemonError {
    /// No such VM on this host.
    #[error("there is no VM {0:?} on this host; `migrated vm list` shows those that are")]
    VmNotFound(String),
    /// No such migration.
    #[error("this host knows no migration {0:?}; `migrated migration list` shows those that it knows")]
    MigrationNotFound(String),
    /// Two VMs of one name.
    #[error("a VM named {0:?} is on this host already; choose another name or delete that one")]
    NameTaken(String),
    /// Two VMs of one id: the same VM twice.
    #[error("the VM {0} is on this host already, or still coming in")]
    IdTaken(String),
    /// A specification or request that can't be right on any host.
    #[error("the request is not valid: {}", in_words(.0))]
    Invalid(Vec<Reason>),
    /// Too little RAM.
    #[error(transparent)]
    NoRoom(#[from] super::memory::NoRoom),
    /// The host can't give a VM its network interfaces.
    #[error("this host can't connect the VM: {}", in_words(.0))]
    Network(Vec<Reason>),
    /// KVM can't be used.
    #[error("{0}")]
    Kvm(String),
    /// The VM process says no.
    #[error(transparent)]
    Vm(#[from] ControlError),
    /// The VM process does not talk.
    #[error("VM {vm}: {source}")]
    VmUnreachable {
        /// Which VM.
        vm: String,
        /// How it showed.
        #[source]
        source: ClientError,
    },
    /// Not in this state.
    #[error("VM {vm} is {state}; it must be {wanted} for that")]
    WrongState {
        /// Which VM.
        vm: String,
        /// Its state.
        state: VmState,
        /// Which states would do.
        wanted: &'static str,
    },
    /// A guest without ACPI.
    #[error(
        "the guest of VM {0} is the built-in workload, which has no power button; delete the VM to end it"
    )]
    NoPowerButton(String),
    /// A guest without a driver for one.
    #[error(
        "the guest of VM {0} is the built-in workload, which has no balloon; a VM that boots a kernel has one"
    )]
    NoBalloon(String),
    /// A VM takes part in one migration at a time.
    #[error("VM {vm} is in migration {migration}; wait for its end, or cancel it")]
    MigrationInProgress {
        /// Which VM.
        vm: String,
        /// Which migration.
        migration: String,
    },
    /// Too late to cancel.
    #[error("migration {id} is {state} and can't be cancelled any more")]
    NotCancellable {
        /// Which migration.
        id: String,
        /// Its state.
        state: MigrationState,
    },
    /// The guest runs at another host, which needs what only this host's copy has.
    #[error(
        "the guest of VM {vm} runs, or may run, at {peer} and lacks pages that only this copy has: it can't be resumed, \
         paused or deleted here before migration {migration} has ended, because the guest would be lost. If {peer} is \
         gone for good, so is the guest: then end process {pid} by hand and delete the VM"
    )]
    RunsElsewhere {
        /// Which VM.
        vm: String,
        /// Where it runs.
        peer: String,
        /// The migration.
        migration: String,
        /// The process that has the copy.
        pid: u32,
    },
    /// No link is missing, or not one that this end could make.
    #[error(
        "migration {id} is {state}: only one that is precopy_paused or postcopy_paused can be recovered, and only at its source; \
         it also reconnects by itself"
    )]
    NotRecoverable {
        /// Which migration.
        id: String,
        /// Its state.
        state: MigrationState,
    },
    /// As many follow a console as may.
    #[error("{readers} readers follow the console of VM {vm} already; end one of them")]
    TooManyReaders {
        /// Which VM.
        vm: String,
        /// How many may.
        readers: usize,
    },
    /// A destination that is neither configured nor a URL.
    #[error("{0}")]
    PeerUnknown(String),
    /// A transport that this host is not set up for.
    #[error("{0}")]
    Transport(String),
    /// The guest can't come here.
    #[error("this host can't take the guest: {0}")]
    AdmissionRefused(Refusal),
    /// There is no such CPU baseline, or it is none.
    #[error("the CPU baseline is not valid: {}", in_words(.0))]
    Baseline(Vec<Reason>),
    /// A host can't give a guest what its baseline has.
    #[error("{}", cpu_in_words(.host, .report))]
    CpuNotGiven {
        /// The host.
        host: String,
        /// What it can't give.
        report: Box<CpuReport>,
    },
    /// Hosts with too little in common.
    #[error("there is no common baseline: {0}")]
    NoCommonBaseline(#[source] PoolError),
    /// What is said to be a host's CPU is none.
    #[error("{place}: {error}")]
    InvalidDump {
        /// Where it was said.
        place: String,
        /// What is wrong with it.
        #[source]
        error: DumpError,
    },
    /// A peer does not answer, or not as wanted.
    #[error("{peer}: {detail}")]
    Peer {
        /// As it was named.
        peer: String,
        /// What went wrong, for machines.
        code: String,
        /// And for people.
        detail: String,
    },
    /// A commit's fate can't be told at the moment.
    #[error("can't tell yet what became of migration {id}: {reason}; ask again")]
    Unresolved {
        /// Which migration.
        id: String,
        /// Why not.
        reason: String,
    },
    /// The system refused something with files or processes.
    #[error("{what}: {source}")]
    Local {
        /// What was tried.
        what: String,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
}

fn in_words(reasons: &[Reason]) -> String {
    reasons.iter().map(|reason| reason.detail.as_str()).collect::<Vec<_>>().join("; ")
}

fn baseline_code(reasons: &[Reason]) -> &'static str {
    let unknown = |reason: &Reason| matches!(&*reason.code, "unknown_baseline" | "unknown_baseline_part");
    if reasons.iter().any(unknown) { "unknown_baseline" } else { "invalid_baseline" }
}

impl DaemonError {
    /// Stable and machine-readable.
    pub fn code(&self) -> &str {
        match self {
            Self::VmNotFound(_) => "vm_not_found",
            Self::MigrationNotFound(_) => "migration_not_found",
            Self::NameTaken(_) => "vm_name_taken",
            Self::IdTaken(_) => "vm_id_taken",
            Self::Invalid(_) => "invalid_request",
            Self::NoRoom(_) => "insufficient_memory",
            Self::Network(_) => "network_unavailable",
            Self::Kvm(_) => "kvm_unavailable",
            Self::Vm(error) => &error.code,
            Self::VmUnreachable { .. } => "vm_process_unreachable",
            Self::WrongState { .. } => "wrong_vm_state",
            Self::NoPowerButton(_) => "guest_without_acpi",
            Self::NoBalloon(_) => "guest_without_balloon",
            Self::MigrationInProgress { .. } => "migration_in_progress",
            Self::NotCancellable { .. } => "migration_not_cancellable",
            Self::RunsElsewhere { .. } => "guest_runs_elsewhere",
            Self::NotRecoverable { .. } => "migration_not_recoverable",
            Self::TooManyReaders { .. } => "too_many_readers",
            Self::PeerUnknown(_) => "peer_unknown",
            Self::Transport(_) => "transport_unavailable",
            Self::AdmissionRefused(refusal) if refusal.is_for_cpu_alone() => CPU_INCOMPATIBLE,
            Self::AdmissionRefused(_) => "admission_refused",
            Self::Baseline(reasons) => baseline_code(reasons),
            Self::CpuNotGiven { .. } => CPU_INCOMPATIBLE,
            Self::NoCommonBaseline(_) => "no_common_baseline",
            Self::InvalidDump { .. } => "invalid_cpu_dump",
            Self::Peer { code, .. } => code,
            Self::Unresolved { .. } => "unresolved",
            Self::Local { .. } => "host_error",
        }
    }

    /// Every single thing that was wrong, where there may be several.
    pub fn reasons(&self) -> Vec<Reason> {
        match self {
            Self::Invalid(reasons) | Self::Network(reasons) | Self::Baseline(reasons) => reasons.clone(),
            Self::AdmissionRefused(refusal) => refusal.reasons.clone(),
            Self::CpuNotGiven { report, .. } => cpu_reasons(report).collect(),
            _ => Vec::new(),
        }
    }

    /// What of a guest's CPU a host can't give, where that is among what was wrong.
    pub fn cpu(&self) -> Option<&CpuReport> {
        match self {
            Self::AdmissionRefused(refusal) => refusal.cpu.as_deref(),
            Self::CpuNotGiven { report, .. } => Some(report),
            _ => None,
        }
    }

    /// As one of several reasons.
    pub fn to_reason(&self) -> Reason {
        Reason { code: self.code().to_owned(), detail: self.to_string() }
    }

    /// For `map_err` on I/O.
    pub fn local(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Local { what: what.into(), source }
    }
}
