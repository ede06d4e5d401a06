use std::io;
use std::path::PathBuf;

use migrated_guest::GuestError;
use migrated_kernel::KvmError;
use thiserror::Error;

use crate::boot::BootError;
use crate::cpu::CpuError;
use crate::memory::MemoryError;
use crate::virtio::net::NetworkError;

/// Why a guest can't be asked for RAM.
#[derive(Debug, Error)]
pub enum BalloonError {
    /// It was made without.
    #[error("this VM has no balloon; a VM that boots a kernel has one")]
    None,
    /// More than a guest can spare.
    #[error(
        "{bytes} bytes can't be had of a guest with {ram} bytes of RAM; ask for at most {most}, since it needs the rest"
    )]
    TooLarge {
        /// What was asked for.
        bytes: u64,
        /// What the guest has.
        ram: u64,
        /// What may be asked for.
        most: u64,
    },
    /// The guest stands still, has ended or is elsewhere.
    #[error("the guest doesn't run at this moment, so it can't be asked for RAM; ask when it does")]
    NotRunning,
    /// Nobody in the guest would hear of it.
    #[error(
        "the guest has no driver for its balloon; load virtio_balloon there, or wait until it has booted"
    )]
    NoDriver,
}

/// Why a VM could not be made. The text says what a person would do next.
#[derive(Debug, Error)]
pub enum VmmError {
    /// The host has no KVM.
    #[error(
        "{path} does not exist: load the kvm_intel or kvm_amd module, enable virtualization in the \
         firmware, or pass the device into this container"
    )]
    NoKvm {
        /// The device that was looked for.
        path: String,
    },
    /// The device is there and may not be opened.
    #[error("no permission to open {path}: add this user to the group that owns it (kvm), or run as root")]
    KvmPermission {
        /// The device.
        path: String,
    },
    /// KVM speaks another version of its API.
    #[error("KVM's API version is {found}, this program needs {needed}; a kernel from 2007 on has it")]
    KvmApi {
        /// What KVM said.
        found: i32,
        /// What is needed.
        needed: u32,
    },
    /// KVM lacks something that no guest can do without.
    #[error("KVM has no {capability} here; {advice}")]
    Unsupported {
        /// The capability, as KVM's API names it.
        capability: &'static str,
        /// What to do about it.
        advice: &'static str,
    },
    /// A number of vCPUs that no VM here can have.
    #[error("{wanted} vCPUs asked for; a VM here has 1 to {max}")]
    Vcpus {
        /// What was asked for.
        wanted: u32,
        /// The limit: KVM_CAP_MAX_VCPUS, or that of APIC ids.
        max: u32,
    },
    /// More devices than the bus has slots for.
    #[error("{wanted} devices asked for; a VM here has at most {max}")]
    Devices {
        /// What was asked for.
        wanted: usize,
        /// Slots for devices.
        max: usize,
    },
    /// No eventfd could be had.
    #[error("a device's events could not be made: {0}; raise the limit of open files (ulimit -n)")]
    Descriptors(#[source] io::Error),
    /// The agent's socket could not be made.
    #[error("the socket for the guest's agent could not be made at {path}: {source}")]
    AgentSocket {
        /// Where.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The RAM can't be had.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The CPU can't be had.
    #[error(transparent)]
    Cpu(#[from] CpuError),
    /// A network card can't be had.
    #[error("the guest's network can't be had: {0}")]
    Network(#[from] NetworkError),
    /// The console's file can't be used.
    #[error("the console's file can't be used: {0}; it must be a regular file on a file system with room")]
    Console(#[source] io::Error),
    /// What boots could not be loaded.
    #[error("the guest can't boot: {0}")]
    Boot(#[from] BootError),
    /// KVM can't track written pages as asked for.
    #[error(transparent)]
    Tracking(#[from] GuestError),
    /// KVM refused a call.
    #[error("{operation} failed: {source}")]
    Kvm {
        /// What was tried, in KVM's words.
        operation: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// KVM refused a call, and what that means is known.
    #[error(transparent)]
    Kernel(#[from] KvmError),
    /// A thread of a vCPU's or a device's could not be started.
    #[error(
        "a thread of the guest's could not be started: {0}; raise the limit of threads (ulimit -u, pids.max)"
    )]
    Thread(#[source] io::Error),
}

/// Names the KVM call that failed.
pub(crate) trait KvmContext<T> {
    /// As an error of making a VM.
    fn vmm(self, operation: &'static str) -> Result<T, VmmError>;
    /// As an error of a VM that exists.
    fn guest(self, operation: &str) -> Result<T, GuestError>;
}

impl<T> KvmContext<T> for Result<T, kvm_ioctls::Error> {
    fn vmm(self, operation: &'static str) -> Result<T, VmmError> {
        self.map_err(|error| VmmError::Kvm { operation, source: error.into() })
    }

    fn guest(self, operation: &str) -> Result<T, GuestError> {
        self.map_err(|error| GuestError::Kernel { operation: operation.into(), source: error.into() })
    }
}
