use std::io;

use thiserror::Error;

/// Why KVM refused. The text says what the errno means for this call and what to do next.
#[derive(Debug, Error)]
pub enum KvmError {
    /// This host's KVM lacks a capability.
    #[error("KVM has no {capability} here; {advice}")]
    Unsupported {
        /// The capability, as KVM's API names it.
        capability: &'static str,
        /// What to do about it.
        advice: &'static str,
    },
    /// A call failed.
    #[error("{call} failed: {meaning} ({source})")]
    Call {
        /// The call, as KVM's API names it.
        call: &'static str,
        /// What the errno means for this call.
        meaning: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl KvmError {
    /// Gives the errno of `call` its meaning: first of `meanings` that has it, else a general one.
    pub(crate) fn call(
        call: &'static str,
        source: impl Into<io::Error>,
        meanings: &[(i32, &'static str)],
    ) -> Self {
        let source = source.into();
        let errno = source.raw_os_error().unwrap_or(0);
        let meaning = meanings.iter().chain(GENERAL).find(|(e, _)| *e == errno);
        Self::Call { call, meaning: meaning.map_or("unexpected answer of KVM", |(_, text)| *text), source }
    }
}

/// Errnos that mean the same for every call.
const GENERAL: &[(i32, &str)] = &[
    (libc::ENOMEM, "the host kernel is out of memory; free some or raise the cgroup's limit"),
    (libc::EFAULT, "memory given to KVM is not mapped, a bug of this program"),
    (libc::EBADF, "the VM's file descriptor is closed, a bug of this program"),
    (libc::EIO, "another process made this VM, or it was destroyed; KVM answers only its maker"),
    (libc::ENOTTY, "this kernel's KVM does not know the call; a newer kernel is needed"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errno_says_what_it_means_for_the_call() {
        let error = |errno| {
            let source = io::Error::from_raw_os_error(errno);
            KvmError::call("KVM_X", source, &[(libc::EEXIST, "two slots overlap")]).to_string()
        };
        assert!(error(libc::EEXIST).starts_with("KVM_X failed: two slots overlap ("));
        assert!(error(libc::ENOMEM).contains("out of memory"));
        assert!(error(libc::EDOM).contains("unexpected answer"));
    }
}
