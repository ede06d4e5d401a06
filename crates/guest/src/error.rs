use thiserror::Error;

use crate::PostcopyError;

/// Why an operation on a guest failed. The text says what a person would do next.
#[derive(Debug, Error)]
pub enum GuestError {
    /// The kernel refused an operation on the VM.
    #[error("{operation} failed: {source}")]
    Kernel {
        /// What was tried, in KVM's words.
        operation: String,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// The state to restore does not fit this VM.
    #[error("state section {section} can't be restored here: {reason}")]
    Section {
        /// The section, as `kind/instance v<version>`.
        section: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Its RAM can't be filled by post-copy.
    #[error(transparent)]
    Postcopy(#[from] PostcopyError),
    /// Its vCPUs can't be slowed down.
    #[error("the guest's vCPUs can't be throttled: {0}")]
    Throttle(String),
    /// The guest stopped by itself (reset, triple fault, internal error) and can't be used any more.
    #[error("the guest is gone: {0}")]
    Gone(String),
    /// A vCPU did not leave guest mode in time.
    #[error(
        "vCPU {vcpu} did not stop within {waited_ms} ms; look for a blocked exit handler in its thread's stack"
    )]
    Stuck {
        /// Index of the vCPU.
        vcpu: u32,
        /// How long was waited, in ms.
        waited_ms: u64,
    },
    /// A device's worker was not done in time.
    #[error(
        "device {device} did not stop within {waited_ms} ms; look for what its thread of that name waits for, \
         such as pages that a lost link should bring"
    )]
    StuckDevice {
        /// The device's name and slot.
        device: String,
        /// How long was waited, in ms.
        waited_ms: u64,
    },
}
